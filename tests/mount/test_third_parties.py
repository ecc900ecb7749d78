"""Programs of others that know what a filesystem must do: fio, stress-ng, git, rsync, tar, cp and sqlite.

Each leaves through the mount what it leaves on the backing tree. EXCLFS_AT_LENGTH is how many seconds each may take
(make programs-at-length); without it they are as short as they can be.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

import needs
from twins import ALICE, BOB, Twins, acl_for, as_user, snapshot

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.kinds]

SECONDS: Final = int(os.environ.get("EXCLFS_AT_LENGTH", "0"))
"""How long what can go on for any time does so; 0: as short as can be."""


def run(*words: object, cwd: Path, status: int = 0) -> str:
    """What a program printed, which must end with this exit code."""
    environment = {**os.environ, "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C.UTF-8"}
    options = {"env": environment, "capture_output": True, "text": True, "errors": "surrogateescape"}
    done = subprocess.run(list(map(str, words)), cwd=cwd, check=False, **options)
    assert done.returncode == status, f"{words} in {cwd}: {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


# --- fio -------------------------------------------------------------------------------------------------------------

ENGINES: Final = {
    "psync": ["--ioengine=psync", "--bs=4k-64k", "--end_fsync=1"],
    "mmap": ["--ioengine=mmap", "--bs=4k"],
    "libaio": ["--ioengine=libaio", "--direct=1", "--bs=4k-64k", "--iodepth=8"],
    "io_uring": ["--ioengine=io_uring", "--direct=1", "--bs=4k-64k", "--iodepth=8"],
    "splice": ["--ioengine=splice", "--bs=4k-64k"],
    "append": ["--ioengine=psync", "--rw=write", "--file_append=1", "--bs=4k"],
}


def test_fio_reads_what_it_wrote(twins: Twins) -> None:
    """All engines side by side, each in a file of its own, with a checksum in each block."""
    needs.programs("fio")
    size = "128m" if SECONDS else "1m"
    jobs = [word for name, words in ENGINES.items() for word in (f"--name={name}", "--rw=randwrite", *words)]
    common = ["--direct=0", f"--size={size}", "--verify=crc32c", "--verify_fatal=1", "--fallocate=none"]
    common += [f"--loops={max(1, SECONDS // 10)}", "--thread", "--output-format=terse", "--allow_mounted_write=0"]
    run("fio", *common, *jobs, cwd=twins.mount)
    assert {path.name.split(".")[0] for path in twins.behind.iterdir()} >= set(ENGINES)


# --- stress-ng -------------------------------------------------------------------------------------------------------

QUICK: Final = (  # noqa: SIM905
    "access chmod chown fallocate filename flock fpunch fstat getdent hdd iomix link lockf mknod mmap msync rename"
    " revio seek sendfile splice symlink sync-file touch utime xattr"
).split(" ")
LONG: Final = ["chdir", "dentry", "dir", "dirdeep", "dirmany", "dup", "handle", "lease", "locka", "lockofd", "open"]
SIZES: Final = ["hdd", "fallocate", "iomix", "sync-file", "readahead", "revio", "mmap", "msync"]


def test_stress_ng_finds_nothing(twins: Twins, request: pytest.FixtureRequest) -> None:
    """At length all stressors on each kind of mount; else those that are quick, each on one of them."""
    needs.programs("stress-ng")
    kinds = ("default", "nopassthrough", "ask_always")
    which = next(number for number, kind in enumerate(kinds) if kind in request.node.name)
    stressors = [*QUICK, *LONG] if SECONDS else QUICK[which::3]
    words = ["--timeout", SECONDS or 1, "--seek-size", "4m"]
    for name in stressors:
        words += [f"--{name}", "1"] + ([f"--{name}-bytes", "4m"] if name in SIZES else [])
    said = run("stress-ng", "--temp-path", twins.mount, "--verify", "--oomable", *words, cwd=Path("/"))
    assert "fail" not in said
    assert os.listdir(twins.behind) == []


# --- git -------------------------------------------------------------------------------------------------------------


def git(cwd: Path, *words: object) -> str:
    options = ["-c", "user.name=tester", "-c", "user.email=tester@localhost", "-c", "safe.directory=*"]
    options += ["-c", "init.defaultBranch=main", "-c", "core.fsync=all", "-c", "protocol.file.allow=always"]
    return run("git", *options, *words, cwd=cwd)


def test_git(twins: Twins) -> None:
    needs.programs("git")
    origin, clone = twins.mount / "origin", twins.mount / "clone"
    git(twins.mount, "init", "--quiet", origin)
    files = 3000 if SECONDS else 60
    for number in range(files):
        path = origin / f"directory{number % 7}/file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n" * (number % 50 + 1))
    (origin / "link").symlink_to("directory0")
    (origin / "program").write_text("#!/bin/sh\n")
    (origin / "program").chmod(0o755)
    for message in ("first", "second"):
        (origin / "file").write_text(message)
        git(origin, "add", "--all")
        git(origin, "commit", "--quiet", "--message", message)
    git(twins.mount, "clone", "--quiet", "--no-local", origin, clone)
    git(clone, "worktree", "add", "--quiet", "../worktree", "-b", "branch")
    git(twins.mount / "worktree", "mv", "directory1", "moved")
    git(twins.mount / "worktree", "commit", "--quiet", "--message", "moved")
    git(clone, "merge", "--quiet", "branch")
    git(clone, "gc", "--quiet", "--prune=now")
    for tree in (origin, clone, twins.mount / "worktree", twins.behind / "clone"):
        assert git(tree, "fsck", "--full", "--strict") == ""
        assert git(tree, "status", "--porcelain") == ""
    git(clone, "worktree", "remove", "../worktree")
    assert git(twins.behind / "clone", "log", "--format=%s").split() == ["moved", "second", "first"]


# --- copies ----------------------------------------------------------------------------------------------------------


def make_everything(directory: Path) -> None:
    """One of each kind of thing that is copied."""
    below = directory / "directory"
    below.mkdir()
    for number in range(2000 if SECONDS else 40):
        (below / f"file {number}").write_bytes(bytes([number % 256]) * (number * 37 % 9000))
    os.link(below / "file 1", directory / "hard link")
    os.symlink("directory/file 2", directory / "symbolic link")
    os.symlink("nowhere", directory / "dangling")
    os.mkfifo(directory / "fifo", 0o640)
    os.mknod(directory / "device", 0o20600, os.makedev(1, 3))
    with open(directory / "sparse", "wb") as file:
        file.write(b"begin")
        file.seek(4 << 20)
        file.write(b"end")
    os.mkdir(directory / "sticky", 0o755)
    os.chmod(directory / "sticky", 0o3777)
    os.chown(below / "file 3", ALICE.uid, BOB.gid)
    os.chmod(below / "file 3", 0o6755)
    os.setxattr(below / "file 4", "user.test", b"value")
    os.setxattr(below / "file 5", "system.posix_acl_access", acl_for(ALICE.uid, 6))
    os.setxattr(directory / "sticky", "system.posix_acl_default", acl_for(BOB.uid, 7))
    (directory / os.fsdecode(b"not utf-8 \xff\n")).write_text("odd")
    for number, path in enumerate(sorted(directory.rglob("*"))):
        os.utime(path, ns=(10**18 + number, 10**18 + number * 7), follow_symlinks=False)


COPIES: Final = {
    "rsync": ["rsync", "-aHAXS", "--numeric-ids", "{source}/", "{target}/"],
    "cp": ["cp", "-a", "--sparse=always", "{source}/.", "{target}/"],
    "cp-reflink": ["cp", "-a", "--reflink=auto", "{source}/.", "{target}/"],
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("everything")
    make_everything(directory)
    return directory


def must_be_a_copy(copy: Path, original: Path) -> None:
    """Also in times to the nanosecond; that of the topmost directory is nobody's."""
    found, expected = snapshot(copy), snapshot(original)
    del found["."], expected["."]
    assert found == expected
    for name in expected:
        assert os.lstat(copy / name).st_mtime_ns == os.lstat(original / name).st_mtime_ns, name


@pytest.mark.parametrize("program", COPIES)
def test_copies_to_from_and_within_the_mount(twins: Twins, everything: Path, program: str) -> None:
    needs.programs(COPIES[program][0])
    ways = ((everything, twins.mount / "in"), (twins.mount / "in", twins.mount / "within"))
    for source, target in (*ways, (twins.mount / "within", twins.shadow / "out")):
        target.mkdir()
        run(*(word.format(source=source, target=target) for word in COPIES[program]), cwd=Path("/"))
        must_be_a_copy(target, everything)
    must_be_a_copy(twins.behind / "within", everything)
    assert os.stat(twins.behind / "within/sparse").st_blocks < 2048
    if program == "rsync":
        again = run("rsync", "-aHAX", "--itemize-changes", f"{everything}/", f"{twins.mount}/within/", cwd=Path("/"))
        assert [line for line in again.splitlines() if not line.startswith(".d..t")] == []
        assert run("rsync", "-aHAXnci", f"{twins.mount}/in/", f"{twins.behind}/in/", cwd=Path("/")) == ""


def test_tar(twins: Twins, everything: Path) -> None:
    needs.programs("tar")
    options = ["--acls", "--xattrs", "--sparse", "--numeric-owner", "--format=posix"]
    archive = twins.mount / "archive.tar"
    run("tar", *options, "-cf", archive, "-C", everything, ".", cwd=Path("/"))
    (twins.mount / "extracted").mkdir()
    run("tar", *options, "-xpf", archive, "-C", twins.mount / "extracted", cwd=Path("/"))
    must_be_a_copy(twins.mount / "extracted", everything)
    for where in (twins.mount, twins.behind):
        run("tar", *options, "--compare", "-f", where / "archive.tar", "-C", where / "extracted", cwd=Path("/"))
    again = twins.mount / "again.tar"
    run("tar", *options, "--sort=name", "-cf", again, "-C", twins.mount / "extracted", ".", cwd=Path("/"))
    beside = twins.shadow / "again.tar"
    run("tar", *options, "--sort=name", "-cf", beside, "-C", twins.behind / "extracted", ".", cwd=Path("/"))
    listing = [run("tar", "-tvf", path, "--full-time", cwd=Path("/")) for path in (again, beside)]
    assert listing[0] == listing[1]


def test_find_and_du_tell_the_same_as_behind_the_mount(twins: Twins, everything: Path) -> None:
    run("cp", "-a", f"{everything}/.", twins.behind, cwd=Path("/"))
    told = "%P %y %i %n %m %U %G %s %b %T@ %C@ %l\\0"
    seen, behind = (run("find", ".", "-printf", told, cwd=where).split("\0") for where in (twins.mount, twins.behind))
    assert sorted(seen) == sorted(behind)
    for words in (["du", "-a"], ["du", "-a", "--apparent-size", "-b"], ["ls", "-lAR", "--full-time"]):
        said = [sorted(run(*words, cwd=where).splitlines()) for where in (twins.mount, twins.behind)]
        assert said[0] == said[1]


# --- sqlite ----------------------------------------------------------------------------------------------------------

WRITER: Final = """
import sqlite3, sys
connection = sqlite3.connect("database", timeout=120, isolation_level=None)
connection.execute("pragma synchronous=normal")
for number in range(int(sys.argv[2])):
    connection.execute("begin immediate")
    (total,) = connection.execute("select value from total").fetchone()
    connection.execute("insert into work values (?, ?, zeroblob(?))", (sys.argv[1], number, number * 97 % 5000))
    connection.execute("update total set value = ?", (total + 1,))
    connection.execute("commit")
    if number % 10 == 0:
        assert connection.execute("select count(*) from work").fetchone()[0] >= number
    if number % 37 == 0:
        connection.execute("pragma wal_checkpoint(truncate)")
"""


def test_sqlite_with_several_writers(twins: Twins) -> None:
    """A write-ahead log has an index in shared memory: a mapping of a file of the mount by all of them."""
    rounds, writers = (2000, 8) if SECONDS else (40, 4)
    with closing(sqlite3.connect(twins.mount / "database")) as connection:
        assert connection.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        connection.executescript(
            "create table work (who text, number integer, data blob, primary key (who, number));"
            "create table total (value integer); insert into total values (0);"
        )
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(number), str(rounds)], cwd=twins.mount)
        for number in range(writers)
    ]
    assert [process.wait() for process in processes] == [0] * writers
    for where in (twins.mount, twins.behind):
        with closing(sqlite3.connect(where / "database")) as connection:
            assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
            assert connection.execute("select value from total").fetchone() == (rounds * writers,)
            assert connection.execute("select count(*) from work").fetchone() == (rounds * writers,)


def test_an_ordinary_user_has_the_same(twins: Twins) -> None:
    """What a user may do with these, without being root: a clone and a copy."""
    needs.programs("git", "tar")

    def work() -> None:
        Path("own").mkdir()
        Path("own/file").write_text("text")
        os.chmod("own/file", 0o640)
        subprocess.run("tar -cf own.tar own && tar -C . --transform s/own/new/ -xpf own.tar", shell=True, check=True)
        subprocess.run(["cp", "-a", "own", "copied"], check=True)

    for directory in (twins.mount, twins.shadow):
        as_user(ALICE, work, cwd=directory)
    for name in ("own", "new", "copied"):
        assert snapshot(twins.mount / name) == snapshot(twins.shadow / name)
