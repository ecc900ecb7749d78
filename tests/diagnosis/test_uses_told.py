"""Who uses something, in sentences; and that none of it keeps anything from being removed."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

import users
from estate import open_directory
from exclfs.diagnosis import subject, uses
from exclfs.diagnosis.asking import why
from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Cause, Unread
from exclfs.host.view import Host
from mounting import process
from predicted import become, in_a_child
from twins import ALICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from exclfs.diagnosis.findings import Diagnosis, Finding
    from harness import Mounted


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file"
    path.write_bytes(b"text" * 2048)
    return path


def called(pid: int) -> str:
    """How a process is told."""
    with open(f"/proc/{pid}/comm") as file:
        return f"{file.read().rstrip()} (pid {pid})"


def told(path: Path) -> list[Cause]:
    """What is told of its users."""
    return [cause for cause in why(path).causes if cause.kind in uses.KINDS]


def must_block_nothing(said: Diagnosis) -> None:
    assert said.causes
    assert all(not cause.blocks and cause.errno is None for cause in said.causes)
    assert said.blocked is not True


EVERY_USE_OF_A_FILE = [
    (
        users.opens,
        "descriptor",
        '"{path}" is open by {who}. If it is removed, its space is free only once it is closed.',
    ),
    (users.maps, "mapping", '"{path}" is mapped into the memory of {who}.'),
    (users.watches, "inotify", '"{path}" is watched with inotify by {who}.'),
    pytest.param(users.marks, "fanotify", '"{path}" is watched with fanotify by {who}.', marks=pytest.mark.root),
]


@pytest.mark.parametrize(("uses_it", "kind", "sentence"), EVERY_USE_OF_A_FILE)
def test_a_file_in_use_is_told_and_can_be_removed(
    file: Path, uses_it: Callable[[Path], None], kind: str, sentence: str
) -> None:
    with process(lambda: uses_it(file)) as pid:
        (cause,) = told(file)
        assert (cause.kind, cause.text) == (kind, sentence.format(path=file, who=called(pid)))
        assert [each.pid for each in cause.processes] == [pid]
        assert cause.allows == ("unlink", "rename")
        for attempt in ("rename", "unlink"):
            must_block_nothing(why(file, attempt=attempt))
        file.rename(file.with_name("renamed"))
        file.with_name("renamed").unlink()


@pytest.mark.parametrize(
    ("uses_it", "kind", "sentence"),
    [
        (users.opens, "descriptor", '"{path}" is open by {who}.'),
        (users.works_in, "working directory", '"{path}" is the working directory of {who}.'),
        pytest.param(
            users.has_as_root, "root directory", '"{path}" is the root directory of {who}.', marks=pytest.mark.root
        ),
    ],
)
def test_a_directory_in_use_is_told_and_can_be_removed(
    tmp_path: Path, uses_it: Callable[[Path], None], kind: str, sentence: str
) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    with process(lambda: uses_it(directory)) as pid:
        (cause,) = told(directory)
        assert (cause.kind, cause.text) == (kind, sentence.format(path=directory, who=called(pid)))
        for attempt in ("rename", "rmdir"):
            must_block_nothing(why(directory, attempt=attempt))
        directory.rename(tmp_path / "renamed")
        (tmp_path / "renamed").rmdir()


def test_an_executable_that_runs_can_be_removed(tmp_path: Path) -> None:
    with users.runs(tmp_path / "runs") as pid:
        (cause,) = told(tmp_path / "runs")
        assert cause.kind == "executable"
        assert cause.text == f'"{tmp_path}/runs" is the executable of runs (pid {pid}).'
        must_block_nothing(why(tmp_path / "runs", attempt="unlink"))
        (tmp_path / "runs").unlink()


def test_a_socket_can_be_removed(tmp_path: Path) -> None:
    with process(lambda: users.binds(tmp_path / "socket")) as pid:
        (cause,) = told(tmp_path / "socket")
        assert (cause.kind, cause.text) == ("socket", f'"{tmp_path}/socket" is bound to a socket of {called(pid)}.')
        (tmp_path / "socket").unlink()


def test_several_descriptors_of_one_process_are_one_cause(file: Path) -> None:
    def three() -> None:
        users.opens(file)
        users.opens(file, os.O_WRONLY)
        users.opens(file)

    with process(three) as pid:
        (cause,) = told(file)
        assert cause.text.startswith(f'"{file}" is open for writing by {called(pid)}, 3 times.')


@pytest.mark.parametrize("number", [10, 11])
def test_many_processes_are_one_cause(file: Path, number: int) -> None:
    with ExitStack() as stack:
        pids = {stack.enter_context(process(lambda: users.opens(file))) for _ in range(number)}
        causes = told(file)
        assert {each.pid for cause in causes for each in cause.processes} == pids
        if number <= 10:
            assert len(causes) == number
        else:
            (cause,) = causes
            assert cause.text.startswith(f'"{file}" is open by 11 processes: ')
            assert cause.text.endswith(", and 1 more. `exclfs why --json` tells them all.")
            assert len(re.findall(r"\(pid \d+\)", cause.text)) == 10


def test_names_of_strangers_command_no_terminal(tmp_path: Path) -> None:
    hostile = tmp_path / "\x1b[31m\n"
    hostile.touch()

    def hostile_name() -> None:
        Path("/proc/self/comm").write_bytes(b"a\x1b[0m\nb")
        users.opens(hostile)

    with process(hostile_name) as pid:
        (cause,) = told(hostile)
        assert cause.text.startswith(f'"{tmp_path}/\\x1b[31m\\n" is open by a\\x1b[0m\\nb (pid {pid}).')


# --- Locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("takes", "arguments", "kind", "words"),
    [
        (users.flocks, (), "flock", "a flock for writing"),
        (users.posix_locks, (0, 100), "POSIX lock", "a POSIX lock for writing of bytes 0 to 99"),
        (users.posix_locks, (100,), "POSIX lock", "a POSIX lock for writing from byte 100 on"),
        (users.ofd_locks, (), "OFD lock", "an OFD lock for writing"),
    ],
)
def test_a_lock_is_told_beside_its_descriptor_and_keeps_nothing(
    file: Path, takes: Callable[..., None], arguments: tuple[int, ...], kind: str, words: str
) -> None:
    with process(lambda: takes(file, *arguments)) as pid:
        descriptor, lock = told(file)
        assert (descriptor.kind, lock.kind) == ("descriptor", kind)
        assert lock.text == f'"{file}" has {words}, of {called(pid)}. It binds only those who ask for such a lock.'
        must_block_nothing(why(file, attempt="unlink"))
        file.unlink()


def test_who_waits_for_a_lock_is_told(file: Path) -> None:
    with process(lambda: users.flocks(file)), subprocess.Popen(["flock", file, "true"]) as waiting:
        while len(locks := [cause for cause in told(file) if cause.kind == "flock"]) < 2:
            os.sched_yield()
        waits = f'"{file}" is to have a flock for writing, too: flock (pid {waiting.pid}) waits for it.'
        assert waits in [lock.text for lock in locks]
        waiting.kill()


# --- exclfs itself ---------------------------------------------------------------------------------------------------


@pytest.mark.mount
@pytest.mark.root
def test_a_server_is_told_by_its_mount(mounted: Mounted) -> None:
    """Its backing tree is open in it, and that keeps nothing."""
    source = mounted.backing.parent
    cause = next(each for each in told(source) if each.kind == "descriptor")
    assert f'exclfs, serving "{mounted.root}" (pid {mounted.process.pid})' in cause.text


def test_nobody_else_is_taken_for_a_server(file: Path) -> None:
    claim = """{"mountpoint": "/"}"""
    command = ["sh", "-c", 'exec 3<"$0"; echo; read x', file, "exclfs.mount", claim]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (cause,) = told(file)
        assert cause.text.startswith(f'"{file}" is open by sh (pid {child.pid}).')
        child.kill()


# --- What is not to be read ------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_user_is_told_what_he_does_not_see() -> None:
    def ask() -> dict[str, Any]:
        become(ALICE)
        said = why(path)
        return {"kinds": [cause.kind for cause in said.causes], "unread": [attrs.asdict(gap) for gap in said.unread]}

    with open_directory() as directory:
        directory.chmod(0o777)
        path = directory / "file"
        path.touch()
        with process(lambda: users.opens(path)):
            said = in_a_child(ask)
        assert said["kinds"] == []
        (gap,) = [gap for gap in said["unread"] if gap["kind"] == "processes"]
        assert re.fullmatch(
            r"What \d+ processes have open, work in, run and map could not be read by this user; "
            r"root can: run it with sudo\.",
            gap["text"],
        )
        assert gap["may_block"] == ["umount"]


# --- Silly renames ---------------------------------------------------------------------------------------------------
# There is no NFS server here: the file, its users and /proc are real, and the subject is said to lie on NFS.


def of_fstype(path: Path, fstype: str, host: Host | None = None) -> list[Finding]:
    host = host or Host()
    with subject.looked_up(str(path), host) as looked_at:
        return list(uses.find(attrs.evolve(looked_at, mount=attrs.evolve(looked_at.mount, fstype=fstype)), host))


SILLY = [("nfs4", ".nfs00000000000a2f3c0000001b"), ("nfs", ".nfs00000000000a2f3c0000001b"), ("afs", ".__afs1A2F")]


@pytest.mark.parametrize(("fstype", "name"), SILLY)
def test_a_silly_rename_and_who_keeps_it(tmp_path: Path, fstype: str, name: str) -> None:
    path = tmp_path / name
    path.touch()
    with process(lambda: users.opens(path)) as pid:
        cause = next(each for each in of_fstype(path, fstype) if isinstance(each, Cause))
        assert (cause.kind, cause.errno) == ("silly rename", "EBUSY")
        assert set(cause.blocks) == {Attempt.UNLINK, Attempt.RENAME}
        assert cause.text == (
            f'"{path}" was removed while it was open: {fstype} keeps the file by this name until it is closed by '
            f"{called(pid)}. Then it goes by itself."
        )
        assert [each.pid for each in cause.processes] == [pid]


def test_a_silly_rename_that_nobody_here_has_open_is_a_leftover(tmp_path: Path) -> None:
    path = tmp_path / SILLY[0][1]
    path.touch()
    cause = next(each for each in of_fstype(path, "nfs") if isinstance(each, Cause))
    assert (cause.kind, cause.blocks) == ("silly rename", ())
    assert "leftover" in cause.text


def test_who_has_it_open_by_another_name_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / SILLY[0][1]
    path.touch()
    os.link(path, tmp_path / "other")
    with process(lambda: users.opens(tmp_path / "other")):
        assert next(each for each in of_fstype(path, "nfs") if isinstance(each, Cause)).blocks == ()


@pytest.mark.parametrize(
    ("fstype", "name"), [("ext4", SILLY[0][1]), ("nfs", ".nfs1"), ("nfs", SILLY[2][1]), ("afs", SILLY[0][1])]
)
def test_what_only_looks_so_is_none(tmp_path: Path, fstype: str, name: str) -> None:
    (tmp_path / name).touch()
    with process(lambda: users.opens(tmp_path / name)):
        assert {each.kind for each in of_fstype(tmp_path / name, fstype) if isinstance(each, Cause)} == {"descriptor"}


@pytest.mark.root
def test_a_user_who_does_not_see_who_keeps_it_is_told_so() -> None:
    def ask() -> dict[str, Any]:
        become(ALICE)
        (gap,) = [each for each in of_fstype(path, "nfs") if isinstance(each, Unread)]
        return {"may_block": list(gap.may_block)}

    with open_directory() as directory:
        path = directory / SILLY[0][1]
        path.touch()
        assert in_a_child(ask) == {"may_block": ["umount", "unlink", "rename"]}
