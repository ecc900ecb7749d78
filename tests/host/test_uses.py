"""Who uses something: every way to use it, by a real process; and what a /proc says that cannot be made here."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

import users
from estate import open_directory
from exclfs.host import identities, locks, unix_sockets
from exclfs.host.locks import Kind as LockKind
from exclfs.host.locks import Lock
from exclfs.host.uses import Found, Kind, Sought, Use, find, path_of
from exclfs.host.view import Host
from mounting import bind, privately, process, tmpfs
from predicted import CLONE_NEWNS, become, in_a_child
from program import EXCLFS
from twins import ALICE, LIBC, check

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Mounted


def sought(path: Path, host: Host, *, whole_mount: bool = False) -> Sought:
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        mount = host.mount_of(descriptor)
        mounts = frozenset({mount.id}) if whole_mount else frozenset[int]()
        return Sought(
            identity=identities.of(descriptor, mount), path=str(path), is_directory=path.is_dir(), mounts=mounts
        )
    finally:
        os.close(descriptor)


def found(path: Path, *, whole_mount: bool = False) -> Found:
    host = Host()
    return find(sought(path, host, whole_mount=whole_mount), host)


def uses(path: Path, *, whole_mount: bool = False) -> list[Use]:
    return list(found(path, whole_mount=whole_mount).uses)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file"
    path.write_bytes(b"text" * 2048)
    return path


def test_what_nobody_uses_has_no_users(file: Path, tmp_path: Path) -> None:
    (tmp_path / "another").write_text("text")
    with process(lambda: users.opens(tmp_path / "another")):
        assert uses(file) == []
        assert found(file).locks == {}


@pytest.mark.parametrize(
    ("flags", "writing"), [(os.O_RDONLY, False), (os.O_WRONLY, True), (os.O_RDWR, True), (os.O_PATH, False)]
)
def test_a_descriptor(file: Path, flags: int, *, writing: bool) -> None:
    with process(lambda: users.opens(file, flags)) as pid:
        (use,) = uses(file)
        assert (use.pid, use.kind, use.is_it, use.writing) == (pid, Kind.DESCRIPTOR, True, writing)
        assert path_of(use, Host()) == str(file)
    assert uses(file) == []
    assert path_of(use, Host()) is None


def test_a_descriptor_by_another_name(file: Path, tmp_path: Path) -> None:
    os.link(file, tmp_path / "link")
    with process(lambda: users.opens(tmp_path / "link")) as pid:
        assert [(use.pid, use.kind) for use in uses(file)] == [(pid, Kind.DESCRIPTOR)]


def test_descriptors_that_only_serve_to_look_are_left_out(file: Path) -> None:
    host = Host()
    looking, using = os.open(file, os.O_PATH), os.open(file, os.O_RDONLY)
    try:
        wanted = sought(file, host)
        both = find(wanted, host).uses
        assert [use.descriptor for use in both] == [looking, using]
        one = find(attrs.evolve(wanted, ours=frozenset({looking})), host).uses
        assert [(use.pid, use.descriptor) for use in one] == [(os.getpid(), using)]
    finally:
        os.close(looking)
        os.close(using)


def test_a_working_directory(tmp_path: Path) -> None:
    with process(lambda: users.works_in(tmp_path)) as pid:
        (use,) = uses(tmp_path)
        assert (use.pid, use.kind, use.is_it, use.path) == (pid, Kind.WORKING_DIRECTORY, True, str(tmp_path))


@pytest.mark.root
def test_a_root_directory(tmp_path: Path) -> None:
    with process(lambda: users.has_as_root(tmp_path)) as pid:
        (use,) = uses(tmp_path)
        assert (use.pid, use.kind, use.is_it, use.path) == (pid, Kind.ROOT_DIRECTORY, True, str(tmp_path))


def test_an_executable_is_no_mapping_besides(tmp_path: Path) -> None:
    with users.runs(tmp_path / "runs") as pid:
        (use,) = uses(tmp_path / "runs")
        assert (use.pid, use.kind, use.is_it) == (pid, Kind.EXECUTABLE, True)


def test_a_mapping_without_a_descriptor(file: Path) -> None:
    with process(lambda: users.maps(file)) as pid:
        (use,) = uses(file)
        assert (use.pid, use.kind, use.is_it, use.writing) == (pid, Kind.MAPPING, True, True)
        assert use.path == str(file)


def test_a_socket_that_is_bound_to_it_whatever_it_is_called_now(tmp_path: Path) -> None:
    with process(lambda: users.binds(tmp_path / "socket")) as pid:
        os.rename(tmp_path / "socket", tmp_path / "renamed")
        (use,) = uses(tmp_path / "renamed")
        assert (use.pid, use.kind, use.is_it, use.path) == (pid, Kind.SOCKET, True, str(tmp_path / "socket"))
        (tmp_path / "socket").touch()
        assert uses(tmp_path / "socket") == []


def test_a_thousand_sockets(tmp_path: Path) -> None:
    """More than the kernel tells in one packet."""

    def binds() -> None:
        for number in range(1000):
            users.binds(tmp_path / str(number))

    with process(binds) as pid:
        device = sought(tmp_path, Host()).identity.kernel_device
        names = {each.inode: each.name for each in unix_sockets.bound(device).bound}
        assert {names.get(os.stat(tmp_path / str(n)).st_ino) for n in range(1000)} == {
            str(tmp_path / str(number)) for number in range(1000)
        }
        assert [use.pid for use in uses(tmp_path / "999")] == [pid]


@pytest.mark.parametrize("number", [1, 2000])
def test_an_inotify_watch_also_as_the_last_of_many(tmp_path: Path, number: int) -> None:
    for each in range(number):
        (tmp_path / str(each)).touch()

    def watches() -> None:
        group = check(LIBC.inotify_init1(0))
        for each in range(number):
            check(LIBC.inotify_add_watch(group, os.fsencode(tmp_path / str(each)), users.IN_ALL_EVENTS))

    with process(watches) as pid:
        for each in {0, number - 1}:
            assert [(use.pid, use.kind) for use in uses(tmp_path / str(each))] == [(pid, Kind.INOTIFY)]


@pytest.mark.root
def test_a_fanotify_mark(file: Path, tmp_path: Path) -> None:
    with process(lambda: users.marks(file)) as pid:
        assert [(use.pid, use.kind) for use in uses(file)] == [(pid, Kind.FANOTIFY)]
        assert uses(tmp_path) == []


@pytest.mark.root
@privately
def test_of_a_mount_everything_on_it_and_nothing_else(tmp_path: Path) -> None:
    one, other = tmpfs(tmp_path / "one"), tmpfs(tmp_path / "other")
    for directory in (one / "below", tmp_path / "bound"):
        directory.mkdir()
    for file in (one / "below/file", other / "file"):
        file.touch()
    bind(one / "below", tmp_path / "bound")
    with (
        process(lambda: users.opens(one / "below/file")) as opener,
        process(lambda: users.opens(other / "file")),
        process(lambda: users.opens(tmp_path / "bound/file")),
        process(lambda: users.works_in(one / "below")) as worker,
        process(lambda: users.marks(one, users.FAN_MARK_MOUNT)) as marker,
    ):
        assert {(use.pid, use.kind, use.is_it) for use in uses(one, whole_mount=True)} == {
            (opener, Kind.DESCRIPTOR, False),
            (worker, Kind.WORKING_DIRECTORY, False),
            (marker, Kind.FANOTIFY, True),
        }


@pytest.mark.root
@privately
def test_in_another_mount_namespace_and_root_directory(tmp_path: Path) -> None:
    there = tmpfs(tmp_path / "there")
    (there / "inside").mkdir()

    def contained() -> None:
        check(LIBC.unshare(CLONE_NEWNS))
        os.chroot(there)
        os.chdir("/inside")

    with process(contained) as pid:
        inside = [(use.pid, use.kind, use.is_it) for use in uses(there / "inside")]
        assert inside == [(pid, Kind.WORKING_DIRECTORY, True)]
        assert [(use.pid, use.kind) for use in uses(there)] == [(pid, Kind.ROOT_DIRECTORY)]


# --- Locks -----------------------------------------------------------------------------------------------------------


def lock(kind: LockKind, pid: int | None, *, writing: bool = True, start: int = 0, end: int | None = None) -> Lock:
    return Lock(kind=kind, writing=writing, start=start, end=end, waits=False, pid=pid)


def test_a_flock(file: Path) -> None:
    with process(lambda: users.flocks(file)) as pid:
        assert found(file).locks == {lock(LockKind.FLOCK, pid): (pid,)}


def test_a_flock_is_of_whoever_has_the_descriptor_now(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        with process(lambda: fcntl.flock(descriptor, fcntl.LOCK_SH)) as pid:
            assert found(file).locks == {lock(LockKind.FLOCK, pid, writing=False): tuple(sorted((os.getpid(), pid)))}
        # Who took it is dead, and /proc/locks names him still.
        assert found(file).locks == {lock(LockKind.FLOCK, pid, writing=False): (os.getpid(),)}
    finally:
        os.close(descriptor)


def test_posix_locks_and_their_ranges(file: Path) -> None:
    with (
        process(lambda: users.posix_locks(file, 0, 100)) as writer,
        process(lambda: users.posix_locks(file, 200, kind=fcntl.F_RDLCK)) as reader,
    ):
        assert found(file).locks == {
            lock(LockKind.POSIX, writer, end=99): (writer,),
            lock(LockKind.POSIX, reader, writing=False, start=200): (reader,),
        }


def test_an_ofd_lock_of_which_the_kernel_does_not_say_whose_it_is(file: Path) -> None:
    with process(lambda: users.ofd_locks(file, 10, 10)) as pid:
        assert found(file).locks == {lock(LockKind.OFD, None, start=10, end=19): (pid,)}


def test_who_waits_for_a_lock(file: Path) -> None:
    with (
        process(lambda: users.flocks(file)) as holder,
        subprocess.Popen(["flock", file, "true"]) as waiting,
    ):
        while len(locks := found(file).locks) < 2:
            os.sched_yield()
        assert locks[lock(LockKind.FLOCK, holder)] == (holder,)
        (waits,) = [each for each in locks if each.waits]
        assert (waits.kind, waits.pid, locks[waits]) == (LockKind.FLOCK, waiting.pid, (waiting.pid,))
        waiting.kill()


def test_a_lease_is_no_lock(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert found(file).locks == {}
    finally:
        os.close(descriptor)


# --- What is not to be read ------------------------------------------------------------------------------------------


@pytest.mark.root
def test_another_user_is_not_shown_what_root_uses_but_that_he_is_not() -> None:
    def ask(path: Path) -> dict[str, object]:
        become(ALICE)
        told = found(path)
        return {"uses": len(told.uses), "unread": told.unread, "locks": list(told.locks.values())}

    with open_directory() as directory:
        (directory / "file").touch()
        (directory / "file").chmod(0o666)
        with process(lambda: users.flocks(directory / "file")) as pid:
            told = in_a_child(lambda: ask(directory / "file"))
            assert told["uses"] == 0
            assert pid in told["unread"]
            assert told["locks"] == [[pid]]  # /proc/locks is for everybody
            kernel_thread = next(n for n in Host().pids if b"kthreadd" in Path(f"/proc/{n}/comm").read_bytes())
            assert kernel_thread not in told["unread"]


def test_what_ends_while_it_is_read_is_no_error(file: Path) -> None:
    with process(lambda: users.opens(file)) as pid:
        host = Host()
        assert pid in host.pids
    told = find(sought(file, host), host)
    assert told.uses == ()
    assert pid not in told.unread


# --- Filesystems that hang -------------------------------------------------------------------------------------------


@pytest.mark.mount
@pytest.mark.root
def test_a_filesystem_that_hangs_hangs_nobody_else(mount: Callable[..., Mounted], file: Path, tmp_path: Path) -> None:
    mounted = mount(attr_timeout=0.0, entry_timeout=0.0)  # the kernel believes nothing that it has seen before
    (mounted.path / "directory").mkdir()
    (mounted.path / "file").touch()

    def uses_it_all() -> None:
        users.opens(mounted.path / "file", os.O_RDWR)
        users.opens(file)
        users.opens(tmp_path)
        os.chdir(mounted.path / "directory")

    with process(uses_it_all) as pid:
        os.kill(mounted.process.pid, signal.SIGSTOP)
        try:
            for path in (file, tmp_path):
                ask = [*EXCLFS, "why", path, "--json"]
                told = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=60)
                (cause,) = [cause for cause in json.loads(told.stdout)["causes"] if cause["kind"] == "descriptor"]
                assert [each["pid"] for each in cause["processes"]] == [pid]
        finally:
            os.kill(mounted.process.pid, signal.SIGCONT)


# --- A /proc that is not here ----------------------------------------------------------------------------------------


def pretended(proc: Path, pid: int, *, stat: str = "S 1 0 0 0 0 4194560") -> Path:
    """A process of a /proc that has, beside it, only what a test puts there."""
    directory = proc / str(pid)
    (directory / "fdinfo").mkdir(parents=True)
    (directory / "fd").mkdir()
    (directory / "mountinfo").write_bytes(Path("/proc/self/mountinfo").read_bytes())
    (directory / "stat").write_text(f"{pid} (a) b) {stat} 0 0\n")
    return directory


def test_before_linux_5_14_a_descriptor_is_recognised_by_its_path(file: Path, tmp_path: Path) -> None:
    host = Host(proc=str(tmp_path / "proc"))
    wanted = sought(file, Host())
    mount = Host().tree.way(os.fsencode(file))[-1].id
    for pid, path in ((4711, file), (4712, tmp_path / "another")):
        directory = pretended(tmp_path / "proc", pid)
        (directory / "fdinfo/3").write_text(f"pos:\t0\nflags:\t0100002\nmnt_id:\t{mount}\n")
        (directory / "fd/3").symlink_to(path)
    (use,) = find(wanted, host).uses
    assert (use.pid, use.kind, use.writing, use.mount) == (4711, Kind.DESCRIPTOR, True, mount)


def test_the_same_number_on_another_device_is_another_inode(file: Path, tmp_path: Path) -> None:
    host = Host(proc=str(tmp_path / "proc"))
    wanted = sought(file, Host())
    proc_mount = next(mount.id for mount in Host().mounts if mount.fstype == "proc")
    directory = pretended(tmp_path / "proc", 4711)
    (directory / "fdinfo/3").write_text(
        f"pos:\t0\nflags:\t0100002\nmnt_id:\t{proc_mount}\nino:\t{wanted.identity.inode}\n"
    )
    (directory / "maps").write_text(f"7f00-7f01 r--p 00000000 00:07 {wanted.identity.inode}   /somewhere/else\n")
    assert find(wanted, host).uses == ()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("FLOCK  ADVISORY  WRITE 4711 fe:00:12 0 EOF", [lock(LockKind.FLOCK, 4711)]),
        ("OFDLCK ADVISORY  READ  -1 fe:00:12 5 9", [lock(LockKind.OFD, None, writing=False, start=5, end=9)]),
        ("POSIX  ADVISORY  WRITE 0 fe:00:12 0 0", [lock(LockKind.POSIX, None, end=0)]),
        ("LEASE  ACTIVE    READ  4711 fe:00:12 0 EOF", []),
        ("POSIX  ADVISORY  WRITE 4711 fe:00:121 0 EOF", []),
        ("POSIX  ADVISORY  WRITE 4711 fe:01:12 0 EOF", []),
        ("SOMETHING NEW fe:00:12 0 EOF", []),
    ],
)
def test_lines_of_proc_locks(line: str, expected: list[Lock]) -> None:
    identity = identities.Identity("254:0", 12)
    assert list(locks.in_locks(f"17: {line}\n".encode(), identity)) == expected
    if expected:
        assert [each.waits for each in locks.in_locks(f"17: -> {line}\n".encode(), identity)] == [True]
