"""What the kernel takes and cannot write to the disk later is told by fsync, once to each who had the file open."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import loops
import needs
from harness import Mounted, start
from twins import fallocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.kinds]

BLOCK = 4096
MARKED = b"exclfs: a block that cannot be written again ".ljust(BLOCK, b".")
BLOCKS = 64
SIZE = 64 * loops.MIB


@contextmanager
def failing(directory: Path) -> Iterator[Path]:
    """A filesystem with files to whose blocks nothing can be written: its image has lost them, on a full disk."""
    disk = directory / "disk"
    disk.mkdir(parents=True)
    loops.run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk)
    try:
        image = disk / "image"
        loops.make_image(image, "ext4", "-O", "^has_journal")
        with loops.loop_mount(image, directory / "filesystem") as filesystem:
            for name in ("file", "second"):
                (filesystem / name).write_bytes(MARKED * BLOCKS)
            loops.sync(filesystem)
            lose(image)
            used = (found := os.statvfs(disk)).f_blocks - found.f_bfree
            loops.run("mount", "-o", f"remount,size={used * found.f_frsize}", disk)
            yield filesystem
            loops.run("mount", "-o", f"remount,size={SIZE}", disk)
    finally:
        # A mount namespace that another test has made meanwhile keeps the loop device for a while.
        loops.run("umount", "--lazy", disk)


def lose(image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    try:
        lost = [at for at in range(0, os.fstat(fd).st_size, BLOCK) if os.pread(fd, BLOCK, at) == MARKED]
        for at in lost:
            fallocate(fd, 0x3, at, BLOCK)  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    finally:
        os.close(fd)
    assert len(lost) == 2 * BLOCKS


@pytest.fixture(scope="module", params=[True, False], ids=["passthrough", "nopassthrough"])
def disks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mounted, Path]]:
    """A mount of such a filesystem, and another such filesystem."""
    directory = tmp_path_factory.mktemp("disks")
    with ExitStack() as stack:
        behind, shadow = (stack.enter_context(failing(directory / name)) for name in ("behind", "shadow"))
        yield stack.enter_context(start(directory, source=behind, passthrough=request.param)), shadow


def outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


class Told:
    """Files of one filesystem, and what each of them is told in turn."""

    def __init__(self, place: Path, behind: Path, stack: ExitStack) -> None:
        self.place, self.behind, self._stack = place, behind, stack
        self.outcomes: list[str] = []

    def open(self, flags: int = os.O_RDWR, name: str = "file") -> int:
        fd = os.open(self.place / name, flags)
        self._stack.callback(os.close, fd)
        return fd

    def write(self, fd: int, block: int = 0) -> None:
        self.say(lambda: os.pwrite(fd, os.urandom(BLOCK), block * BLOCK))

    def fsync(self, *fds: int) -> None:
        for fd in fds:
            self.say(lambda: os.fsync(fd))  # noqa: B023

    def say(self, work: Callable[[], object]) -> None:
        self.outcomes.append(outcome(work))

    def write_back(self) -> None:
        """As the kernel does by itself in time; nobody is told of what comes of it."""
        outcome(lambda: loops.sync(self.behind))


def each_once(told: Told) -> None:
    writer, reader = told.open(), told.open(os.O_RDONLY)
    told.write(writer)
    told.fsync(writer, reader, writer, reader)
    told.write(writer)
    told.fsync(reader, writer, reader, writer)


def also_who_opens_it_before_anybody_was_told(told: Told) -> None:
    first = told.open()
    told.write(first)
    told.write_back()
    later = told.open(os.O_RDONLY)
    told.fsync(later, first, later, first)
    told.fsync(told.open())


def also_after_the_writer_has_closed_it(told: Told) -> None:
    writer = os.open(told.place / "file", os.O_WRONLY)
    told.write(writer)
    told.say(lambda: os.close(writer))
    told.write_back()
    fd = told.open()
    told.fsync(fd, fd)


def one_file_and_not_another(told: Told) -> None:
    one, other = told.open(), told.open(name="second")
    told.write(one)
    told.fsync(one, other)
    told.write(other, 1)
    told.fsync(one, other)
    told.say(lambda: os.fdatasync(other))


def at_once(told: Told) -> None:
    for flags in (os.O_SYNC, os.O_DSYNC):
        fd = told.open(os.O_RDWR | flags)
        told.write(fd)
        told.fsync(fd)


def of_a_mapping(told: Told) -> None:
    fd = told.open()
    memory = mmap.mmap(fd, BLOCKS * BLOCK)
    memory[5 * BLOCK] = 1
    told.say(memory.flush)
    told.fsync(fd)
    memory[5 * BLOCK] = 2
    told.fsync(fd)
    memory.close()


@pytest.mark.parametrize(
    "scene",
    [
        each_once,
        also_who_opens_it_before_anybody_was_told,
        also_after_the_writer_has_closed_it,
        one_file_and_not_another,
        at_once,
        of_a_mapping,
    ],
    ids=lambda scene: scene.__name__,
)
def test_a_failure_to_write_back_is_told(disks: tuple[Mounted, Path], scene: Callable[[Told], None]) -> None:
    mounted, shadow = disks
    outcomes = []
    for place, behind in ((mounted.path, mounted.backing), (shadow, shadow)):
        with ExitStack() as stack:
            told = Told(place, behind, stack)
            scene(told)
            outcomes.append(told.outcomes.copy())
            told.write_back()
            outcome(lambda: os.fsync(told.open()))  # noqa: B023
            outcome(lambda: os.fsync(told.open(name="second")))  # noqa: B023
    assert outcomes[0] == outcomes[1]
    assert {"ENOSPC", "EIO"} & set(outcomes[0])


def test_what_msync_has_told_of_others_may_not_hear_of(
    disks: tuple[Mounted, Path], request: pytest.FixtureRequest
) -> None:
    """With passthrough, what is mapped is the one backing file of all who have the file open."""
    mounted, shadow = disks
    outcomes = []
    for place, behind in ((mounted.path, mounted.backing), (shadow, shadow)):
        with ExitStack() as stack:
            told = Told(place, behind, stack)
            mapper, other = told.open(), told.open()
            memory = mmap.mmap(mapper, BLOCKS * BLOCK)
            memory[6 * BLOCK] = 1
            told.say(memory.flush)
            told.fsync(other)
            memory.close()
            outcomes.append(told.outcomes)
    through, beside = outcomes
    assert beside == ["ENOSPC", "ENOSPC"]
    passthrough = request.node.callspec.params["disks"]
    assert through == (["ENOSPC", "done"] if passthrough else beside)


def test_a_direct_write_is_told_at_once_or_by_fsync(disks: tuple[Mounted, Path]) -> None:
    """Without passthrough the server writes what is O_DIRECT for the kernel through its page cache."""
    with opened(disks[0].path / "file", os.O_RDWR | os.O_DIRECT) as fd:
        memory = mmap.mmap(-1, BLOCK)
        at_once = outcome(lambda: os.pwritev(fd, [memory], 8 * BLOCK))
        by_fsync = outcome(lambda: os.fsync(fd))
        assert [at_once, by_fsync] in (["ENOSPC", "done"], ["done", "ENOSPC"])
        memory.close()


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A filesystem on a device of the device mapper, which can be told to fail; and the name of the device."""
    needs.programs("dmsetup", "losetup")
    if subprocess.run(["dmsetup", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this kernel has no device mapper")
    image, filesystem, name = tmp_path / "image", tmp_path / "filesystem", f"exclfs-{os.getpid()}"
    loops.make_image(image, "ext4")
    filesystem.mkdir()
    with ExitStack() as stack:
        device = loops.run("losetup", "--find", "--show", image).strip()
        stack.callback(loops.run, "losetup", "--detach", device)
        sectors = image.stat().st_size // 512
        loops.run("dmsetup", "create", name, "--table", f"0 {sectors} linear {device} 0")
        stack.callback(loops.run, "dmsetup", "remove", "--retry", name)
        loops.run("mount", f"/dev/mapper/{name}", filesystem)
        stack.callback(loops.run, "umount", filesystem)
        yield filesystem, name


@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "nopassthrough"])
def test_a_device_that_answers_every_request_with_an_error(
    mapped: tuple[Path, str], tmp_path: Path, passthrough: bool
) -> None:
    """dm-error below a mounted filesystem."""
    filesystem, name = mapped
    with start(tmp_path, source=filesystem, passthrough=passthrough) as mounted, ExitStack() as stack:
        told = Told(mounted.path, filesystem, stack)
        writer, reader = told.open(os.O_CREAT | os.O_RDWR), told.open(os.O_RDONLY)
        told.write(writer)
        told.fsync(writer, reader)
        assert told.outcomes == ["done"] * 3
        sectors = loops.run("blockdev", "--getsz", f"/dev/mapper/{name}").strip()
        loops.run("dmsetup", "suspend", "--noflush", "--nolockfs", name)
        loops.run("dmsetup", "reload", name, "--table", f"0 {sectors} error")
        loops.run("dmsetup", "resume", name)
        told.write(writer)
        told.fsync(writer, reader)
        assert told.outcomes[-2:] == ["EIO", "EIO"]
