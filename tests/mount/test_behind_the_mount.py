"""Changes behind the mount: seen at once where nothing may be believed, else when the time is up; never other data."""

from __future__ import annotations

import errno
import mmap
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import exclfs
from harness import Mounted, start
from program import document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root]


@pytest.fixture(scope="module", params=[True, False], ids=["passthrough", "nopassthrough"])
def unbelieving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount whose kernel believes nothing."""
    directory = tmp_path_factory.mktemp("unbelieving")
    with start(directory, entry_timeout=0.0, attr_timeout=0.0, passthrough=request.param) as mounted:
        yield mounted


@pytest.fixture
def narrow(unbelieving: Mounted, request: pytest.FixtureRequest) -> Iterator[Mounted]:
    with unbelieving.narrowed(request.node.name) as narrowed:
        yield narrowed


def test_names_are_seen_at_once(narrow: Mounted) -> None:
    for number in range(20):
        name = f"file{number}"
        assert not (narrow.path / name).exists()
        (narrow.backing / name).write_text(name)
        assert (narrow.path / name).read_text() == name
        (narrow.backing / name).rename(narrow.backing / "moved")
        assert not (narrow.path / name).exists()
        assert (narrow.path / "moved").read_text() == name
        assert os.listdir(narrow.path) == ["moved"]
        (narrow.backing / "moved").unlink()
        assert not (narrow.path / "moved").exists()


def test_attributes_are_seen_at_once(narrow: Mounted) -> None:
    seen, behind = narrow.path / "file", narrow.backing / "file"
    behind.write_text("text")
    assert seen.stat().st_size == 4
    for change in (
        lambda: behind.write_text("longer text"),
        lambda: behind.chmod(0o751),
        lambda: os.chown(behind, 12, 34),
        lambda: os.utime(behind, ns=(1, 2)),
        lambda: os.truncate(behind, 1),
        lambda: os.link(behind, narrow.backing / "link"),
        lambda: os.setxattr(behind, "user.test", b"value"),
    ):
        change()
        now, expected = seen.stat(), behind.stat()
        assert now.st_mtime_ns == expected.st_mtime_ns
        assert now.st_ctime_ns == expected.st_ctime_ns
        assert (now.st_mode, now.st_uid, now.st_gid, now.st_size, now.st_nlink) == (
            expected.st_mode,
            expected.st_uid,
            expected.st_gid,
            expected.st_size,
            expected.st_nlink,
        )
    assert os.getxattr(seen, "user.test") == b"value"


def test_data_is_seen_at_once(narrow: Mounted) -> None:
    """The page cache is dropped when size or time of modification have changed."""
    seen, behind = narrow.path / "file", narrow.backing / "file"
    behind.write_bytes(b"a" * 10_000)
    with open(seen, "rb", buffering=0) as file:
        for byte in b"bcdefgh":
            assert len(set(file.read())) == 1
            behind.write_bytes(bytes([byte]) * 10_000)
            seen.stat()
            file.seek(0)
            assert set(file.read()) == {byte}
            file.seek(0)
    behind.write_bytes(b"longer" * 5000)
    assert seen.read_bytes() == b"longer" * 5000
    os.truncate(behind, 3)
    assert seen.read_bytes() == b"lon"


def test_a_file_that_was_replaced_is_the_new_one_and_an_open_one_stays_the_old(narrow: Mounted) -> None:
    seen, behind = narrow.path / "file", narrow.backing / "file"
    behind.write_text("old")
    with open(seen) as file:
        (narrow.backing / "new").write_text("new data")
        (narrow.backing / "new").rename(behind)
        assert seen.read_text() == "new data"
        assert file.read() == "old"
    assert seen.stat().st_ino == behind.stat().st_ino


def or_stale(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except OSError as error:
        return "stale" if error.errno == errno.ESTALE else error


def test_an_inode_number_that_was_given_again_is_another_file(narrow: Mounted) -> None:
    """ext4 gives the number of a removed inode to the next new one: a path descriptor must not lead there."""
    seen, behind = narrow.path / "file", narrow.backing / "file"
    reused = 0
    for number in range(10):
        behind.write_text(f"old {number}")
        behind.chmod(0o600)
        old = os.open(seen, os.O_PATH)
        try:
            before = behind.stat().st_ino
            behind.unlink()
            behind.write_text(f"new and longer {number}")
            behind.chmod(0o644)
            reused += behind.stat().st_ino == before
            assert seen.read_text() == f"new and longer {number}"
            assert or_stale(lambda: os.fstat(old).st_mode & 0o777) in {"stale", 0o600}  # noqa: B023
            assert or_stale(lambda: Path(f"/proc/self/fd/{old}").read_text()) in {"stale", f"old {number}"}  # noqa: B023
        finally:
            os.close(old)
            behind.unlink()
    if not reused:
        pytest.skip("the backing filesystem gave no number again")


def test_a_directory_that_was_moved_takes_its_open_users_along(narrow: Mounted) -> None:
    (narrow.backing / "one/two").mkdir(parents=True)
    (narrow.backing / "one/two/file").write_text("text")
    fd = os.open(narrow.path / "one/two", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (narrow.backing / "one").rename(narrow.backing / "moved")
        (narrow.backing / "one/two").mkdir(parents=True)
        (narrow.backing / "one/two/other").write_text("other")
        assert or_stale(lambda: os.listdir(fd)) in (["file"], "stale")
        assert os.listdir(narrow.path / "one/two") == ["other"]
        assert (narrow.path / "moved/two/file").read_text() == "text"
        new = or_stale(lambda: os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)))
        assert new == "stale" or (narrow.backing / "moved/two/new").exists()
        assert not (narrow.backing / "one/two/new").exists()
    finally:
        os.close(fd)


def test_a_kind_that_changes_behind_the_mount(narrow: Mounted) -> None:
    seen, behind = narrow.path / "it", narrow.backing / "it"
    for make, look, remove in (
        (lambda: behind.write_text("text"), lambda: seen.read_text() == "text", behind.unlink),
        (behind.mkdir, seen.is_dir, behind.rmdir),
        (lambda: behind.symlink_to("nowhere"), lambda: os.readlink(seen) == "nowhere", behind.unlink),
        (lambda: os.mkfifo(behind), seen.is_fifo, behind.unlink),
        (lambda: behind.write_text("again"), lambda: seen.read_text() == "again", behind.unlink),
    ):
        make()
        assert look()
        remove()
        assert not os.path.lexists(seen)


def test_what_the_kernel_believes_is_believed_no_longer_than_the_timeout(mount: Callable[..., Mounted]) -> None:
    mounted = mount(entry_timeout=0.05, attr_timeout=0.05)
    seen, behind = mounted.path / "file", mounted.backing / "file"
    behind.write_text("old")
    assert seen.stat().st_size == 3
    behind.unlink()
    behind.write_text("newer")
    for _ in range(200):
        if seen.stat().st_size == 5:
            break
        time.sleep(0.05)
    assert seen.read_text() == "newer"


def test_a_name_is_created_again_after_it_went_behind_the_mount(narrow: Mounted) -> None:
    for _ in range(10):
        (narrow.path / "file").write_text("made")
        (narrow.backing / "file").unlink()
        (narrow.path / "directory").mkdir()
        (narrow.backing / "directory").rmdir()
    (narrow.path / "directory").mkdir()
    assert os.listdir(narrow.backing) == ["directory"]


def test_a_name_that_came_to_be_behind_the_mount_is_not_overwritten(narrow: Mounted) -> None:
    assert not (narrow.path / "file").exists()
    (narrow.backing / "file").write_text("of somebody else")
    with pytest.raises(FileExistsError):
        os.open(narrow.path / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with open(narrow.path / "file", "a") as file:
        file.write("!")
    assert (narrow.backing / "file").read_text() == "of somebody else!"
    with pytest.raises(FileExistsError):
        (narrow.path / "file").mkdir()


def test_that_a_name_is_not_there_is_believed_where_that_was_asked_for(mount: Callable[..., Mounted]) -> None:
    mounted = mount(negative_timeout=86_400.0)

    def lookups() -> int:
        requests = document("status", mounted.root)["requests"]
        assert isinstance(requests, dict)
        return int(requests["lookup"])

    missing = [mounted.root / f"missing{number}" for number in range(50)]
    asked = []
    while not asked or (asked[-1] > 10 and len(asked) < 6):  # somebody may have the kernel drop its caches meanwhile
        before = lookups()
        assert not any(path.exists() for path in missing)
        asked.append(lookups() - before)
    assert asked[0] >= 50
    assert asked[-1] <= 10
    for path, create in zip(missing, (Path.touch, Path.mkdir, lambda path: path.symlink_to("x")), strict=False):
        create(path)  # through the mount: it is there at once
        assert os.path.lexists(path)
        os.rename(path, missing[-1])
        assert not os.path.lexists(path)
        assert os.path.lexists(missing[-1])
        (missing[-1].rmdir if missing[-1].is_dir() else missing[-1].unlink)()
    assert not missing[9].exists()
    (mounted.backing / missing[9].name).touch()  # out-of-band: it is believed for a day
    assert not missing[9].exists()


@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "nopassthrough"])
def test_what_is_cached_of_an_open_file_is_stale_no_longer_than_the_timeout(
    mount: Callable[..., Mounted], passthrough: bool
) -> None:
    """Whether it is read or mapped, and whether its size changes or only its time of modification."""
    mounted = mount(entry_timeout=0.05, attr_timeout=0.05, passthrough=passthrough)
    seen, behind = mounted.path / "file", mounted.backing / "file"
    behind.write_bytes(b"a" * 10_000)
    with open(seen, "rb", buffering=0) as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert (file.read(), memory[9_999:]) == (b"a" * 10_000, b"a")
        with open(behind, "r+b") as other:  # of the same size
            other.write(b"b" * 10_000)
        while os.pread(file.fileno(), 10_000, 0) != b"b" * 10_000:
            pass
        while (memory[0:1], memory[9_999:]) != (b"b", b"b"):
            seen.stat()
        with open(behind, "ab") as other:
            other.write(b"more")
        while os.pread(file.fileno(), 100, 10_000) != b"more":
            pass
        os.truncate(behind, 5)
        while os.pread(file.fileno(), 100, 0) != b"b" * 5:
            pass


SWEEPING = """
import sys
from exclfs import mount
from exclfs.services import reaper

reaper.SWEEP_EVERY = 0.05
sys.exit(mount.main())
"""


def test_a_held_inode_that_is_removed_behind_the_mount_is_told(tmp_path: Path) -> None:
    """As an event, and its hold is no more; whatever has its name then is not held."""
    script = tmp_path / "sweeping.py"
    script.write_text(SWEEPING)
    with start(tmp_path, program=[str(script)]) as mounted:
        mounted.expect("orphaned")
        for name in ("file", "directory"):
            make = (mounted.backing / name).touch if name == "file" else (mounted.backing / name).mkdir
            make()
            with exclfs.connect(mounted.path) as client:
                (hold,) = client.hold(mounted.path / name, until_unmount=True, holder="tester")
                assert [each.id for each in client.holds()] == [hold.id]
                (mounted.backing / name).unlink() if name == "file" else (mounted.backing / name).rmdir()
                make()
                while client.holds():
                    pass
                told = [line for line in mounted.log_lines("orphaned") if name in line]
                while not told:  # a log is written some time after
                    told = [line for line in mounted.log_lines("orphaned") if name in line]
                assert "tester" in told[0]
            (mounted.path / name).unlink() if name == "file" else (mounted.path / name).rmdir()
