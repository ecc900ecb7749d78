"""Real files, good and bad, and real processes that are killed while they write them."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from exclfs.holds.flags import Flags
from exclfs.holds.lifetime import StateFile, Unmount
from exclfs.mirror import ROOT, Identity
from exclfs.services.state_database import APPLICATION_ID, StateFileError, _digest, open_database
from unserved import mirror_of, server

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = "abcdefgh"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in NAMES:
        (tree / name).mkdir()
    return tree


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


# --- SIGKILL ----------------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
from datetime import UTC, datetime
import trio
from exclfs.holds.flags import DEFAULT
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import StateFile as Kept
from exclfs.mirror import Identity
from exclfs.services.state_file import StateFile

def identity(inode):
    return Identity(b"a", inode.ino, 0, 0, 0, 0o040000, False, 0, b"")

async def main():
    state = StateFile.open(sys.argv[1], identity(Inode(1, 2)), identity, "/mnt")
    for number in range(int(sys.argv[2]), 1_000_000):
        holder = Holder("writer", Process(os.getpid(), 0))
        hold = Hold(f"h{number}", Inode(1, number), "/mnt/a", DEFAULT, holder, "x" * 900, datetime.now(UTC), (Kept(),))
        await state.add([hold])
        os.write(1, b"+%d\\n" % number)
        if number % 2:
            await state.remove([hold.id])
            os.write(1, b"-%d\\n" % number)

trio.run(main)
"""


def test_killed_in_the_middle_of_a_commit(state: Path) -> None:
    """What was answered yes is there, whole; what was told to be removed is not; of the rest, all or nothing."""
    first = 0
    acknowledged: set[int] = set()
    root = Identity(b"a", 2, 0, 0, 0, 0o040000, False, 0, b"")
    for turn in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(state), str(first)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(1 + turn * 5)]
            process.kill()
            said += process.stdout.readlines()
        last = 0
        for word in said:
            assert word.endswith(b"\n")
            last = int(word[1:])
            (acknowledged.add if word.startswith(b"+") else acknowledged.remove)(last)
        database, found = open_database(str(state), root)
        database.close()
        there = {int(kept.hold.id[1:]) for kept in found}
        # Only of the last, the answer may have been on its way.
        assert there ^ acknowledged <= {last, last + 1}
        acknowledged = there
        first = last + 2
    assert first > 500


# --- one server at a time ---------------------------------------------------------------------------------------------

OPENER = """
import sys
from exclfs.mirror import Identity
from exclfs.services.state_database import StateFileError, open_database
try:
    database = open_database(sys.argv[1], Identity(b"a", 2, 0, 0, 0, 0o040000, False, 0, b""))
    print("has it", flush=True)
except StateFileError as error:
    print(error, flush=True)
sys.stdin.read()
"""


@contextmanager
def another(state: Path, number: int = 1) -> Iterator[list[tuple[subprocess.Popen[str], str]]]:
    """Other servers, begun at once, by what each has to say. They are killed in the end."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(number)
    ]
    try:
        yield [(process, process.stdout.readline().rstrip("\n")) for process in running if process.stdout]
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_a_second_server_is_told_who_has_it(tree: Path, state: Path) -> None:
    with another(state) as [(other, said)]:
        assert said == "has it"
        before = snapshot(state.parent)
        with pytest.raises(StateFileError) as caught, server(tree, state):
            pass
        assert str(caught.value) == f'the state file "{state}" is in use by another server (pid {other.pid})'
        assert snapshot(state.parent) == before
    with another(state) as [(_, said)]:
        assert said == "has it"


def test_of_many_that_make_it_one_has_it(state: Path) -> None:
    with another(state, 6) as servers:
        assert sorted("in use" if "in use by" in said else said for _, said in servers) == ["has it", *["in use"] * 5]
    assert os.listdir(state.parent) == ["state"]


# --- what is no state file of ours ------------------------------------------------------------------------------------


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    """Everything in a directory but the tree: contents, modes and times."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.iterdir()):
        if path.name != "tree":
            status = path.lstat()
            contents = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
            found[path.name] = (contents, status.st_mode, status.st_uid, status.st_ino, status.st_mtime_ns)
    return found


def must_be_refused(tree: Path, state: Path, why: str) -> None:
    """In one line, and everything is left as it is."""
    before = snapshot(state.parent)
    with pytest.raises(StateFileError, match=why) as caught, server(tree, state):
        pass
    assert str(caught.value).startswith(f'the state file "{state}')
    assert "\n" not in str(caught.value)
    assert snapshot(state.parent) == before


@pytest.fixture
def good(tree: Path, state: Path) -> Path:
    """A state file with holds in it."""

    async def fill() -> None:
        with server(tree, state) as first:
            for name in NAMES:
                await first.hold(name, StateFile(), Unmount(), flags=Flags.NO_REMOVE, reason=f"reason {name} " * 20)

    trio.run(fill)
    return state


def test_a_new_one_is_for_its_owner_alone(tree: Path, state: Path) -> None:
    umask = os.umask(0)
    try:
        with server(tree, state):
            assert stat.S_IMODE(state.stat().st_mode) == 0o600
            assert sorted(os.listdir(state.parent)) == ["state", "tree"]
    finally:
        os.umask(umask)
    with closing(sqlite3.connect(state)) as database:
        assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert database.execute("PRAGMA user_version").fetchone() == (1,)


@pytest.mark.parametrize(
    "contents",
    [b"", b"\0", b"hello\n", b"SQLite format 3\0", b"SQLite format 3\0" * 100, bytes(8192), os.urandom(8192)],
)
def test_something_else_is_refused(tree: Path, state: Path, contents: bytes) -> None:
    state.write_bytes(contents)
    must_be_refused(tree, state, "something else")


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE bookmarks (url TEXT); INSERT INTO bookmarks VALUES ('https://example.org')",
        "PRAGMA application_id = 252006674; CREATE TABLE repository (x)",
        "PRAGMA journal_mode = WAL; CREATE TABLE a (b)",
        "CREATE TABLE hold (number INTEGER PRIMARY KEY, id TEXT)",
    ],
)
def test_a_foreign_database_is_refused(tree: Path, state: Path, script: str) -> None:
    with closing(sqlite3.connect(state)) as database:
        database.executescript(script)
    must_be_refused(tree, state, "a database of something else")


def test_a_foreign_database_that_was_not_closed_is_refused(tree: Path, state: Path) -> None:
    """It has a journal to be rolled back, which is for its owner to do."""
    script = """if True:
        import os, sqlite3, sys
        database = sqlite3.connect(sys.argv[1])
        database.execute("PRAGMA cache_size = 1")
        database.execute("CREATE TABLE a (b)")
        database.executemany("INSERT INTO a VALUES (?)", [("x" * 1000,)] * 1000)
        os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", script, str(state)], check=False)
    assert (state.parent / "state-journal").stat().st_size > 0
    must_be_refused(tree, state, "something else")


@pytest.mark.parametrize("version", [0, 2, 2**31 - 1])
def test_another_version_is_refused(tree: Path, good: Path, version: int) -> None:
    with closing(sqlite3.connect(good)) as database:
        database.execute(f"PRAGMA user_version = {version}")
    must_be_refused(tree, good, f"is of version {version}, and this exclfs knows version 1 alone")


def test_that_of_another_tree_is_refused(tree: Path, good: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tree, other)
    before = snapshot(tmp_path)
    with pytest.raises(StateFileError, match="is of another tree"), server(other, good):
        pass
    assert snapshot(tmp_path) == before
    tree.rename(tmp_path / "elsewhere")
    with server(tmp_path / "elsewhere", good):  # it is the tree that counts, not its name
        pass


def test_what_is_no_regular_file_is_refused(tree: Path, good: Path, tmp_path: Path) -> None:
    kinds = tmp_path / "kinds"
    kinds.mkdir()
    (kinds / "directory").mkdir()
    (kinds / "link").symlink_to(good)
    (kinds / "dangling").symlink_to(kinds / "nothing")
    (kinds / "loop").symlink_to(kinds / "loop")
    os.mkfifo(kinds / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(kinds / "socket"))
    for name in ("directory", "link", "dangling", "loop", "fifo", "socket"):
        must_be_refused(tree, kinds / name, "is not a regular file")
    with pytest.raises(StateFileError, match="is not a regular file"), server(tree, Path("/dev/null")):
        pass


@pytest.mark.parametrize("beside", ["-journal", "-wal"])
def test_what_lies_beside_it_is_believed_only_if_it_is_ours(tree: Path, good: Path, beside: str) -> None:
    """SQLite would take the contents of these into the database."""
    planted = good.with_name(good.name + beside)
    planted.symlink_to(good)
    must_be_refused(tree, good, f'"{good}{beside}" is not a regular file'.replace('"', ".", 1))
    planted.unlink()
    planted.write_bytes(b"x" * 1000)
    planted.chmod(0o666)
    must_be_refused(tree, good, "can be written by others")


def test_one_that_others_can_write_is_refused(tree: Path, good: Path) -> None:
    for mode in (0o620, 0o602, 0o666):
        good.chmod(mode)
        must_be_refused(tree, good, f"can be written by others; chmod go-w {good}")
    good.chmod(0o644)
    with server(tree, good):
        pass


@pytest.mark.root
def test_one_of_somebody_else_is_refused(tree: Path, good: Path) -> None:
    os.chown(good, 65534, 65534)
    must_be_refused(tree, good, "belongs to uid 65534")


def test_where_no_file_can_be_there_is_none(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for above, why in (("none", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(StateFileError, match=f"cannot be opened: {why}"), server(tree, tmp_path / above / "state"):
            pass


@pytest.mark.root
def test_without_permission_there_is_no_state(good: Path) -> None:
    """Asked by this process as another user (seteuid(2))."""
    before = snapshot(good.parent)
    new = good.parent / "new"
    root = Identity(b"", 2, 0, 0, 0, 0o040000, False, 0, b"")
    os.seteuid(65534)
    try:
        for path in (good, new):
            with pytest.raises(StateFileError, match="cannot be opened: Permission denied"):
                open_database(str(path), root)
    finally:
        os.seteuid(0)
    assert snapshot(good.parent) == before


# --- damage -----------------------------------------------------------------------------------------------------------


def test_one_that_is_cut_off_is_refused(tree: Path, good: Path) -> None:
    """At every 512 bytes."""
    whole = good.read_bytes()
    assert len(whole) > 16_000
    for size in range(0, len(whole), 512):
        good.write_bytes(whole[:size])
        must_be_refused(tree, good, "is damaged|something else")
    good.write_bytes(whole)
    with server(tree, good):
        pass


@pytest.mark.parametrize("pattern", [0xFF, 0x01, 0x80])
def test_a_flipped_byte_is_noticed_where_it_matters(tree: Path, good: Path, pattern: int) -> None:
    """Refused and left as it is, or every hold is as it was."""
    whole = good.read_bytes()
    with mirror_of(tree) as mirror:
        root = mirror.identity(mirror.identify(ROOT))
    database, holds = open_database(str(good), root)
    database.close()
    refused = 0
    for offset in [*range(108), *range(108, len(whole), 37)]:
        damaged = bytearray(whole)
        damaged[offset] ^= pattern
        good.write_bytes(damaged)
        why = ""
        try:
            database, found = open_database(str(good), root)
        except StateFileError as error:
            why = str(error)
            refused += 1
        if why:
            assert "\n" not in why
            assert good.read_bytes() == damaged
        else:
            database.close()
            assert found == holds, offset
        assert sorted(os.listdir(good.parent)) == ["state", "tree"], offset
    assert refused > 100


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE hold SET document = replace(document, 'reason a', 'reason b')",
        "UPDATE hold SET digest = zeroblob(16)",
        "UPDATE hold SET digest = NULL WHERE number = 3",
        "UPDATE hold SET document = x'ff00ff'",
        "UPDATE hold SET id = 'h99' WHERE number = 3",
        "UPDATE tree SET digest = NULL",
        "DELETE FROM tree",
        "INSERT INTO tree SELECT * FROM tree",
        "DROP TABLE tree",
        "DROP TABLE hold",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER more AFTER INSERT ON hold BEGIN DELETE FROM hold; END",
        "ALTER TABLE hold ADD COLUMN more TEXT",
    ],
)
def test_a_row_that_we_have_not_written_is_damage(tree: Path, good: Path, statement: str) -> None:
    with closing(sqlite3.connect(good)) as database, database:
        database.execute(statement)
    must_be_refused(tree, good, "is damaged")


def test_a_row_from_the_future_is_damage(tree: Path, good: Path) -> None:
    """Sealed as it should be, but of a shape that this version does not write."""
    document = '{"hold": {}, "identity": {}, "boot": "x", "more": 1}'
    with closing(sqlite3.connect(good)) as database, database:
        database.execute(
            "INSERT INTO hold (id, document, digest) VALUES ('h1000', ?, ?)", (document, _digest(document))
        )
    must_be_refused(tree, good, "is damaged")
