"""systemd-tmpfiles --clean: what has become new since it was looked at is removed as old.

    e /…/spool - - - m:1d            remove what was not modified for a day

systemd-tmpfiles looks at each file and unlinks it in the next system call:

    statx("job")                     tmpfiles: modified ten days ago
                                     the owner of the job writes to it
    unlinkat("job")                  what was written a moment ago is gone

It leaves alone what it cannot flock(2), so a program can keep its files by locking them. Few do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

TEN_DAYS = 10 * 24 * 3600

pytestmark = pytest.mark.skipif(not shutil.which("systemd-tmpfiles"), reason="needs systemd-tmpfiles")


@pytest.fixture
def cleaner(exclfs_mount, tmp_path):
    """systemd-tmpfiles --clean, before a directory with one old file; not yet running."""
    job = exclfs_mount.backing / "spool" / "job"
    job.parent.mkdir()
    job.write_text("old")
    then = time.time() - TEN_DAYS
    os.utime(job, (then, then))
    rules = tmp_path / "spool.conf"
    rules.write_text(f"e {exclfs_mount.path}/spool - - - m:1d\n")
    return exclfs_mount.program(["systemd-tmpfiles", "--clean", rules], stderr=subprocess.PIPE, text=True)


def test_what_was_written_a_moment_ago_is_removed_as_old(exclfs_mount, cleaner):
    """The race, every time; exit status 0."""
    job = exclfs_mount.path / "spool" / "job"
    with exclfs_mount.gate("unlink", "spool/*", by=cleaner) as gate:
        cleaner.start()
        gate.wait()
        job.write_text("new")
        gate.open()
        assert cleaner.wait() == 0
    assert not job.exists()


def test_what_is_held_stays(exclfs_mount, cleaner):
    """The owner holds the job while it writes. systemd-tmpfiles says that it ignores the error, and goes on."""
    job = exclfs_mount.path / "spool" / "job"
    with exclfs_mount.gate("unlink", "spool/*", by=cleaner) as gate:
        cleaner.start()
        gate.wait()
        with exclfs_mount.hold("spool/job", holder="printer"):
            job.write_text("new")
            gate.open()
            _, said = cleaner.communicate()
    assert "ignoring: Device or resource busy" in said
    assert job.read_text() == "new"
    assert [refusal.requester.comm for refusal in exclfs_mount.refusals] == ["systemd-tmpfile"]
