"""A backing filesystem that is full, read-only or broken says the same through the mount as to those who use it.

Each is compared with another filesystem made alike, to which the same is done directly. The tests of a pair of
filesystems follow each other, and the last takes them away.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

import loops
from harness import start
from twins import ALICE, ROOT, Twins, as_user, fallocate, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.kinds]

BLOCK = 4096
MANY = 60
"""So often that a filesystem has no room left that it had set aside."""
PAIRS = {
    "ext4": ("ext4", {}),
    "ext4-nopassthrough": ("ext4", {"passthrough": False}),
    "ext4-ask_always": ("ext4", {"ask_always": True}),
    "xfs": ("xfs", {}),
    "btrfs": ("btrfs", {}),
}


@attrs.frozen
class Pair(Twins):
    """Two filesystems: that behind the mount, and its like."""

    kind: str
    passthrough: bool

    def succeed_with(self, work: Callable[[], str]) -> str:
        """What root gets in both, going there by itself: it starts programs."""
        outcomes = []
        for directory in (self.mount, self.shadow):
            os.chdir(directory)
            try:
                outcomes.append(work())
            finally:
                os.chdir("/")
        assert outcomes[0] == outcomes[1], outcomes
        return outcomes[0]

    @property
    def filesystems(self) -> tuple[Path, Path]:
        return self.behind, self.shadow


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A mount that believes nothing, of the root of a filesystem of its own."""
    kind, options = PAIRS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        behind, shadow = (
            stack.enter_context(loops.filesystem(directory / name, kind)) for name in ("behind", "shadow")
        )
        mounted = start(directory, source=behind, entry_timeout=0.0, attr_timeout=0.0, **options)
        pair = Pair(stack.enter_context(mounted).path, behind, shadow, kind, bool(options.get("passthrough", True)))
        pair.setup(prepare)
        yield pair


def prepare() -> None:
    Path("file").write_bytes(b"x" * 8 * BLOCK)
    os.chmod("file", 0o666)
    Path("program").write_bytes(Path("/bin/true").read_bytes())
    os.chmod("program", 0o777)
    for directory in ("directory", "files"):
        os.mkdir(directory)
        os.chmod(directory, 0o777)
    for number in range(MANY):
        Path(f"files/{number}").touch()
        os.chmod(f"files/{number}", 0o666)


@contextmanager
def opened(name: str, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(name, flags, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


def with_file(use: Callable[[int], Any], flags: int = os.O_RDWR) -> Any:
    with opened("file", flags) as fd:
        return use(fd)


def stored_to_a_mapping() -> str:
    """Stores to a hole and msync(2): the errno of that, or the signal that the process dies of."""
    with opened("file") as fd:
        os.ftruncate(fd, 64 * BLOCK)
        child = os.fork()
        if child == 0:
            code = 255
            try:
                code = stored(fd)
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        os.ftruncate(fd, 8 * BLOCK)
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else errno.errorcode[code] if code else "stored"


def stored(fd: int) -> int:
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    memory = mmap.mmap(fd, 64 * BLOCK)
    for page in range(8, 64):
        memory[page * BLOCK] = 1
    try:
        memory.flush()
    except OSError as error:
        return error.errno or 255
    return 0


def written_through(flags: int) -> Any:
    """Also what is written only later, and what fails only then."""

    def write(fd: int) -> None:
        memory = mmap.mmap(-1, BLOCK)  # aligned, for O_DIRECT
        for block in range(MANY):
            os.pwritev(fd, [memory], (64 + block) * BLOCK)
        os.fsync(fd)

    try:
        return with_file(write, os.O_RDWR | flags)
    finally:
        os.truncate("file", 8 * BLOCK)


def copied() -> None:
    with opened("file") as fd:
        try:
            for block in range(MANY):
                os.copy_file_range(fd, fd, BLOCK, 0, (64 + block) * BLOCK)
            os.fsync(fd)
        finally:
            os.ftruncate(fd, 8 * BLOCK)


def sent() -> None:
    with opened("file") as fd, opened("file") as to:
        os.lseek(to, 64 * BLOCK, os.SEEK_SET)
        try:
            for _ in range(MANY):
                os.sendfile(to, fd, 0, BLOCK)
            os.fsync(to)
        finally:
            os.ftruncate(fd, 8 * BLOCK)


def allocated(mode: int) -> None:
    with opened("file") as fd:
        try:
            fallocate(fd, mode, 64 * BLOCK, 256 * BLOCK)
        finally:
            os.ftruncate(fd, 8 * BLOCK)


def each(make: Callable[[int], Any], undo: Callable[[int], Any]) -> None:
    """As often as it goes; what went is undone."""
    done = 0
    try:
        for number in range(MANY):
            make(number)
            done += 1
    finally:
        for number in range(done):
            undo(number)


def filled(name: str) -> None:
    try:
        Path(name).write_bytes(bytes(BLOCK))
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


NEED_ROOM: dict[str, Callable[[], Any]] = {
    "write": lambda: written_through(0),
    "append": lambda: written_through(os.O_APPEND),
    "sync-write": lambda: written_through(os.O_SYNC),
    "direct-write": lambda: written_through(os.O_DIRECT),
    "mapping": stored_to_a_mapping,
    "fallocate": lambda: allocated(0),
    "fallocate-keep-size": lambda: allocated(1),
    "copy-file-range": copied,
    "sendfile": sent,
    "create": lambda: each(lambda n: filled(f"directory/{n}"), lambda n: os.unlink(f"directory/{n}")),
    "mkdir": lambda: each(lambda n: os.mkdir(f"directory/{n}"), lambda n: os.rmdir(f"directory/{n}")),
    "symlink": lambda: each(lambda n: os.symlink("x" * 1000, f"directory/{n}"), lambda n: os.unlink(f"directory/{n}")),
    "setxattr": lambda: each(
        lambda n: os.setxattr(f"files/{n}", "user.test", b"%04d" % n * 750),
        lambda n: os.removexattr(f"files/{n}", "user.test"),
    ),
    "link": lambda: each(
        lambda n: os.link("file", f"directory/{'x' * 240}{n}"), lambda n: os.unlink(f"directory/{'x' * 240}{n}")
    ),
    "rename": lambda: each(
        lambda n: os.rename(f"files/{n}", f"directory/{'x' * 240}{n}"),
        lambda n: os.rename(f"directory/{'x' * 240}{n}", f"files/{n}"),
    ),
}
"""What needs room, and leaves nothing of it."""

NEED_NONE: dict[str, Callable[[], Any]] = {
    "overwrite": lambda: with_file(lambda fd: os.pwrite(fd, b"x" * BLOCK, 0)),
    "truncate": lambda: with_file(lambda fd: (os.ftruncate(fd, 1 << 24), os.ftruncate(fd, 8 * BLOCK))),
    "read": lambda: Path("file").read_bytes() == b"x" * 8 * BLOCK,
    "fsync": lambda: with_file(os.fsync),
    "chmod": lambda: os.chmod("file", 0o666),
    "list": lambda: sorted(os.listdir("files")),
}


def use_up() -> None:
    """Every block: what a filesystem has freed or set aside it gives to others some time after."""
    with open("filler", "wb", buffering=0) as file:
        for size in (8 << 20, 1 << 20, 1 << 16, *[BLOCK] * 4):
            loops.sync(Path("."))
            try:
                while True:
                    at = file.seek(0, os.SEEK_END)
                    if size > BLOCK:
                        fallocate(file.fileno(), 0, at, size)
                    else:
                        file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017


def everything(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """All names, with mode, size and content."""
    return {
        str(path.relative_to(directory)): (path.lstat().st_mode, path.lstat().st_size, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file() and path.name != "filler"
    }


def test_a_full_filesystem(pair: Pair) -> None:
    """What needs room is refused as there, has changed nothing, and works when there is room again."""
    assert not {way for way, work in NEED_ROOM.items() if refused(pair.succeed(work))}
    for directory in pair.filesystems:
        as_user(ALICE, use_up, cwd=directory)
    before = everything(pair.mount)
    outcomes = {way: outcome_of(ROOT, work, pair.mount) for way, work in NEED_ROOM.items()}
    expected = {way: outcome_of(ROOT, work, pair.shadow) for way, work in NEED_ROOM.items()}
    if not pair.passthrough:
        # The kernel asks for room when a page is written back; the store itself cannot fail.
        assert (outcomes.pop("mapping"), expected.pop("mapping")) == ("ENOSPC", "SIGBUS")
    assert outcomes == expected
    assert {way for way, outcome in outcomes.items() if refused(outcome)} >= {"write", "fallocate", "direct-write"}
    assert everything(pair.mount) == before == everything(pair.behind) == everything(pair.shadow)
    for work in NEED_NONE.values():
        pair.both(work, ALICE)
    pair.succeed(lambda: os.unlink("filler"))
    for directory in pair.filesystems:
        loops.sync(directory)
    assert not {way for way, work in NEED_ROOM.items() if refused(pair.succeed(work))}


def refused(outcome: Any) -> bool:
    return outcome in errno.errorcode.values() or outcome == "SIGBUS"


def test_room_for_a_part_of_a_mapping_is_not_taken_for_room_for_all(pair: Pair) -> None:
    """The kernel writes a mapping back in large requests and asks nothing but whether one failed."""
    as_user(ALICE, lambda: Path("spare").write_bytes(bytes(4 * BLOCK)), cwd=pair.mount)
    as_user(ALICE, use_up, cwd=pair.behind)
    os.unlink(pair.mount / "spare")
    loops.sync(pair.behind)
    try:
        assert refused(outcome_of(ROOT, stored_to_a_mapping, pair.mount))
    finally:
        os.unlink(pair.mount / "filler")
        loops.sync(pair.behind)


def free(directory: Path) -> int:
    loops.sync(directory)
    found = os.statvfs(directory)
    return found.f_bfree * found.f_frsize


def test_room_comes_back(pair: Pair) -> None:
    """Of a removed file at once, of an open one when it is closed, also of one removed behind the mount."""
    large = 8 * loops.MIB
    for remove in (pair.mount, pair.behind):
        before = free(pair.behind)
        with opened(str(pair.mount / "large"), os.O_CREAT | os.O_RDWR) as fd:
            os.write(fd, bytes(large))
            os.fsync(fd)
            os.unlink(remove / "large")
            assert free(pair.behind) < before - large // 2
            assert os.pread(fd, 5, large - 5) == bytes(5)
        while free(pair.behind) < before - large // 2:  # a close is told to the server some time after
            assert not (pair.mount / "large").exists()


# --- read-only -------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[], Any]] = {
    "create": lambda: Path("new").write_text("new"),
    "open": lambda: with_file(lambda fd: None),
    "truncate": lambda: os.truncate("file", 0),
    "mkdir": lambda: os.mkdir("new"),
    "mknod": lambda: os.mkfifo("new"),
    "symlink": lambda: os.symlink("nowhere", "new"),
    "link": lambda: os.link("file", "new"),
    "unlink": lambda: os.unlink("file"),
    "rmdir": lambda: os.rmdir("directory"),
    "rename": lambda: os.rename("file", "new"),
    "chmod": lambda: os.chmod("file", 0o600),
    "chown": lambda: os.chown("file", 5, 5),
    "utime": lambda: os.utime("file"),
    "setxattr": lambda: os.setxattr("file", "user.test", b"value"),
    "tmpfile": lambda: os.close(os.open(".", os.O_TMPFILE | os.O_RDWR)),
}


def remount(directory: Path, how: str) -> str:
    done = subprocess.run(["mount", "-o", f"remount,{how}", str(directory)], capture_output=True, text=True)
    return done.stderr.rpartition(":")[2].strip()


def test_a_filesystem_that_becomes_read_only(pair: Pair) -> None:
    """Not while somebody writes; who reads goes on, and whoever changes something gets EROFS."""
    for directory in pair.filesystems:
        where = pair.mount if directory == pair.behind else pair.shadow
        with opened(str(where / "file")):
            assert "busy" in remount(directory, "ro")
    with opened(str(pair.mount / "file"), os.O_RDONLY) as fd, opened(str(pair.mount), os.O_RDONLY) as directory:
        while "busy" in remount(pair.behind, "ro"):  # a close is told to the server some time after
            pass
        assert remount(pair.shadow, "ro") == ""
        outcomes = {way: pair.both(work) for way, work in CHANGES.items()}
        assert set(outcomes.values()) == {"EROFS"}
        assert len(os.pread(fd, 8 * BLOCK, 0)) == 8 * BLOCK
        os.fsync(fd)
        os.fsync(directory)
        assert "file" in os.listdir(directory)
        for filesystem in pair.filesystems:
            assert remount(filesystem, "rw") == ""
    assert not {way for way, work in NEED_ROOM.items() if refused(pair.succeed(work))}


# --- names and programs ----------------------------------------------------------------------------------------------


def written_while_it_runs() -> str:
    """What comes of writing to a program that runs."""
    process = subprocess.Popen(["./sleeping", "1000"])
    try:
        os.close(os.open("sleeping", os.O_WRONLY))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    else:
        return "opened"
    finally:
        process.kill()
        process.wait()


def run_while_it_is_written() -> str:
    with opened("sleeping", os.O_WRONLY):
        try:
            subprocess.run(["./sleeping", "0"], check=True)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "ran"


def copy_a_program() -> None:
    Path("sleeping").write_bytes(Path("/bin/sleep").read_bytes())
    os.chmod("sleeping", 0o777)


LONG: dict[str, Callable[[], Any]] = {
    "name": lambda: os.mkdir("x" * 256),
    "target-of-symlink": lambda: os.symlink("x" * 4096, "new"),
    "target-of-rename": lambda: os.rename("file", "x" * 256),
    "path": lambda: os.stat("./" * 2048 + "file"),
    "xattr": lambda: os.setxattr("file", "user." + "x" * 251, b""),
    "value": lambda: os.setxattr("file", "user.test", b"x" * 65537),
}


def test_programs_and_long_names(pair: Pair) -> None:
    pair.setup(copy_a_program)
    assert pair.succeed_with(written_while_it_runs) == "ETXTBSY"
    assert pair.succeed_with(run_while_it_is_written) == "ETXTBSY"
    for work in LONG.values():
        assert pair.both(work) in {"ENAMETOOLONG", "ERANGE", "E2BIG"}


# --- a device that fails ---------------------------------------------------------------------------------------------

BROKEN: dict[str, Callable[[], Any]] = {
    **CHANGES,
    "stat": lambda: os.stat("file").st_size,
    "stat-of-none": lambda: os.stat("none"),
    "list": lambda: sorted(os.listdir("files")),
    "readlink": lambda: os.readlink("symlink"),
    "getxattr": lambda: os.getxattr("file", "user.none"),
    "read": lambda: Path("file").read_bytes(),
}
OPEN: dict[str, Callable[[int], Any]] = {
    "write": lambda fd: os.pwrite(fd, b"x" * BLOCK, 0),
    "append": lambda fd: os.pwrite(fd, b"x" * BLOCK, 8 * BLOCK),
    "fsync": os.fsync,
    "fdatasync": os.fdatasync,
    "fallocate": lambda fd: fallocate(fd, 0, 64 * BLOCK, BLOCK),
    "ftruncate": lambda fd: os.ftruncate(fd, 0),
    "read-of-cached": lambda fd: len(os.pread(fd, BLOCK, 0)),
    "read-of-uncached": lambda fd: len(os.pread(fd, BLOCK, 7 * BLOCK)),
    "fchmod": lambda fd: os.fchmod(fd, 0o640),
    "fstat": lambda fd: os.fstat(fd).st_nlink,
    "fstatvfs": lambda fd: os.fstatvfs(fd).f_bsize,
    "seek": lambda fd: os.lseek(fd, 0, os.SEEK_DATA),
    "copy-file-range": lambda fd: os.copy_file_range(fd, fd, BLOCK, 0, 64 * BLOCK),
    "setxattr": lambda fd: os.setxattr(fd, "user.test", b"value"),
    "close": os.close,
}


def test_a_filesystem_that_fails(pair: Pair) -> None:
    """Whoever has something open, and whoever comes later, is told what is told there; unmounting goes on to work."""
    if pair.kind == "btrfs":
        pytest.skip("btrfs cannot be told to fail")
    pair.setup(lambda: (os.symlink("nowhere", "symlink"), Path("file").write_bytes(b"x" * 8 * BLOCK)))
    places = pair.mount, pair.shadow
    files = [os.open(place / "file", os.O_RDWR) for place in places]
    directories = [os.open(place, os.O_RDONLY) for place in places]
    for filesystem, fd in zip(pair.filesystems, files, strict=True):
        os.pwrite(fd, b"y" * BLOCK, BLOCK)
        loops.shut_down(filesystem)
    outcomes = {
        way: tuple(outcome_of(ROOT, lambda: work(fd), Path("/")) for fd in files)  # noqa: B023
        for way, work in OPEN.items()
    }
    outcomes["fsync of a directory"] = tuple(outcome_of(ROOT, lambda: os.fsync(fd), Path("/")) for fd in directories)  # noqa: B023
    for fd in directories:
        os.close(fd)
    for way, work in BROKEN.items():
        outcomes[way] = outcome_of(ROOT, work, pair.mount), outcome_of(ROOT, work, pair.shadow)
    if pair.passthrough:  # the server has no descriptor of the file, and gets none
        assert outcomes.pop("seek")[0] == "EIO"
    assert {way: outcome for way, outcome in outcomes.items() if outcome[0] != outcome[1]} == {}
    assert {outcomes[way][0] for way in ("write", "fsync", "create", "open")} == {"EIO"}
