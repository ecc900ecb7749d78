"""git gc --prune=now against a git commit: a repository that is damaged.

git-gc(1) warns of it: "if you use --prune=now, objects that another process is using but hasn't created a reference to"
may be deleted. gc finds out what can be reached, and then unlinks every other object:

    git prune --expire now           gc: nothing refers to blob fbbdf22
                                     git add, git commit: the blob is there already, so git writes only a tree and a
                                     commit that refer to it
    unlink(".git/objects/fb/bdf22…") gc
    git fsck                         "missing blob fbbdf22…"
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")

GC = ["git", "gc", "--quiet", "--prune=now"]


class Repository:
    """A repository with one commit and an object that nothing refers to."""

    def __init__(self, path):
        """Make it there."""
        self.path = path
        self.environment = {
            **os.environ,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "LC_ALL": "C",
        }
        for person in ("AUTHOR", "COMMITTER"):
            self.environment |= {f"GIT_{person}_NAME": "somebody", f"GIT_{person}_EMAIL": "somebody@example.org"}
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("commit", "--quiet", "--allow-empty", "--message=first")
        (path / "file").write_text("precious\n")
        self.blob = self.git("hash-object", "-w", "file")
        self.object = f".git/objects/{self.blob[:2]}/{self.blob[2:]}"

    def git(self, *arguments):
        """What git prints; it must succeed."""
        done = subprocess.run(
            ["git", *arguments], cwd=self.path, env=self.environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self):
        """Add the file whose content nothing refers to yet, and commit it."""
        self.git("add", "file")
        self.git("commit", "--quiet", "--message=second")

    def fsck(self):
        """What git finds missing."""
        done = subprocess.run(
            ["git", "fsck", "--full"], cwd=self.path, env=self.environment, check=False, capture_output=True, text=True
        )
        return [line for line in done.stdout.splitlines() if line.startswith("missing")]


@pytest.fixture
def repository(exclfs_mount):
    """In the mount."""
    return Repository(exclfs_mount.path / "repository")


@pytest.fixture
def gc(exclfs_mount, repository):
    """Git gc, not yet running; what it starts (git prune) is stopped at gates like itself."""
    return exclfs_mount.program(GC, cwd=repository.path, env=repository.environment, stderr=subprocess.PIPE, text=True)


def test_a_commit_loses_what_it_refers_to(exclfs_mount, repository, gc):
    """The race, every time: the commit is there, and its file is not."""
    with exclfs_mount.gate("unlink", f"repository/{repository.object}", by=gc) as gate:
        gc.start()
        stopped = gate.wait()
        assert stopped.comm == "git"
        repository.commit()
        gate.open()
        assert gc.wait() == 0
    assert repository.fsck() == [f"missing blob {repository.blob}"]


def test_a_commit_whose_object_is_held_is_whole(exclfs_mount, repository, gc):
    """Whoever commits holds the object first. gc warns of what it cannot unlink, and goes on."""
    with exclfs_mount.gate("unlink", f"repository/{repository.object}", by=gc) as gate:
        gc.start()
        gate.wait()
        with exclfs_mount.hold(f"repository/{repository.object}", holder="git commit"):
            repository.commit()
            gate.open()
            _, said = gc.communicate()
    assert "Device or resource busy" in said
    assert gc.returncode == 0, said
    assert repository.fsck() == []
    assert repository.git("show", "HEAD:file") == "precious"
