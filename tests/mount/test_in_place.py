"""A tree that is mounted over itself: what goes through the mount, and each way around it that remains.

The ways are those of docs/explanation/semantics.md. By each of them a held file can be removed, and by the mount not.
"""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import attrs
import pytest

import exclfs
from harness import Mounted, mounts_now, start
from loops import run
from program import complaint, mounted_by_program
from program import exclfs as command
from twins import ALICE, as_user, handle_of, open_handle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mount, pytest.mark.root]


@attrs.define
class Scene:
    """The tree, and the server over it once there is one; `stack` undoes what a way has made."""

    tree: Path
    stack: ExitStack
    server: Mounted | None = None


def told(scene: Scene, *words: str, cwd: Path | None = None) -> Callable[[str], object]:
    """A shell that has begun before the mount, and removes what it is told."""
    process = subprocess.Popen(
        [*words, "sh", "-c", 'echo ready; read name; rm "$name"'],
        cwd=cwd or "/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    scene.stack.enter_context(process)  # in the end it is waited for
    scene.stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def remove(name: str) -> None:
        process.communicate(f"{name}\n", timeout=30)
        assert process.returncode == 0

    return remove


def by_a_descriptor(scene: Scene) -> Callable[[str], object]:
    fd = os.open(scene.tree, os.O_RDONLY)
    scene.stack.callback(os.close, fd)
    return lambda name: os.unlink(name, dir_fd=fd)


def by_a_working_directory(scene: Scene) -> Callable[[str], object]:
    return told(scene, cwd=scene.tree)


def in_another_mount_namespace(scene: Scene) -> Callable[[str], object]:
    remove = told(scene, "unshare", "--mount", "--propagation", "private")
    return lambda name: remove(str(scene.tree / name))


def by_a_bind_mount_of_the_parent(scene: Scene) -> Callable[[str], object]:
    other = scene.tree.parent / "bound"
    other.mkdir()

    def remove(name: str) -> None:
        run("mount", "--bind", scene.tree.parent, other)
        try:
            os.unlink(other / scene.tree.name / name)
        finally:
            run("umount", other)

    return remove


def by_a_file_handle(scene: Scene) -> Callable[[str], object]:
    handle = handle_of(scene.tree)

    def remove(name: str) -> None:
        fd = open_handle(scene.tree.parent, handle)
        try:
            os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)

    return remove


def by_a_descriptor_of_the_server(scene: Scene) -> Callable[[str], object]:
    tree = os.stat(scene.tree)

    def remove(name: str) -> None:
        assert scene.server is not None
        there = f"/proc/{scene.server.process.pid}/fd"
        with pytest.raises(PermissionError):
            as_user(ALICE, lambda: os.listdir(there))
        ways = [f"{there}/{fd}" for fd in os.listdir(there) if is_same(f"{there}/{fd}", tree)]
        os.unlink(f"{ways[0]}/{name}")

    return remove


def is_same(path: str, status: os.stat_result) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)


def a_hard_link_outside(scene: Scene) -> Callable[[str], object]:
    """It can be removed itself; the file stays, by the name that it has in the tree."""
    outside = scene.tree.parent / "outside"
    os.link(scene.tree / "a_hard_link_outside", outside)
    return lambda name: os.unlink(outside)


WAYS = [
    by_a_descriptor,
    by_a_working_directory,
    in_another_mount_namespace,
    by_a_bind_mount_of_the_parent,
    by_a_file_handle,
    by_a_descriptor_of_the_server,
    a_hard_link_outside,
]


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mounted, dict[str, Callable[[str], object]]]]:
    """The mount, and for each way what removes a file by it, made before there was a mount."""
    directory = tmp_path_factory.mktemp("place")
    tree = directory / "tree"
    tree.mkdir()
    for way in WAYS:
        (tree / way.__name__).write_text("content")
    with ExitStack() as stack:
        scene = Scene(tree, stack)
        removes = {way.__name__: way(scene) for way in WAYS}
        scene.server = stack.enter_context(start(directory, source=tree, mountpoint=tree))
        scene.server.expect("refused", "orphaned")
        yield scene.server, removes


@pytest.mark.parametrize("way", [way.__name__ for way in WAYS])
def test_a_way_around_the_mount_that_remains(
    around: tuple[Mounted, dict[str, Callable[[str], object]]], way: str
) -> None:
    mounted, removes = around
    held = mounted.path / way
    with exclfs.connect(mounted.path) as connection:
        connection.hold(held, holder="tester")
        with pytest.raises(OSError, match="busy"):
            held.unlink()
        assert held.read_text() == "content"
        removes[way](way)
        if way == "a_hard_link_outside":
            with pytest.raises(OSError, match="busy"):
                held.unlink()
            assert held.stat().st_nlink == 1
        else:
            with pytest.raises(FileNotFoundError):
                held.unlink()


@contextmanager
def in_place(directory: Path) -> Iterator[Mounted]:
    (directory / "tree/directory").mkdir(parents=True)
    (directory / "tree/file").write_text("content")
    with start(directory, source=directory / "tree", mountpoint=directory / "tree") as mounted:
        yield mounted


def is_the_tree_itself(tree: Path) -> bool:
    return tree.stat().st_dev == tree.parent.stat().st_dev


def test_what_is_in_use_stays_mounted_and_umount_l_gives_the_tree_back(tmp_path: Path) -> None:
    """The old users go on through the server, which ends with the last of them; the new ones have the tree."""
    with in_place(tmp_path) as mounted:
        tree = mounted.path
        with open(tree / "file", "r+") as file:
            assert subprocess.run(["umount", str(tree)], capture_output=True, check=False).returncode == 32
            assert "busy" in complaint(command("umount", tree, status=3))
            assert not is_the_tree_itself(tree)
            run("umount", "-l", tree)
            assert is_the_tree_itself(tree)
            file.write("CON")
            file.flush()
            os.fsync(file.fileno())
            assert (tree / "file").read_text() == "CONtent"
            assert mounted.process.poll() is None
        assert mounted.process.wait(30) == 0


def test_a_killed_server_leaves_the_tree_whole(tmp_path: Path) -> None:
    """Nothing gets at it before somebody clears the mountpoint, which the next mount does by itself."""
    tree = tmp_path / "tree"
    with in_place(tmp_path) as mounted:
        (tree / "new").write_text("new")
        mounted.process.kill()
        mounted.process.wait()
        with pytest.raises(OSError, match="not connected") as raised:
            os.listdir(tree)
        assert raised.value.errno == errno.ENOTCONN
        with mounted_by_program(tree, tree):
            assert sorted(os.listdir(tree)) == ["directory", "file", "new"]
            assert not is_the_tree_itself(tree)
        assert os.fsencode(tree) not in mounts_now()
        assert is_the_tree_itself(tree)
        assert sorted(os.listdir(tree)) == ["directory", "file", "new"]
        mounted.process.returncode = 0
