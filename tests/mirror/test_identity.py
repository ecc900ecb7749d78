"""An inode is found again after a restart, or is gone; it is never taken for another."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from kernel import rig

from exclfs.holds.errors import Gone
from exclfs.holds.holder import Credentials
from exclfs.mirror import ROOT, Identity
from loops import make_image

if TYPE_CHECKING:
    from pathlib import Path

needs_handles = pytest.mark.skipif(os.geteuid() != 0, reason="opening by file handle needs CAP_DAC_READ_SEARCH")


def identity_of(tree: Path, name: str, **settings: object) -> Identity:
    """As a server learnt it that has ended since."""
    with rig(tree, **settings) as made:
        return made.mirror.identity(made.mirror.identify(made.kernel.lookup(name).nodeid))


@pytest.mark.parametrize("privileged", [True, False])
def test_it_is_found_where_it_was(tmp_path: Path, privileged: bool) -> None:
    (tmp_path / "file").write_text("")
    identity = identity_of(tmp_path, "file", privileged=privileged)
    assert identity.path == b"file"
    with rig(tmp_path, privileged=privileged) as made:
        inode = made.mirror.restore(identity)
        assert inode.ino == (tmp_path / "file").stat().st_ino
        assert inode.nodeid == made.kernel.lookup("file").nodeid


@needs_handles
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_it_is_found_under_another_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "name"
    path.write_text("") if kind == "file" else path.mkdir()
    number = path.stat().st_ino
    identity = identity_of(tmp_path, "name")
    path.rename(tmp_path / "elsewhere" / "other")
    path.write_text("an impostor")
    with rig(tmp_path) as made:
        inode = made.mirror.restore(identity)
        assert inode.ino == number
        assert made.mirror.path(inode) == b"elsewhere/other"


@pytest.mark.parametrize("privileged", [True, False])
def test_another_at_its_path_is_not_it(tmp_path: Path, privileged: bool) -> None:
    (tmp_path / "file").write_text("")
    identity = identity_of(tmp_path, "file", privileged=privileged)
    (tmp_path / "new").write_text("")
    (tmp_path / "new").replace(tmp_path / "file")
    with rig(tmp_path, privileged=privileged) as made, pytest.raises(Gone):
        made.mirror.restore(identity)


def test_without_handles_the_birth_time_tells_them_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    identity = evolve(identity_of(tmp_path, "file"), handle=b"")
    with rig(tmp_path) as made:
        if identity.birth_seconds:
            with pytest.raises(Gone):
                made.mirror.restore(evolve(identity, birth_nanoseconds=identity.birth_nanoseconds ^ 1))
        with pytest.raises(Gone):
            made.mirror.restore(evolve(identity, type=0o040000))
        assert made.mirror.restore(identity).ino == identity.ino


@needs_handles
def test_what_has_left_the_tree_is_gone(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "directory").mkdir(parents=True)
    identity = identity_of(tree, "directory")
    (tree / "directory").rename(tmp_path / "outside")
    with rig(tree) as made, pytest.raises(Gone):
        made.mirror.restore(identity)


@needs_handles
def test_a_file_that_nobody_has_looked_up_since_the_boot(tmp_path: Path) -> None:
    """The kernel knows no name of it until somebody looks. ext4 on a loop device stands for the machine's disk."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    make_image(image, "ext4")
    mount = ["mount", "-o", "loop", str(image), str(disk)]
    subprocess.run(mount, check=True)
    try:
        tree = disk / "tree"
        (tree / "elsewhere").mkdir(parents=True)
        (tree / "file").write_text("")
        number = (tree / "file").stat().st_ino
        identity = identity_of(tree, "file")
        (tree / "file").rename(tree / "elsewhere/file")
        subprocess.run(["umount", str(disk)], check=True)
        subprocess.run(mount, check=True)
        with rig(tree) as made:
            inode = made.mirror.restore(identity)
            assert inode.ino == number
            with pytest.raises(Gone):
                made.mirror.path(inode)
            assert made.mirror.attributes(inode).nlink == 1
            made.mirror.set_word(inode, 2, wait=False)
            made.mirror.release(inode)
            elsewhere = made.kernel.lookup("elsewhere").nodeid
            assert made.kernel.lookup("file", elsewhere).nodeid == inode.nodeid
            assert made.mirror.path(inode) == b"elsewhere/file"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_root_is_told_apart_too(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        root = made.mirror.identify(ROOT)
        identity = made.mirror.identity(root)
        assert identity.path == b""
        assert made.mirror.restore(identity) == root


# --- as somebody else -------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
def test_access_is_that_of_the_user_and_the_groups(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    with rig(tmp_path) as made:
        inode = made.mirror.identify(made.kernel.lookup("file").nodeid)
        mirror = made.mirror
        assert mirror.access(inode, Credentials(1234, 99), os.R_OK | os.W_OK)
        assert mirror.access(inode, Credentials(1, 4321), os.R_OK)
        assert mirror.access(inode, Credentials(1, 1, (7, 4321)), os.R_OK)
        assert not mirror.access(inode, Credentials(1, 4321), os.W_OK)
        assert not mirror.access(inode, Credentials(1, 1), os.R_OK)
        assert mirror.access(inode, Credentials(0, 0), os.R_OK | os.W_OK)
