"""umount(2): what it answers for reasons of the mounts themselves, said before, and tried."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from estate import open_directory
from exclfs.diagnosis.asking import why
from exclfs.host import mount_rights, namespaces
from exclfs.host.view import Host
from mounting import (
    MS_SHARED,
    MS_SLAVE,
    agrees,
    bind,
    errno_of,
    in_another_namespace,
    kinds,
    of_kind,
    privately,
    process,
    tmpfs,
    umount,
)
from predicted import CONTAINED, MS_REC, become, in_a_child, mount
from twins import ALICE, LIBC, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twins import User

pytestmark = [pytest.mark.root]


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that everybody can enter."""
    with open_directory() as path:
        yield path


def said_and_tried(path: Path, *expected: str) -> None:
    """Asks, then unmounts; among the causes are these."""
    said = why(path, attempt="umount")
    assert set(expected) <= kinds(said)
    agrees(said, errno_of(lambda: umount(path)))


def as_somebody(user: User, work: Callable[[], None]) -> None:
    """In a process of this user's."""

    def inside() -> dict[str, object]:
        become(user)
        work()
        return {}

    in_a_child(inside)


@privately
def test_a_mount_that_nobody_uses(directory: Path) -> None:
    thing = tmpfs(directory / "thing")
    assert all("umount" not in cause.blocks for cause in why(thing).causes)
    said_and_tried(thing)


@privately
def test_what_is_no_mountpoint(directory: Path) -> None:
    (directory / "file").touch()
    said_and_tried(directory, "not a mountpoint")
    said_and_tried(directory / "file", "not a mountpoint")
    assert "not a mountpoint" not in kinds(why(directory))


@privately
def test_a_symlink_is_followed(directory: Path) -> None:
    thing = tmpfs(directory / "thing")
    (directory / "link").symlink_to("thing")
    said_and_tried(directory / "link")
    assert not os.path.ismount(thing)


@privately
def test_a_mount_below(directory: Path) -> None:
    thing = tmpfs(directory / "thing")
    below = tmpfs(thing / "be low")
    said_and_tried(thing, "mount below")
    text = of_kind(why(thing), "mount below").text
    assert f'Something is mounted below "{thing}": "{below}".' in text
    assert f"`umount -R {thing}`" in text
    umount(below)
    said_and_tried(thing)


@privately
def test_many_mounts_below_are_counted(directory: Path) -> None:
    thing = tmpfs(directory / "thing")
    for number in range(12):
        tmpfs(thing / str(number))
    text = of_kind(why(thing), "mount below").text
    assert "12 filesystems are mounted below" in text
    assert "and 2 more" in text


@privately
def test_of_two_on_one_another_the_upper_one_is_taken(directory: Path) -> None:
    thing = tmpfs(directory / "thing", "lower")
    tmpfs(thing, "upper")
    said_and_tried(thing)
    assert Host().mounts[-1].source == b"lower"
    said_and_tried(thing)


@privately
def test_an_ordinary_user(directory: Path) -> None:
    thing = tmpfs(directory / "thing")
    as_somebody(ALICE, lambda: said_and_tried(thing, "privilege"))
    as_somebody(ALICE, lambda: said_and_tried(directory, "privilege", "not a mountpoint"))


@privately
def test_the_mounter_of_a_fuse_mount_is_told_how(directory: Path) -> None:
    thing = directory / "thing"
    thing.mkdir()
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount("/srv/x", thing, "fuse.exclfs", options=f"fd={fuse},rootmode=40000,user_id={ALICE.uid},group_id=0")
    os.close(fuse)

    def ask() -> None:
        said_and_tried(thing, "privilege")
        assert f"`fusermount3 -u {thing}`" in of_kind(why(thing), "privilege").text

    as_somebody(ALICE, ask)


@privately
def test_root_of_a_user_namespace_may_not_unmount_in_a_mount_namespace_that_is_not_its(directory: Path) -> None:
    thing = tmpfs(directory / "thing")
    as_somebody(CONTAINED, lambda: said_and_tried(thing, "privilege"))


@privately
def test_a_mount_that_was_handed_down_stays(directory: Path) -> None:
    thing = tmpfs(directory / "thing")
    (directory / "own").mkdir()

    def contained() -> None:
        check(LIBC.unshare(0x20000))
        said_and_tried(thing, "locked mount")
        mount("own", directory / "own", "tmpfs")
        assert "locked mount" not in kinds(why(directory / "own"))
        said_and_tried(directory / "own")

    as_somebody(CONTAINED, contained)


def test_of_the_initial_user_namespace_nothing_is_locked() -> None:
    assert mount_rights.may_mount()
    assert not mount_rights.is_locked("/proc")


@privately
def test_slash_is_not_said_to_be_taken(directory: Path) -> None:
    assert why("/", attempt="umount").blocked is not False


@privately
def test_in_another_namespace(directory: Path) -> None:
    with in_another_namespace(lambda: tmpfs(directory / "thing")) as pid:
        said_and_tried(Path(f"/proc/{pid}/root{directory}/thing"), "not a mountpoint")


# --- Propagation -----------------------------------------------------------------------------------------------------


def copies(path: Path) -> set[int]:
    """The ids of what is unmounted together with what is mounted there."""
    host = Host()
    return namespaces.copies(host.tree.way(os.fsencode(path))[-1], host)


def shared(directory: Path) -> Path:
    """A mount that propagates what is mounted below."""
    parent = tmpfs(directory / "parent")
    mount("none", parent, flags=MS_SHARED)
    return parent


def in_a_peer(work: Callable[[], object], *flags: tuple[Path, int]) -> object:
    """A process in a copy of this namespace, which receives what is mounted here."""

    def run() -> None:
        check(LIBC.unshare(0x20000))
        for path, flag in flags:
            mount("none", path, flags=flag)
        work()

    return process(run)


@privately
def test_a_peer_in_another_namespace_that_is_busy(directory: Path) -> None:
    parent = shared(directory)
    thing = tmpfs(parent / "thing")
    with in_a_peer(lambda: os.chdir(thing)) as pid:
        assert len(copies(thing)) == 2
        said_and_tried(thing, "working directory")
        assert os.path.ismount(thing)
        assert pid in {each.pid for each in of_kind(why(thing, attempt="umount"), "working directory").processes}
    assert errno_of(lambda: umount(thing)) is None


@privately
def test_a_slave_in_another_namespace_that_is_busy(directory: Path) -> None:
    parent = shared(directory)
    thing = tmpfs(parent / "thing")
    with in_a_peer(lambda: os.chdir(thing), (parent, MS_SLAVE)):
        assert len(copies(thing)) == 2
        said_and_tried(thing, "working directory")


@privately
def test_a_slave_that_is_shared_passes_it_on(directory: Path) -> None:
    parent = shared(directory)
    thing = tmpfs(parent / "thing")
    (directory / "further").mkdir()
    with ExitStack() as stack:

        def hand_on() -> None:
            mount("none", parent, flags=MS_SHARED)
            bind(parent, directory / "further", MS_REC)
            mount("none", directory / "further", flags=MS_SLAVE)
            os.chdir(directory / "further/thing")

        stack.enter_context(in_a_peer(hand_on, (parent, MS_SLAVE)))
        assert len(copies(thing)) == 3
        said_and_tried(thing, "working directory")


@privately
def test_a_private_copy_does_not_count(directory: Path) -> None:
    parent = shared(directory)
    thing = tmpfs(parent / "thing")
    with in_another_namespace(lambda: os.chdir(thing)):
        assert len(copies(thing)) == 1
        said_and_tried(thing)
        assert not os.path.ismount(thing)


@privately
def test_a_neighbour_that_is_busy_does_not_count(directory: Path) -> None:
    parent = shared(directory)
    thing, neighbour = tmpfs(parent / "thing"), tmpfs(parent / "neighbour")
    with in_a_peer(lambda: os.chdir(neighbour)):
        assert not copies(thing) & copies(neighbour)
        said_and_tried(thing)
        said_and_tried(neighbour, "working directory")


@privately
def test_what_was_mounted_from_a_slave_is_not_taken_from_its_master(directory: Path) -> None:
    parent = shared(directory)
    (parent / "thing").mkdir()
    bind(parent, tmpfs(directory / "slave"))
    mount("none", directory / "slave", flags=MS_SLAVE)
    thing = tmpfs(directory / "slave/thing")
    assert not os.path.ismount(parent / "thing")
    assert len(copies(thing)) == 1
    said_and_tried(thing)


@privately
def test_a_busy_copy_with_something_mounted_below_is_passed_over(directory: Path) -> None:
    parent = shared(directory)
    thing = tmpfs(parent / "thing")
    mount("none", thing, flags=MS_SHARED)

    def use_it() -> None:
        mount("none", thing, flags=1 << 18)
        tmpfs(thing / "below")
        os.chdir(thing)

    with in_a_peer(use_it):
        assert len(copies(thing)) == 1
        said_and_tried(thing)


@privately
def test_a_copy_that_is_covered_counts(directory: Path) -> None:
    parent = shared(directory)
    thing = tmpfs(parent / "thing")
    with in_a_peer(lambda: (os.chdir(thing), mount("none", thing, flags=1 << 18), mount("cover", thing, "tmpfs"))):
        assert len(copies(thing)) == 2
        said_and_tried(thing, "working directory")


@privately
def test_an_ordinary_user_is_not_told_that_peers_are_idle(directory: Path) -> None:
    """Namespaces that no process is in are out of sight: one of them may be a peer."""
    thing = tmpfs(shared(directory) / "thing")
    program = (
        "import sys; from exclfs.diagnosis.asking import why;"
        "print(*(each.text for each in why(sys.argv[1]).unread if each.kind == 'namespaces'), sep='\\n')"
    )
    user = ["setpriv", f"--reuid={ALICE.uid}", f"--regid={ALICE.gid}", "--clear-groups"]
    done = subprocess.run([*user, sys.executable, "-c", program, str(thing)], capture_output=True, text=True)
    assert "Mount namespaces that no process is in" in done.stdout, done.stderr
