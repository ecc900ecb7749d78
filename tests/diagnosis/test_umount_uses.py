"""Who keeps a mount from being unmounted: said, and tried with umount(2)."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import users
from exclfs.diagnosis import uses
from exclfs.diagnosis.asking import why
from mounting import bind, errno_of, kinds, leave, of_kind, privately, process, tmpfs, umount
from predicted import CLONE_NEWNS, MS_REC, mount
from twins import LIBC, check

if TYPE_CHECKING:
    from collections.abc import Callable

    from exclfs.diagnosis.findings import Diagnosis

pytestmark = [pytest.mark.root]

MS_SHARED = 1 << 20


def foretold(path: Path) -> Diagnosis:
    """What is said of an unmount, which is then tried, and must come so.

    That nobody uses it is certain only where every process can be read, which not every machine lets root.
    """
    said = why(path, attempt="umount")
    real = errno_of(lambda: umount(path))
    assert said.errno == real, said
    assert said.blocked is True if real else said.blocked is False or {gap.kind for gap in said.unread} == {"processes"}
    return said


def busy(path: Path, kind: str, pid: int) -> str:
    """What is said of the one who keeps it busy: a sentence."""
    said = foretold(path)
    cause = of_kind(said, kind)
    assert (cause.blocks, cause.errno) == (("umount",), "EBUSY")
    assert [each.pid for each in cause.processes] == [pid]
    assert {each.kind for each in said.causes if each.blocks == ("umount",)} == {kind}
    return str(cause.text)


@privately
def test_a_mount_that_nobody_uses_goes(tmp_path: Path) -> None:
    there = tmpfs(tmp_path / "there")
    (there / "file").touch()
    assert not kinds(foretold(there)) & set(uses.KINDS)


@pytest.mark.parametrize("where", [".", "file", "directory", "directory/below"])
@privately
def test_a_descriptor_of_anything_on_it(tmp_path: Path, where: str) -> None:
    there = populated(tmp_path / "there")
    with process(lambda: users.opens(there / where)) as pid:
        text = busy(there, "descriptor", pid)
        assert text.startswith(f'"{os.path.normpath(there / where)}" is open by ')
        assert text.endswith(f"`kill {pid}` ends it.")
    foretold(there)


@privately
def test_a_descriptor_that_is_only_a_place(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    with process(lambda: users.opens(there / "file", os.O_PATH)) as pid:
        busy(there, "descriptor", pid)


@privately
def test_several_descriptors_of_one_process(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")

    def opens() -> None:
        for name in ("file", "directory", "directory/below"):
            users.opens(there / name)

    with process(opens) as pid:
        assert f'"{there}/file" and 2 more on this mount are open by ' in busy(there, "descriptor", pid)


@pytest.mark.parametrize("where", [".", "directory"])
@privately
def test_a_working_directory(tmp_path: Path, where: str) -> None:
    there = populated(tmp_path / "there")
    with process(lambda: users.works_in(there / where)) as pid:
        text = busy(there, "working directory", pid)
        assert text.endswith(f"It has to change to another directory, or to end: `kill {pid}`.")


@privately
def test_one_s_own_working_directory(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    os.chdir(there / "directory")
    text = busy(there, "working directory", os.getpid())
    assert text.endswith(f"of this very command (pid {os.getpid()}). Change to another directory first.")
    os.chdir("/")
    foretold(there)


@privately
def test_a_root_directory(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    with process(lambda: users.has_as_root(there / "directory")) as pid:
        busy(there, "root directory", pid)


@privately
def test_an_executable(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    with users.runs(there / "runs") as pid:
        said = foretold(there)
        assert [each.pid for each in of_kind(said, "executable").processes] == [pid]


@privately
def test_a_mapping(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    with process(lambda: users.maps(there / "file")) as pid:
        busy(there, "mapping", pid)


@pytest.mark.parametrize("relative", [False, True])
@privately
def test_a_socket(tmp_path: Path, *, relative: bool) -> None:
    there = populated(tmp_path / "there")

    def binds() -> None:
        if relative:
            os.chdir(there)
            users.binds(Path("socket"))
            os.chdir("/")
        else:
            users.binds(there / "socket")

    with process(binds) as pid:
        busy(there, "socket", pid)


@privately
def test_a_socket_of_which_the_kernel_does_not_tell_the_mount(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    (tmp_path / "bound").mkdir()
    bind(there, tmp_path / "bound")

    def binds() -> None:
        os.chdir(there)
        users.binds(Path("socket"))
        os.chdir("/")

    with process(binds) as pid:
        for path in (there, tmp_path / "bound"):
            said = why(path, attempt="umount")
            assert said.blocked is None
            (gap,) = [gap for gap in said.unread if gap.kind == "sockets"]
            assert f"(pid {pid})" in gap.text


@pytest.mark.parametrize("uses_it", [users.watches, users.marks, lambda path: users.marks(path, users.FAN_MARK_MOUNT)])
@privately
def test_who_only_watches_keeps_nothing(tmp_path: Path, uses_it: Callable[[Path], None]) -> None:
    there = populated(tmp_path / "there")
    with process(lambda: uses_it(there)) as pid:
        said = foretold(there)
        (cause,) = [cause for cause in said.causes if cause.kind in ("inotify", "fanotify")]
        assert cause.blocks == ()
        assert [each.pid for each in cause.processes] == [pid]


@privately
def test_a_lock_keeps_nothing_but_its_descriptor_does(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    with process(lambda: users.flocks(there / "file")) as pid:
        busy(there, "descriptor", pid)


@privately
def test_another_mount_of_the_same_filesystem_is_another_mount(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    (tmp_path / "bound").mkdir()
    bind(there / "directory", tmp_path / "bound")
    with process(lambda: users.opens(tmp_path / "bound/below")) as pid, process(lambda: users.maps(there / "file")):
        busy(tmp_path / "bound", "descriptor", pid)
        assert "descriptor" not in kinds(foretold(there))


@privately
def test_the_root_of_a_mount_is_told_once_and_through_another_mount_as_what_keeps_nothing(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    (tmp_path / "bound").mkdir()
    bind(there, tmp_path / "bound")
    with process(lambda: users.opens(there)) as here, process(lambda: users.opens(tmp_path / "bound")) as elsewhere:
        causes = [cause for cause in foretold(there).causes if cause.kind == "descriptor"]
        assert [([each.pid for each in cause.processes], cause.blocks) for cause in causes] == [
            ([here], ("umount",)),
            ([elsewhere], ()),
        ]


@privately
def test_a_process_in_another_namespace_keeps_its_own_copy(tmp_path: Path) -> None:
    """Where nothing is shared it does not keep ours; where the mount below is, it does."""
    there = populated(tmp_path / "there")

    def inside() -> None:
        leave()
        users.opens(there / "file")

    with process(inside):
        foretold(there)
        assert not there.is_mount()


@privately
def test_a_copy_that_would_go_along_is_busy(tmp_path: Path) -> None:
    mount("none", "/", flags=MS_REC | MS_SHARED)
    there = populated(tmp_path / "there")

    def inside() -> None:
        check(LIBC.unshare(CLONE_NEWNS))
        users.opens(there / "file")

    with process(inside) as pid:
        busy(there, "descriptor", pid)
    foretold(there)


@privately
def test_many_users_are_one_cause(tmp_path: Path) -> None:
    there = populated(tmp_path / "there")
    with ExitStack() as stack:
        pids = {stack.enter_context(process(lambda: users.opens(there / "file"))) for _ in range(12)}
        cause = of_kind(foretold(there), "descriptor")
        assert cause.text.startswith(f'Something on "{there}" is open by 12 processes: ')
        assert {each.pid for each in cause.processes} == pids
    foretold(there)


@privately
def test_the_command_s_own_shell(tmp_path: Path) -> None:
    """As it is typed: `cd MNT; exclfs why --for umount .`"""
    there = populated(tmp_path / "there")
    shell = f"echo $$; {sys.executable} -m exclfs.cli why --for umount .; echo"
    done = subprocess.run(["sh", "-c", shell], cwd=there, capture_output=True, text=True, check=True)
    pid = done.stdout.split("\n", 1)[0]
    assert "EBUSY" in done.stdout
    assert f'"." is the working directory of sh (pid {pid}). It has to change' in done.stdout
    assert '"." is the working directory of this very command' in done.stdout


def populated(path: Path) -> Path:
    """A mount with something on it."""
    tmpfs(path)
    (path / "file").write_bytes(b"text" * 2048)
    (path / "directory").mkdir()
    (path / "directory/below").touch()
    return path
