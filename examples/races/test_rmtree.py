"""shutil.rmtree against somebody who creates: what it removes is not what it saw.

rmtree lists a directory, unlinks what it has listed, and removes the directory:

    openat("spool"), getdents64      rmtree: there are a and b
    unlinkat("a"), …                 rmtree
                                     a writer moves a new version of b into place, as programs do that lose nothing
    unlinkat("b")                    the new b is gone: rmtree has listed the old one
    rmdir("spool")

or, one step later:

                                     a writer creates c
    rmdir("spool")                   ENOTEMPTY: rmtree raises, and c is all that is left of the tree
"""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from exclfs import Flags

CLEANER = [sys.executable, "-c", "import shutil; shutil.rmtree('spool')"]


@pytest.fixture
def cleaner(exclfs_mount):
    """A program that removes a tree with shutil.rmtree; not yet running."""
    spool = exclfs_mount.backing / "spool"
    spool.mkdir()
    for name in "ab":
        (spool / name).write_text("old")
    return exclfs_mount.program(CLEANER, cwd=exclfs_mount.path, stderr=subprocess.PIPE, text=True)


def publish(file, text):
    """Put a new version into place in one step."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    new.rename(file)


def test_a_version_that_rmtree_has_not_seen_is_lost(exclfs_mount, cleaner):
    """Silently, and with exit status 0."""
    with exclfs_mount.gate("unlink", "spool/b", by=cleaner) as gate:
        cleaner.start()
        gate.wait()
        publish(exclfs_mount.path / "spool" / "b", "new")
        gate.open()
        assert cleaner.wait() == 0
    assert not (exclfs_mount.path / "spool").exists()


def test_a_file_that_comes_late_is_left_alone_in_its_tree(exclfs_mount, cleaner):
    """rmtree fails, and what it should not have begun is half done."""
    spool = exclfs_mount.path / "spool"
    with exclfs_mount.gate("rmdir", "spool", by=cleaner) as gate:
        cleaner.start()
        gate.wait()
        (spool / "c").write_text("new")
        gate.open()
        _, said = cleaner.communicate()
    assert cleaner.returncode == 1
    assert f"OSError: [Errno {errno.ENOTEMPTY}] Directory not empty: 'spool'" in said
    assert [file.name for file in spool.iterdir()] == ["c"]


def test_from_a_tree_that_is_held_nothing_goes(exclfs_mount, cleaner):
    """The writer holds the directory and the names in it while it works there. rmtree stops at the first EBUSY."""
    spool = exclfs_mount.path / "spool"
    with exclfs_mount.gate("unlink", "spool/*", by=cleaner) as gate:
        cleaner.start()
        gate.wait()
        with exclfs_mount.hold("spool", holder="writer", flags=Flags.NO_REMOVE_BELOW):
            (spool / "c").write_text("new")
            gate.open()
            _, said = cleaner.communicate()
    assert cleaner.returncode == 1
    assert f"OSError: [Errno {errno.EBUSY}] Device or resource busy" in said
    assert {file.name: file.read_text() for file in spool.iterdir()} == {"a": "old", "b": "old", "c": "new"}
