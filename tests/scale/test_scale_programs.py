"""What people run on trees of a million files tells the same through the mount as on the tree behind it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from big import MOST_OPEN, descriptors, files_below, filesystem, forgotten, found, make_forest, served, size

import needs
from loops import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

FILES = size(2_000, 1_000_000)
IN_GIT = size(1_000, 250_000)
ALL = r"%n %y %m %U %G %s %T@ %l %P\0"
"""Of what was copied: all but the inode numbers."""
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "somebody"), ("EMAIL", "somebody@example.org"), ("DATE", "2026-01-01T00:00:00Z"))
} | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_OPTIONAL_LOCKS": "0"}


def furnish(tree: Path, files: int) -> None:
    """A forest with texts, symlinks, modes and times."""
    make_forest(tree, files)
    for number, path in enumerate(files_below(tree)):
        if number % 7 == 0:
            with open(path, "w") as file:
                file.write(f"text {number}\n")
        if number % 500 == 0:
            os.symlink(os.path.basename(path), f"{path}.link")
            os.chmod(path, 0o640 | number % 8)
            os.utime(path, ns=(number, number * 1_000_003))


@pytest.fixture
def forest(tmp_path: Path) -> Iterator[Mounted]:
    with filesystem(tmp_path / "filesystem", "tmpfs", FILES) as place:
        (place / "tree").mkdir()
        furnish(place / "tree", FILES)
        with served(tmp_path, place / "tree") as mounted:
            yield mounted


def lines(*words: object) -> list[bytes]:
    """What the command prints, sorted."""
    return sorted(subprocess.run([*map(str, words)], stdout=subprocess.PIPE, check=True).stdout.splitlines())


def archive(top: Path) -> str:
    """The digest of a tar stream."""
    digest = hashlib.sha256()
    with subprocess.Popen(["tar", "-C", top, "--sort=name", "-cf", "-", "."], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while block := process.stdout.read(1 << 20):
            digest.update(block)
    assert process.returncode == 0
    return digest.hexdigest()


def test_reading_programs(forest: Mounted, figure: Callable[[str], None]) -> None:
    needs.programs("rsync")
    figure("made and mounted")
    assert found(forest.path) == found(forest.backing)
    figure("find, on both")
    for options in (["-a"], ["-a", "--apparent-size", "-l"]):
        of_mount, of_tree = (lines("env", "-C", top, "du", *options, ".") for top in (forest.path, forest.backing))
        assert of_mount == of_tree
    figure("du twice, on both")
    assert archive(forest.path) == archive(forest.backing)
    figure("tar, on both")
    copies = forest.root.parent / "filesystem/copies"
    copies.mkdir()
    run("rsync", "-aH", f"{forest.path}/", f"{copies}/rsync/")
    figure("rsync -aH from the mount")
    assert run("rsync", "-aHn", "-i", "--checksum", "--delete", f"{forest.backing}/", f"{copies}/rsync/") == ""
    assert run("rsync", "-aHn", "-i", "--delete", f"{forest.path}/", f"{copies}/rsync/") == ""
    figure("rsync -n, twice")
    run("rm", "-r", copies / "rsync")
    run("cp", "-a", forest.path, copies / "cp")
    figure("cp -a from the mount")
    assert found(copies / "cp", ALL) == found(forest.backing, ALL)
    assert descriptors(forest) <= MOST_OPEN
    forgotten(forest)


def test_writing_programs(forest: Mounted, figure: Callable[[str], None]) -> None:
    """Into the mount, and from one place in it to another."""
    (forest.backing / "plain").mkdir()
    subprocess.run(f"mv {forest.backing}/[0-9]* {forest.backing}/plain", shell=True, check=True)
    figure("made and mounted")
    run("cp", "-a", forest.path / "plain", forest.path / "copy")
    figure("cp -a within the mount")
    run("tar", "-C", forest.backing / "plain", "--format=posix", "-cf", forest.backing / "archive", ".")
    (forest.path / "unpacked").mkdir()
    run("tar", "-C", forest.path / "unpacked", "-xpf", forest.path / "archive")
    figure("tar -x")
    expected = found(forest.backing / "plain", ALL)
    for name in ("copy", "unpacked"):
        assert found(forest.backing / name, ALL) == expected
    run("rm", "-r", forest.path / "copy", forest.path / "unpacked")
    figure("rm -r of both")
    assert sorted(os.listdir(forest.backing)) == ["archive", "plain"]
    assert descriptors(forest) <= MOST_OPEN
    forgotten(forest)


def git(top: Path, *words: str) -> str:
    environment = os.environ | IDENTITY
    done = subprocess.run(["git", "-C", top, *words], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"git {words}: {done.stdout}{done.stderr}"
    return done.stdout


def test_git(tmp_path: Path, figure: Callable[[str], None]) -> None:
    needs.programs("git")
    with filesystem(tmp_path / "filesystem", "ext4", IN_GIT * 2) as place:
        (place / "tree").mkdir()
        furnish(place / "tree", IN_GIT)
        with served(tmp_path, place / "tree") as mounted:
            figure("made and mounted")
            git(mounted.path, "init", "-q")
            git(mounted.path, "add", ".")
            git(mounted.path, "commit", "-q", "-m", "all")
            figure("git add and commit")
            assert git(mounted.path, "status", "--porcelain") == git(mounted.backing, "status", "--porcelain") == ""
            figure("git status, on both")
            for number, path in enumerate(files_below(mounted.path / "0")):
                if number % 100 == 0:
                    with open(path, "a") as file:
                        file.write("more")
                elif number % 100 == 1:
                    os.unlink(path)
                elif number % 100 == 2:
                    os.rename(path, f"{path}.moved")
            changed = git(mounted.path, "status", "--porcelain")
            assert changed.count("\n") > 20
            assert changed == git(mounted.backing, "status", "--porcelain")
            git(mounted.path, "stash", "-q", "--include-untracked")
            git(mounted.path, "stash", "pop", "-q")
            assert git(mounted.path, "status", "--porcelain") == changed
            git(mounted.path, "fsck", "--no-progress")
            figure("git stash, pop and fsck")
            assert descriptors(mounted) <= MOST_OPEN
            forgotten(mounted)
