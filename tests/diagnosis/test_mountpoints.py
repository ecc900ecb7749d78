"""What is mounted on something, here and elsewhere, and what comes of its removal: said, and tried."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from estate import open_directory
from exclfs.diagnosis.asking import why
from exclfs.host import mounts
from mounting import (
    MS_REC,
    agrees,
    asked,
    bind,
    errno_of,
    in_another_namespace,
    kinds,
    of_kind,
    privately,
    process,
    tmpfs,
)
from predicted import mount
from twins import ALICE, as_user

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root]

CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that everybody can enter."""
    with open_directory() as path:
        yield path


def number_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def mounted_by(pid: int) -> set[bytes]:
    """The mountpoints that this process sees."""
    return {mount.mountpoint for mount in mounts.parse(Path(f"/proc/{pid}/mountinfo").read_bytes())}


@privately
def test_a_mountpoint_can_neither_be_removed_nor_renamed(directory: Path) -> None:
    thing = tmpfs(directory / "thing", "a source")
    for attempt, call in (("rmdir", os.rmdir), ("rename", lambda path: os.rename(path, directory / "other"))):
        said = why(thing, attempt=attempt)
        agrees(said, errno_of(lambda: call(thing)))  # noqa: B023
        cause = of_kind(said, "mountpoint")
        assert cause.errno == "EBUSY"
        assert cause.where == str(thing)
        assert 'tmpfs "a source"' in cause.text
        assert f"umount {thing}" in cause.text
        assert cause.allows == ("umount", "overlay-mount")


@privately
def test_a_file_can_be_a_mountpoint(directory: Path) -> None:
    for name in ("file", "other"):
        (directory / name).touch()
    bind(directory / "other", directory / "file")
    said = why(directory / "file", attempt="unlink")
    agrees(said, errno_of((directory / "file").unlink))
    assert f'/{directory.name}/other" of ' in of_kind(said, "mountpoint").text


@privately
def test_all_that_is_mounted_on_one_another_is_told(directory: Path) -> None:
    thing = tmpfs(directory / "thing", "below")
    tmpfs(thing, "above")
    cause = of_kind(why(thing), "mountpoint")
    assert 'tmpfs "above", on top of tmpfs "below" are mounted' in cause.text
    assert "2 times" in cause.text


@privately
def test_a_mountpoint_by_another_name(directory: Path) -> None:
    (directory / "one").mkdir()
    (directory / "two").mkdir()
    tmpfs(directory / "one/thing")
    bind(directory / "one", directory / "two")
    seen_empty = directory / "two/thing"
    assert not os.path.ismount(seen_empty)
    for attempt, call in (("rmdir", os.rmdir), ("rename", lambda path: os.rename(path, directory / "two/other"))):
        said = why(seen_empty, attempt=attempt)
        agrees(said, errno_of(lambda: call(seen_empty)))  # noqa: B023
    cause = of_kind(said, "mountpoint")
    assert cause.where == f"{directory}/one/thing"
    assert "by another name" in cause.text


@privately
def test_what_is_mounted_below_does_not_keep_a_directory_from_being_renamed(directory: Path) -> None:
    (directory / "above").mkdir()
    tmpfs(directory / "above/thing")
    said = why(directory / "above", attempt="rename")
    agrees(said, errno_of(lambda: os.rename(directory / "above", directory / "other")))
    assert "mountpoint" not in kinds(said)


@privately
def test_a_mount_in_another_namespace_goes_with_its_mountpoint(directory: Path) -> None:
    thing = directory / "thing"
    with in_another_namespace(lambda: tmpfs(thing, "theirs")) as pid:
        said = why(thing, attempt="rmdir")
        cause = of_kind(said, "mountpoint elsewhere")
        assert cause.blocks == ()
        assert cause.namespace == number_of(pid)
        assert [each.pid for each in cause.processes] == [pid]
        assert f"mount namespace {number_of(pid)} (kept alive by pid {pid}, " in cause.text
        assert 'tmpfs "theirs"' in cause.text
        assert os.fsencode(thing) in mounted_by(pid)
        agrees(said, errno_of(thing.rmdir))
        assert os.fsencode(thing) not in mounted_by(pid)


@privately
def test_a_mount_in_another_namespace_moves_along(directory: Path) -> None:
    thing = directory / "thing"
    with in_another_namespace(lambda: tmpfs(thing)) as pid:
        agrees(why(thing, attempt="rename"), errno_of(lambda: thing.rename(directory / "other")))
        assert os.fsencode(directory / "other") in mounted_by(pid)


@privately
def test_the_same_filesystem_in_many_namespaces_is_one_cause(directory: Path) -> None:
    thing = tmpfs(directory / "thing")
    with in_another_namespace(lambda: None) as one, in_another_namespace(lambda: None) as two:
        said = why(thing)
        cause = of_kind(said, "mountpoint elsewhere")
        assert {each.pid for each in cause.processes} == {one, two}
        assert cause.namespace is None
        assert all(str(number_of(pid)) in cause.text for pid in (one, two))
        assert of_kind(said, "mountpoint").blocks == ("rmdir", "rename")


@privately
def test_the_container_of_who_keeps_a_namespace_is_named(directory: Path) -> None:
    container = "0123456789abcdef" * 4
    candidates = (CGROUPS / "unified", CGROUPS / "pids", CGROUPS)
    hierarchy = next(path for path in candidates if (path / "cgroup.procs").exists())
    group = hierarchy / f"docker-{container}.scope"
    group.mkdir()
    try:
        thing = directory / "thing"
        with in_another_namespace(lambda: tmpfs(thing)) as pid:
            (group / "cgroup.procs").write_text(str(pid))
            cause = of_kind(why(thing), "mountpoint elsewhere")
            assert "docker:0123456789ab)" in cause.text
            assert cause.processes[0].container == "docker:0123456789ab"
    finally:
        group.rmdir()


@privately
def test_a_namespace_that_only_its_bind_mount_keeps(directory: Path) -> None:
    kept, thing = tmpfs(directory / "kept"), directory / "thing"
    thing.mkdir()
    (kept / "namespace").touch()
    script = 'mount -t tmpfs inside "$0"'
    unshare = ["unshare", f"--mount={kept}/namespace", "--propagation", "private"]
    # Only a younger namespace can be bound, and which is younger the kernel tells by numbers that each CPU gives out.
    while subprocess.run([*unshare, "sh", "-c", script, str(thing)], check=False).returncode:
        pass
    cause = of_kind(why(thing), "mountpoint elsewhere")
    assert 'tmpfs "inside"' in cause.text
    assert f'its bind mount on "{kept}/namespace"' in cause.text
    assert cause.namespace == os.stat(kept / "namespace").st_ino
    agrees(why(thing, attempt="rmdir"), errno_of(thing.rmdir))


@privately
def test_a_namespace_that_only_a_descriptor_keeps(directory: Path) -> None:
    thing = directory / "thing"
    with in_another_namespace(lambda: tmpfs(thing, "inside")) as pid:
        number, descriptor = number_of(pid), os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    with process(lambda: None) as holder:
        os.close(descriptor)
        cause = of_kind(why(thing), "mountpoint elsewhere")
        assert cause.namespace == number
        assert [each.pid for each in cause.processes] == [holder]
        assert 'tmpfs "inside"' in cause.text
    assert "mountpoint elsewhere" not in kinds(why(thing))


@privately
def test_the_root_directory() -> None:
    for attempt, call in (("rmdir", os.rmdir), ("rename", lambda path: os.rename(path, "/tmp/other"))):
        said = why("/", attempt=attempt)
        agrees(said, errno_of(lambda: call("/")))  # noqa: B023
        assert of_kind(said, "root").errno == "EBUSY"


# --- As somebody who does not see all --------------------------------------------------------------------------------


def as_program(path: Path, *prefix: str) -> list[str]:
    """What a process of its own says: kinds and texts of causes and gaps."""
    program = (
        "import sys; from exclfs.diagnosis.asking import why; said = why(sys.argv[1]);"
        "print(*(f'{each.kind}: {each.text}' for each in (*said.causes, *said.unread)), sep='\\n')"
    )
    done = subprocess.run([*prefix, sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


USER = ("setpriv", f"--reuid={ALICE.uid}", f"--regid={ALICE.gid}", "--clear-groups")


@privately
def test_an_ordinary_user_sees_what_others_have_mounted(directory: Path) -> None:
    thing = directory / "thing"
    with in_another_namespace(lambda: tmpfs(thing, "theirs")) as pid:
        (line,) = [line for line in as_program(thing, *USER) if line.startswith("mountpoint elsewhere")]
        assert f"in a mount namespace (kept alive by pid {pid}, " in line
        assert 'tmpfs "theirs"' in line


@privately
def test_in_a_pid_namespace_processes_outside_are_not_seen(directory: Path) -> None:
    said = as_program(directory, "unshare", "--pid", "--fork", "--mount-proc")
    assert any(line.startswith("namespaces: ") and "Run it on the host" in line for line in said)
    assert not any(line.startswith("namespaces: ") for line in as_program(directory))


@privately
def test_where_proc_hides_processes_that_is_told(directory: Path) -> None:
    mount("proc", "/proc", "proc", options="hidepid=2")
    said = as_program(directory, *USER)
    assert any(line.startswith("namespaces: ") and "hidepid" in line for line in said)
    assert not any("hidepid" in line for line in as_program(directory))


# --- A mount whose server is dead ------------------------------------------------------------------------------------


@privately
def test_a_mount_whose_server_is_dead(directory: Path) -> None:
    thing = directory / "thing"
    thing.mkdir()
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount("/srv/x", thing, "fuse.exclfs", options=f"fd={fuse},rootmode=40000,user_id=0,group_id=0")
    os.close(fuse)
    assert errno_of(lambda: os.stat(thing)) == "ENOTCONN"
    said = why(thing, attempt="rmdir")
    agrees(said, errno_of(thing.rmdir))
    assert "fuse.exclfs" in of_kind(said, "mountpoint").text
    assert "umount" in of_kind(said, "mountpoint").allows
    with pytest.raises(OSError, match="not connected") as caught:
        why(thing / "below")
    assert caught.value.filename == f"{thing}/below"


@privately
def test_a_namespace_of_another_root_is_looked_into(directory: Path) -> None:
    """The process's root is a bind mount of a directory: the names are others there, and the place is the same."""
    root = directory / "root"
    for name in ("root/inside", "root/old"):
        (directory / name).mkdir(parents=True)

    def pivot() -> None:
        bind(root, root, MS_REC)
        os.chdir(root)
        subprocess.run(["pivot_root", ".", "old"], check=True)
        os.chroot(".")
        mount("theirs", "/inside", "tmpfs")

    with in_another_namespace(pivot) as pid:
        said = asked(root / "inside", "rmdir")
        cause = of_kind(said, "mountpoint elsewhere")
        assert cause.where == "/inside"
        assert cause.namespace == number_of(pid)
        agrees(said, errno_of((root / "inside").rmdir))


def test_nothing_is_mounted_on_a_plain_directory(directory: Path) -> None:
    said = as_user(ALICE, lambda: why(directory))
    assert not {"mountpoint", "mountpoint elsewhere", "root"} & kinds(said)
