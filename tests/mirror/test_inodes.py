"""The table of inodes: who is known, for how long, and as whom."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from kernel import Op, rig

from exclfs.holds.errors import Gone
from exclfs.mirror import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kernel import Rig

HELD = 1


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def test_an_inode_is_known_until_it_is_forgotten_as_often_as_it_was_looked_up(one: Rig) -> None:
    _, inode = one.file()
    one.kernel.lookup("file")
    one.kernel.forget(inode.nodeid)
    assert one.mirror.identify(inode.nodeid) == inode
    one.kernel.forget(inode.nodeid)
    with pytest.raises(Gone):
        one.mirror.identify(inode.nodeid)
    assert one.mirror.counters()["inodes"] == 1


def test_a_held_inode_outlives_forget(one: Rig) -> None:
    path, inode = one.file()
    one.mirror.set_word(inode, HELD, wait=False)
    one.kernel.forget(inode.nodeid)
    asked = one.unlink(path)
    question = one.policy.question()
    assert question.nodeid == inode.nodeid
    one.policy.refuse(question)
    with pytest.raises(OSError, match="busy"):
        one.kernel.reply(asked)
    one.mirror.set_word(inode, 0, wait=False)
    with pytest.raises(Gone):
        one.mirror.identify(inode.nodeid)


def test_the_root_is_never_forgotten(one: Rig) -> None:
    one.kernel.forget(ROOT, 1000)
    assert one.mirror.identify(ROOT).ino == one.tree.stat().st_ino


def test_to_forget_more_than_there_was_is_to_forget(one: Rig) -> None:
    _, inode = one.file()
    one.kernel.forget(inode.nodeid, 2**63)
    one.kernel.forget(inode.nodeid, 1)
    one.kernel.forget(4711, 1)
    assert one.mirror.counters()["inodes"] == 1


def test_what_is_resolved_is_known_until_it_is_released(one: Rig) -> None:
    (one.tree / "directory").mkdir()
    (one.tree / "directory" / "file").write_text("")
    inode = one.mirror.resolve(b"directory/file", os.geteuid(), os.getegid(), ())
    assert one.mirror.path(inode) == b"directory/file"
    one.mirror.release(inode)
    assert one.mirror.counters()["inodes"] == 1


def test_a_symlink_on_the_way_is_not_followed(one: Rig) -> None:
    (one.tree / "directory").mkdir()
    (one.tree / "directory" / "file").write_text("")
    (one.tree / "link").symlink_to("directory")
    with pytest.raises(OSError, match="symbolic links"):
        one.mirror.resolve(b"link/file", os.geteuid(), os.getegid(), ())
    link = one.mirror.resolve(b"link", os.geteuid(), os.getegid(), ())
    assert link.ino == (one.tree / "link").lstat().st_ino
    one.mirror.release(link)


def test_a_trylock_after_the_last_link_is_gone(one: Rig) -> None:
    path, inode = one.file()
    path.unlink()
    with pytest.raises(Gone):
        one.mirror.set_word(inode, HELD, wait=False)
    assert one.mirror.counters()["inodes"] == 2, "the kernel still knows it"


def test_a_file_behind_the_mount_with_the_old_name_is_another_inode(one: Rig) -> None:
    path, inode = one.file()
    one.mirror.set_word(inode, HELD, wait=False)
    path.rename(one.tree / "kept")
    _, other = one.file()
    assert other.nodeid != inode.nodeid
    one.kernel.reply(one.unlink(path))
    one.unlink(one.tree / "kept")
    assert one.policy.question().nodeid == inode.nodeid


def test_lookups_and_forgets_of_many_workers_leave_nothing(tmp_path: Path) -> None:
    """Every FORGET may meet a LOOKUP of the same inode, in another worker."""
    files, rounds = 8, 300
    for number in range(files):
        (tmp_path / f"f{number}").write_text("")
    with rig(tmp_path, threads=6, descriptors=2) as made:
        for _ in range(rounds):
            asked = [made.kernel.ask(Op.LOOKUP, ROOT, b"f%d\0" % number) for number in range(files)]
            nodeids = [struct.unpack_from("=Q", made.kernel.reply(unique))[0] for unique in asked]
            body = struct.pack("=II", files, 0) + b"".join(struct.pack("=QQ", nodeid, 1) for nodeid in nodeids)
            made.kernel.ask(Op.BATCH_FORGET, 0, body)
        for _ in range(rounds):  # the last FORGETs may be at work still
            made.kernel.getattr()
            if made.mirror.counters()["inodes"] == 1:
                return
        assert made.mirror.counters()["inodes"] == 1


def test_a_word_set_while_the_inode_is_looked_up_and_forgotten_is_never_lost(tmp_path: Path) -> None:
    with rig(tmp_path, threads=6) as made:
        path, inode = made.file()
        for _ in range(300):
            asked = [made.kernel.ask(Op.LOOKUP, ROOT, b"file\0") for _ in range(4)]
            made.mirror.set_word(inode, HELD, wait=True)
            for unique in asked:
                made.kernel.reply(unique)
            made.kernel.ask(Op.FORGET, inode.nodeid, struct.pack("=Q", 4))
            refused = made.unlink(path)
            made.policy.refuse(made.policy.question())
            with pytest.raises(OSError, match="busy"):
                made.kernel.reply(refused)
            made.mirror.set_word(inode, 0, wait=False)
        assert made.mirror.identify(inode.nodeid) == inode


def test_descriptors_stay_within_the_budget(tmp_path: Path) -> None:
    limit = 8
    for number in range(100):
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"d{number}" / "file").write_text("")
    with rig(tmp_path, descriptors=limit) as made:
        files = [made.kernel.lookup("file", made.kernel.lookup(f"d{number}").nodeid) for number in range(100)]
        assert made.mirror.counters()["descriptors"] <= limit + 1, "the root's is kept"
        for file in files:
            assert made.kernel.getattr(file.nodeid)[0] == file.ino
        assert made.mirror.counters()["descriptors"] <= limit + 1


@contextmanager
def small_stacks(size: int) -> Iterator[None]:
    """Threads that begin meanwhile have stacks of this size."""
    libc = ctypes.CDLL(None)
    before, attributes = ctypes.create_string_buffer(256), ctypes.create_string_buffer(256)
    assert libc.pthread_getattr_default_np(before) == 0
    assert libc.pthread_attr_init(attributes) == 0
    assert libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(size)) == 0
    assert libc.pthread_setattr_default_np(attributes) == 0
    try:
        yield
    finally:
        assert libc.pthread_setattr_default_np(before) == 0


def test_a_tree_may_be_deeper_than_a_stack(tmp_path: Path) -> None:
    """Without file handles, what leads to an inode is opened again from above, and let go of from below."""
    depth, tree = 5_000, tmp_path / "tree"
    tree.mkdir()
    at = os.open(tree, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    deepest = os.fstat(at).st_ino
    os.close(at)
    for number in range(10):
        (tree / f"other{number}").mkdir()
    try:
        with small_stacks(1 << 20), rig(tree, descriptors=4, privileged=False) as made:
            nodeids = [ROOT]
            for _ in range(depth):
                nodeids.append(made.kernel.lookup("d", nodeids[-1]).nodeid)
            for number in range(10):  # takes the descriptors
                made.kernel.getattr(made.kernel.lookup(f"other{number}").nodeid)
            for nodeid in nodeids[1:-1]:
                made.kernel.forget(nodeid)
            assert made.kernel.getattr(nodeids[-1])[0] == deepest
            made.kernel.forget(nodeids[-1])
            assert made.mirror.counters()["inodes"] == 11
    finally:
        subprocess.run(["rm", "-rf", str(tree)], check=True)  # shutil's recurses


@pytest.mark.root
def test_a_hold_outlives_a_copy_up_of_overlayfs(tmp_path: Path) -> None:
    """Writing to a file of a lower layer gives it a new birth time, and it is the same file."""
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir()
    (lower / "file").write_text("content")
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    if subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(merged)], check=False).returncode:
        pytest.skip("overlayfs cannot be mounted here")
    try:
        with rig(merged) as made:
            inode = made.mirror.identify(made.kernel.lookup("file").nodeid)
            made.mirror.set_word(inode, HELD, wait=False)
            with (merged / "file").open("a") as copied_up:
                copied_up.write("more")
            assert made.kernel.lookup("file").nodeid == inode.nodeid
            asked = made.unlink(merged / "file")
            made.policy.refuse(made.policy.question())
            with pytest.raises(OSError, match="busy"):
                made.kernel.reply(asked)
    finally:
        subprocess.run(["umount", str(merged)], check=True)
