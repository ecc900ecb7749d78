"""A tree that spans several filesystems, with bind mounts and loops inside: the same is seen as on the backing tree."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

import exclfs
from harness import Mounted, start
from nesting import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, Nesting, nesting
from twins import CAROL, as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mount, pytest.mark.root]

PATIENCE = 30.0


@pytest.fixture
def nest() -> Iterator[Nesting]:
    with nesting() as made:
        yield made


def errno_of(call: Callable[[], object]) -> str | None:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def find(top: Path) -> tuple[list[str], str]:
    """What find(1) says of the tree, and what it complains about: an ancestor below itself is a loop to it."""
    command = ["find", ".", "-printf", r"%P %y %n %m\n"]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return sorted(done.stdout.splitlines()), done.stderr


def woven(tmp_path: Path, nest: Nesting) -> Path:
    """A tree with a second filesystem, a bind mount of a directory, one of an ancestor and one of a file."""
    tree = tmp_path / "tree"
    (tree / "there" / "inner").mkdir(parents=True)
    (tree / "there" / "file").write_text("content")
    (tree / "place" / "below").mkdir(parents=True)
    nest.bind(tree / "there", tree / "seen")
    second = nest.tmpfs(tree / "second")
    (second / "d" / "e").mkdir(parents=True)
    (second / "d" / "file").write_text("second")
    nest.bind(second / "d", tree / "place" / "d")
    nest.bind(second / "d" / "file", tree / "place" / "file")
    nest.bind(tree, tree / "place" / "again")
    return tree


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    directory = tmp_path_factory.mktemp("several")
    with nesting() as nest, start(directory, source=woven(directory, nest)) as mounted:
        mounted.expect("refused")
        yield mounted
        nest.detach()


@pytest.fixture
def one(shared: Mounted) -> Iterator[Mounted]:
    """Each test leaves the tree as it was."""
    before = find(shared.backing)
    yield shared
    assert find(shared.backing) == before


def test_a_walk_sees_what_it_sees_on_the_backing_tree(one: Mounted) -> None:
    names, complaints = find(one.path)
    assert (names, complaints) == find(one.backing)
    assert len(names) > 15
    seen: dict[tuple[int, int], tuple[int, int]] = {}
    for directory, _, files in os.walk(one.path):
        behind = one.backing / os.path.relpath(directory, one.path)
        for name in (".", *files):
            status, truth = os.lstat(os.path.join(directory, name)), os.lstat(behind / name)
            was = seen.setdefault((truth.st_dev, truth.st_ino), (status.st_dev, status.st_ino))
            assert was == (status.st_dev, status.st_ino), "one inode has one number"
    assert len(set(seen.values())) == len(seen), "and no two have the same"


def test_a_listing_has_the_numbers_that_the_backing_tree_has_in_its(one: Mounted) -> None:
    for name in (".", "place", "there", "place/again"):
        behind = {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(one.backing / name)}
        assert {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(one.path / name)} == behind
    for entry in os.scandir(one.path / "second" / "d"):
        assert entry.inode() == entry.stat(follow_symlinks=False).st_ino


def test_a_working_directory_stays_where_it_was_entered(one: Mounted) -> None:
    before = os.getcwd()
    try:
        for name, other in (("seen", "there"), ("there", "seen"), ("place/again/there", "seen")):
            os.chdir(one.path / name / "inner")
            assert os.listdir(one.path / other) == os.listdir(one.path / name)
            os.stat(one.path / other / "inner")
            assert os.getcwd() == str(one.path / name / "inner")
            os.chdir("..")
            assert os.getcwd() == str(one.path / name)
    finally:
        os.chdir(before)


def test_what_crosses_a_mount_or_a_mountpoint_fails_as_below(one: Mounted) -> None:
    def outcomes(top: Path) -> list[str | None]:
        os.stat(top / "seen" / "file"), os.stat(top / "there" / "file")
        return [
            errno_of(lambda: os.rename(top / "there/file", top / "seen/moved")),
            errno_of(lambda: os.rename(top / "there/file", top / "second/moved")),
            errno_of(lambda: os.link(top / "second/d/file", top / "there/linked")),
            errno_of(lambda: os.rename(top / "second/d/e", top / "place/d/moved")),
            errno_of(lambda: os.rename(top / "second", top / "renamed")),
            errno_of(lambda: os.rename(top / "there", top / "second")),
            errno_of(lambda: os.rmdir(top / "second")),
            errno_of(lambda: os.rmdir(top / "place/again")),
            errno_of(lambda: os.unlink(top / "place/file")),
            errno_of(lambda: os.rename(top / "place/file", top / "place/renamed")),
            errno_of(lambda: os.rmdir(top / "place/below")),
        ]

    expected = [
        "EXDEV", "EXDEV", "EXDEV", "EXDEV", "EBUSY", "EBUSY", "EBUSY", "EBUSY", "EBUSY", "EBUSY", None
    ]  # fmt: skip
    assert outcomes(one.path) == expected
    (one.backing / "place/below").mkdir()
    assert outcomes(one.backing) == expected
    (one.backing / "place/below").mkdir()


def test_within_one_mount_a_file_of_two_can_be_linked_by_either(one: Mounted) -> None:
    for _ in range(2):
        for name in ("there", "seen"):
            os.stat(one.path / ("seen" if name == "there" else "there") / "file")
            os.link(one.path / name / "file", one.path / name / "linked")
            assert (one.path / "there" / "linked").read_text() == "content"
            os.unlink(one.path / name / "linked")
    # FUSE does not tell by which name the file was found: across the two it is EXDEV on the backing tree.
    os.link(one.path / "there" / "file", one.path / "seen" / "linked")
    os.unlink(one.path / "there" / "linked")


def test_statfs_is_of_the_filesystem_that_is_there(one: Mounted) -> None:
    for name in ("second/d", "place/d", "there", "seen"):
        assert os.statvfs(one.path / name).f_blocks == os.statvfs(one.backing / name).f_blocks
    assert os.statvfs(one.path / "second").f_files != os.statvfs(one.path).f_files


def test_a_hold_by_one_way_holds_by_every_way(one: Mounted) -> None:
    with exclfs.hold(one.path / "seen" / "inner", holder="us") as hold:
        for name in ("there/inner", "seen/inner", "place/again/there/inner"):
            assert errno_of(lambda name=name: os.rmdir(one.path / name)) == "EBUSY"
            assert [held.id for held in exclfs.holds(one.path / name)] == [hold.id]
            assert os.getxattr(one.path / name, "user.exclfs.why").startswith(f'"{one.path / name}" is held'.encode())
        with pytest.raises(exclfs.Held):
            exclfs.hold(one.path / "there" / "inner", holder="them").__enter__()
    os.rmdir(one.path / "there" / "inner")
    assert not (one.path / "seen" / "inner").exists()
    assert (one.path / "seen").stat().st_nlink == (one.backing / "seen").stat().st_nlink
    os.mkdir(one.path / "seen" / "inner")
    assert (one.path / "there" / "inner").exists()


def test_below_a_directory_is_whatever_can_be_reached_there(one: Mounted) -> None:
    with exclfs.hold(one.path / "second", flags=exclfs.Flags.NO_REMOVE_BELOW):
        assert errno_of(lambda: os.rmdir(one.path / "place" / "d" / "e")) == "EBUSY"
        assert errno_of(lambda: os.unlink(one.path / "second" / "d" / "file")) == "EBUSY"
        os.rmdir(one.path / "there" / "inner")
    os.rmdir(one.path / "place" / "d" / "e")
    os.mkdir(one.path / "there" / "inner")
    os.mkdir(one.path / "second" / "d" / "e")


def test_a_pinned_path_is_the_one_by_which_it_was_held(one: Mounted) -> None:
    (one.backing / "there" / "inner" / "file").touch()
    with exclfs.hold(one.path / "seen" / "inner" / "file", flags=exclfs.Flags.PIN_PATH) as hold:
        assert hold.path == str(one.path / "seen" / "inner" / "file")
        for name in ("seen/inner", "there/inner"):
            assert errno_of(lambda name=name: os.rename(one.path / name, one.path / name / "../n")) == "EBUSY"
        assert errno_of(lambda: os.rename(one.path / "there", one.path / "renamed")) == "EBUSY", "the same directory"
        os.rename(one.path / "place" / "below", one.path / "place" / "other")
        os.rename(one.path / "place" / "other", one.path / "place" / "below")
    (one.path / "there" / "inner" / "file").unlink()


def test_a_subtree_is_claimed_by_every_way(one: Mounted) -> None:
    with exclfs.hold(one.path / "there", holder="us", flags=exclfs.Flags.EXCL_SUBTREE):
        with pytest.raises(exclfs.Held):
            exclfs.hold(one.path / "seen" / "inner", holder="them").__enter__()
        with pytest.raises(exclfs.Held):
            exclfs.hold(one.path / "place", holder="them", flags=exclfs.Flags.EXCL_SUBTREE).__enter__()
        with exclfs.hold(one.path / "second" / "d", holder="them"):
            pass


def test_what_a_mount_forbids_is_forbidden_through_it_alone(tmp_path: Path, nest: Nesting) -> None:
    tree = tmp_path / "tree"
    (tree / "there").mkdir(parents=True)
    for directory in (tmp_path, tmp_path.parent, tree):
        directory.chmod(0o755)
    shutil.copy("/usr/bin/id", tree / "there" / "id")
    (tree / "there" / "id").chmod(0o4755)
    (tree / "there" / "file").write_text("content")
    nest.bind(tree / "there", tree / "read only", MS_RDONLY)
    nest.bind(tree / "there", tree / "not for programs", MS_NOEXEC)
    nest.bind(tree / "there", tree / "from a stranger", MS_NOSUID | MS_NODEV)
    with start(tmp_path, source=tree) as mounted:

        def outcomes(top: Path) -> list[str | None]:
            limited = top / "read only" / "file"
            with open(
                top / "there" / "file", "r+"
            ) as writer:  # the one that is open by the other mount changes nothing
                found = [
                    errno_of(lambda: open(limited, "r+").close()),
                    errno_of(lambda: os.truncate(limited, 1)),
                    errno_of(lambda: os.chmod(limited, 0o600)),
                    errno_of(lambda: os.utime(limited)),
                    errno_of(lambda: os.setxattr(limited, "user.name", b"value")),
                    errno_of(lambda: os.unlink(limited)),
                    errno_of(lambda: (top / "read only" / "new").touch()),
                    errno_of(lambda: os.chmod(top / "there" / "file", 0o644)),
                ]
                writer.write("content")
            assert limited.read_text() == "content"
            for name in ("there", "not for programs", "from a stranger"):
                program = top / name / "id"
                found.append(
                    errno_of(lambda program=program: subprocess.run([program], capture_output=True, check=True))
                )
            return found

        def effective(name: str) -> str:
            def run() -> str:
                return subprocess.check_output(["./id", "-u"], text=True).strip()

            return as_user(CAROL, run, cwd=mounted.path / name)

        expected = ["EROFS"] * 7 + [None, None, "EACCES", None]
        assert outcomes(mounted.path) == expected
        assert outcomes(mounted.backing) == expected
        assert effective("there") == "0"
        assert effective("from a stranger") != "0", "setuid does not count on a mount with nosuid"


# --- loops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recursive", [False, True], ids=["bind", "rbind"])
def test_the_mount_inside_its_own_tree_is_a_loop(tmp_path: Path, nest: Nesting, recursive: bool) -> None:
    """With one thread: had it asked itself, nobody would be left to answer."""
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    with start(tmp_path, source=tree, threads=1, entry_timeout=0.0, attr_timeout=0.0) as mounted:
        nest.bind(mounted.path, tree / "loop", recursive=recursive)
        nest.bind(mounted.path / "a", tree / "a" / "part")
        try:
            for name in ("loop", "loop/a", "a/part", "a/part/b"):
                assert errno_of(lambda name=name: os.stat(mounted.path / name)) == "ELOOP"
                assert errno_of(lambda name=name: os.listdir(mounted.path / name)) == "ELOOP"
                with pytest.raises((exclfs.HoldError, exclfs.ClientError, OSError)):
                    exclfs.hold(mounted.path / name).__enter__()
            assert sorted(os.listdir(mounted.path)) == ["a", "loop"]
            assert sorted(os.listdir(mounted.path / "a")) == ["b", "part"]
            assert errno_of(lambda: os.rmdir(mounted.path / "loop")) == "ELOOP", "the kernel looks it up first"
            assert errno_of(lambda: os.rename(mounted.path / "a", mounted.path / "loop")) == "ELOOP"
            with exclfs.hold(mounted.path / "a", flags=exclfs.Flags.NO_REMOVE_BELOW):
                mounted.expect("refused")
                assert errno_of(lambda: os.rmdir(mounted.path / "a" / "b")) == "EBUSY"
            os.rmdir(mounted.path / "a" / "b")
        finally:
            nest.detach()


def test_a_tree_that_holds_another_mount_of_itself_does_not_wait_for_itself(tmp_path: Path, nest: Nesting) -> None:
    """Each server has the other's mount in its tree, and one thread."""
    tree = tmp_path / "tree"
    (tree / "first").mkdir(parents=True)
    (tree / "second").mkdir()
    (tree / "file").write_text("content")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    options = {"source": tree, "threads": 1, "entry_timeout": 0.0, "attr_timeout": 0.0}
    with start(tmp_path / "one", **options) as first, start(tmp_path / "two", **options) as second:
        nest.bind(first.path, tree / "first")
        nest.bind(second.path, tree / "second")
        try:
            paths = [first.path / "second", second.path / "first"]
            ends = threading.Event()

            def walk(top: Path) -> None:
                while not ends.is_set():
                    assert (top / "file").read_text() == "content"
                    for name in ("first", "second"):
                        # Through the other server it is looked no further.
                        assert errno_of(lambda name=name: os.listdir(top / name)) == "ELOOP"

            walkers = [threading.Thread(target=walk, args=(path,), daemon=True) for path in paths * 2]
            for walker in walkers:
                walker.start()
            time.sleep(0.5)
            ends.set()
            for walker in walkers:
                walker.join(PATIENCE)
                assert not walker.is_alive(), "one server waits for the other, which waits for it"
        finally:
            nest.detach()


# --- mounts that come and go ------------------------------------------------------------------------------------------


def test_mounts_that_come_and_go_behind_the_mount(tmp_path: Path, nest: Nesting) -> None:
    tree = tmp_path / "tree"
    (tree / "place" / "covered").mkdir(parents=True)
    with start(tmp_path, source=tree, entry_timeout=0.0, attr_timeout=0.0) as mounted:
        assert os.listdir(mounted.path / "place") == ["covered"]
        for number in range(3):
            inner = nest.tmpfs(tree / "place")
            (inner / f"new{number}").mkdir()
            assert os.listdir(mounted.path / "place") == [f"new{number}"]
            with open(mounted.path / "place" / "file", "w") as open_file:
                open_file.write("content")
                assert errno_of(lambda inner=inner: nest.umount(inner)) == "EBUSY", "as an open file does below"
            deadline = time.monotonic() + PATIENCE
            while errno_of(lambda inner=inner: nest.umount(inner)) == "EBUSY":
                assert time.monotonic() < deadline, "what was only used keeps the filesystem busy"
                time.sleep(0.05)
            assert os.listdir(mounted.path / "place") == ["covered"]


def test_subvolumes_of_btrfs_are_devices_of_their_own(tmp_path: Path, nest: Nesting) -> None:
    volume = nest.image("btrfs", tmp_path / "image", tmp_path / "volume", 128)
    for name in ("first", "second"):
        subprocess.run(["btrfs", "subvolume", "create", str(volume / name)], check=True, capture_output=True)
        (volume / name / "file").write_text(name)
    assert (volume / "first").stat().st_ino == (volume / "second").stat().st_ino == 256
    with start(tmp_path, source=volume) as mounted:
        mounted.expect("refused")
        assert find(mounted.path) == find(volume)
        assert len(find(volume)[0]) == 5
        numbers = [os.stat(mounted.path / name).st_ino for name in ("first", "second", "first/file", "second/file")]
        assert len(set(numbers)) == 4
        with exclfs.hold(mounted.path / "first" / "file"):
            os.unlink(mounted.path / "second" / "file")
            assert errno_of(lambda: os.unlink(mounted.path / "first" / "file")) == "EBUSY"
        assert errno_of(lambda: os.rename(mounted.path / "first" / "file", mounted.path / "file")) == "EXDEV"
