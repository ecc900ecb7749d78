"""A culler that asks first and deletes then: find, fuser, -delete.

    find objects -type f -atime +7 ! -exec fuser -s {} ';' -delete

Whatever nobody has read for a week and nobody has open. fuser looks through /proc, which takes milliseconds; then find
unlinks. Who takes an object into use in between was asked about too early:

    newfstatat("4f")                 find: not read for ten days
    execve("fuser", "-s", "…/4f")    fuser: nobody has it open
                                     a build finds 4f in the cache, and writes it into its manifest
    unlinkat("4f")                   the manifest names an object that is not there
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

CULLER = ["find", "objects", "-type", "f", "-atime", "+7", "!", "-exec", "fuser", "-s", "{}", ";", "-delete"]
TEN_DAYS = 10 * 24 * 3600

pytestmark = pytest.mark.skipif(not shutil.which("fuser"), reason="needs fuser")


@pytest.fixture
def culler(exclfs_mount):
    """The culler, before the cache of one object that nobody has read for ten days; not yet running."""
    cached = exclfs_mount.backing / "objects" / "4f"
    cached.parent.mkdir()
    cached.write_text("expensive to make")
    then = time.time() - TEN_DAYS
    os.utime(cached, (then, then))
    environment = {**os.environ, "LC_ALL": "C"}
    return exclfs_mount.program(CULLER, cwd=exclfs_mount.path, env=environment, stderr=subprocess.PIPE, text=True)


def test_what_is_taken_into_use_after_the_check_is_lost(exclfs_mount, culler):
    """The race, every time."""
    cached, manifest = exclfs_mount.path / "objects" / "4f", exclfs_mount.path / "manifest"
    with exclfs_mount.gate("unlink", "objects/*", by=culler) as gate:
        culler.start()
        gate.wait()  # find has asked, and stands before its unlink
        assert cached.exists()
        manifest.write_text("objects/4f\n")  # the build need not make it again
        gate.open()
        assert culler.wait() == 0
    assert not (exclfs_mount.path / manifest.read_text().strip()).exists()


def test_what_is_held_stays(exclfs_mount, culler):
    """The build holds the object before it relies on it. What find is told, it prints and counts as a failure."""
    cached, manifest = exclfs_mount.path / "objects" / "4f", exclfs_mount.path / "manifest"
    with exclfs_mount.gate("unlink", "objects/*", by=culler) as gate:
        culler.start()
        gate.wait()
        with exclfs_mount.hold("objects/4f", holder="build-42", reason="in the manifest"):
            manifest.write_text("objects/4f\n")
            gate.open()
            _, said = culler.communicate()
    assert culler.returncode == 1
    assert "find: cannot delete 'objects/4f': Device or resource busy" in said
    assert cached.read_text() == "expensive to make"
    (refusal,) = exclfs_mount.refusals
    assert refusal.requester.comm == "find"
    assert refusal.holds[0].holder.name == "build-42"
