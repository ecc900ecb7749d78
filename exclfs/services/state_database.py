"""The database of a state file: how it comes to be, what it must be to be opened, and what its rows are.

The rules that this module owns:

- It is made complete or not at all, and only its owner can write to it.
- Before SQLite may touch it, which would recover, convert or fill what it is given, its header is looked at; before any
  of it is believed, all of it is checked. What is not in every respect the state file of this tree is left as it is.
- One server at a time has it: SQLite's exclusive lock goes with the process, however that ends.
- A row is a document with its digest: SQLite notices a damaged page, and the digest a damaged letter.

Rollback journal and not WAL: the state is one file, which one can look at, copy and restore by itself, and after a
SIGKILL between two transactions it is as it was. In exclusive mode with synchronous=FULL a commit is on the disk when
it returns (https://www.sqlite.org/pragma.html).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import sqlite3
import stat
import struct
import tempfile
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from attrs import frozen
from cattrs.strategies import configure_tagged_union

from exclfs.holds.errors import UnknownFlag
from exclfs.holds.flags import Flags, parse
from exclfs.holds.hold import Hold
from exclfs.holds.lifetime import End
from exclfs.host.names import quoted
from exclfs.mirror import Identity
from exclfs.wire.primitives import make_converter, structure

if TYPE_CHECKING:
    from collections.abc import Iterator

    import cattrs

APPLICATION_ID: Final = 0x4558434C
"""By which SQLite and file(1) tell whose database it is: EXCL."""
VERSION: Final = 1

_MAGIC: Final = b"SQLite format 3\0"
_HEADER: Final = struct.Struct(">60xI4xI28x")
"""Of the first 100 bytes of a database the user version and the application id (https://www.sqlite.org/fileformat.html)."""
_BESIDE: Final = ("-journal", "-wal")
"""What SQLite believes if it lies beside a database."""
_SCHEMA: Final = (
    "CREATE TABLE hold (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document TEXT NOT NULL, digest BLOB)",
    "CREATE TABLE tree (document TEXT NOT NULL, digest BLOB)",
)
_FLOCK: Final = struct.Struct("@hhqqi4x")
"""struct flock of fcntl(2): type, whence, start, len, pid."""

T = TypeVar("T")


class StateFileError(Exception):
    """The file cannot be the state file of this mount; `why` says what is the matter with it."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"the state file {quoted(path)} {why}")
        self.path = path
        self.why = why


@frozen
class Kept:
    """A hold as it is in the file."""

    hold: Hold
    """Its path is relative to the mountpoint."""
    identity: Identity
    boot: str
    """The boot in which the deadline of a time counts."""


def open_database(path: str, root: Identity) -> tuple[sqlite3.Connection, tuple[Kept, ...]]:
    """Opens the database, or makes it if there is none, and takes it for this process.

    Args:
        path: of the file.
        root: of the root of the tree, which the file remembers.

    Returns:
        one connection, which threads may use in turn, and the holds in the order in which they were placed.

    Raises:
        StateFileError: it is not the state file of this tree, or another server has it.
    """
    try:
        if not os.path.lexists(path):
            _create(path, root)
        _inspect(path)
        with ExitStack() as after_a_failure:
            database = after_a_failure.enter_context(closing(_connect(path)))
            found = _check(path, database, root)
            after_a_failure.pop_all()
            return database, found
    except OSError as error:
        raise StateFileError(path, f"cannot be opened: {error.strerror}") from error
    except sqlite3.Error as error:
        raise StateFileError(path, _worded(path, error)) from error
    except (ValueError, UnknownFlag) as error:
        raise StateFileError(path, _damaged(str(error))) from error


def _create(path: str, root: Identity) -> None:
    """Makes the file, complete, 0600 and on the disk, or not at all."""
    directory = os.path.dirname(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(prefix=".exclfs-state-", dir=directory)
    os.close(descriptor)
    try:
        with closing(_connect(temporary)) as database:
            database.execute("PRAGMA journal_mode = MEMORY")  # if this comes to nothing, nothing lies beside it
            database.execute("BEGIN")
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {VERSION}")
            for statement in _SCHEMA:
                database.execute(statement)
            database.execute("INSERT INTO tree VALUES (?, ?)", sealed(root))
            database.execute("COMMIT")
        with suppress(FileExistsError):  # another server was faster, and will be found to have it
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    synced = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(synced)
    finally:
        os.close(synced)


def _inspect(path: str) -> None:
    """Looks at the file with our own eyes before SQLite may, which would recover, convert or fill what it is given.

    Raises:
        StateFileError: it is no state file of ours.
    """
    for name in (path, *(path + suffix for suffix in _BESIDE)):
        if name == path or os.path.lexists(name):
            _must_be_ours_alone(name)
    with open(path, "rb", buffering=0) as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise StateFileError(path, "is something else; name another file")
    version, application = _HEADER.unpack(header)
    if application != APPLICATION_ID:
        raise StateFileError(path, "is a database of something else; name another file")
    if version != VERSION:
        raise StateFileError(path, f"is of version {version}, and this exclfs knows version {VERSION} alone")


def _must_be_ours_alone(path: str) -> None:
    # By lstat(2): to open a FIFO or a device may wait, or do something.
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise StateFileError(path, "is not a regular file")
    if status.st_uid != os.geteuid():
        raise StateFileError(path, f"belongs to uid {status.st_uid} and not to you")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StateFileError(path, f"can be written by others; chmod go-w {shlex.quote(path)}")


def _connect(path: str) -> sqlite3.Connection:
    """One connection, which threads use in turn; every statement is a transaction of its own unless it says BEGIN."""
    name = quote(os.fsencode(os.path.abspath(path).lstrip("/")))
    uri = f"file:/{name}?mode=rw"  # which makes no file
    database = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    # A damaged text is to be told from a sound one by its digest, like everything else.
    database.text_factory = lambda text: text.decode(errors="replace")
    try:
        for setting in ("locking_mode = EXCLUSIVE", "synchronous = FULL", "trusted_schema = OFF"):
            database.execute(f"PRAGMA {setting}")
    except BaseException:
        database.close()
        raise
    return database


def _check(path: str, database: sqlite3.Connection, root: Identity) -> tuple[Kept, ...]:
    """Takes the file for this process, checks it from end to end, and gives what is in it.

    Raises:
        StateFileError: it is of another tree.
        sqlite3.Error: it is damaged, or another server has it.
        ValueError, UnknownFlag: it is damaged.
    """
    database.execute("BEGIN EXCLUSIVE")
    database.execute("COMMIT")  # in exclusive mode the lock stays
    for (verdict,) in database.execute("PRAGMA integrity_check(1)").fetchall():
        if verdict != "ok":
            raise ValueError(verdict)
    schema = database.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name").fetchall()
    if schema != [(statement,) for statement in _SCHEMA]:
        raise ValueError("its tables are not as they were made")
    trees = database.execute("SELECT document, digest FROM tree").fetchall()
    if len(trees) != 1:
        raise ValueError(f"it has {len(trees)} trees")
    document, digest = trees[0]
    tree = _unsealed(document, digest, Identity)
    found = tuple(holds_in(database))
    if not _is_same_tree(tree, root):
        raise StateFileError(path, "is of another tree; name another file")
    database.execute("PRAGMA journal_mode = DELETE")
    return found


def holds_in(database: sqlite3.Connection) -> Iterator[Kept]:
    """Every hold, in the order in which they were placed.

    Raises:
        ValueError, UnknownFlag: a row is damaged.
    """
    for name, document, digest in database.execute("SELECT id, document, digest FROM hold ORDER BY number").fetchall():
        kept = _unsealed(document, digest, Kept)
        if kept.hold.id != name:
            raise ValueError("a row is not as it was written")
        yield kept


def _is_same_tree(one: Identity, other: Identity) -> bool:
    """Whether these are the roots of one tree. A kernel may give handles where another gave none."""
    handles = {one.handle, other.handle} - {b""}
    return len(handles) < 2 and all(
        getattr(one, name) == getattr(other, name) for name in ("ino", "birth_seconds", "birth_nanoseconds", "type")
    )


def _worded(path: str, error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"is in use by another server{_pid_of_user(path)}"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _damaged(str(error))
    return f"cannot be used: {error}"


def _damaged(how: str) -> str:
    return f"is damaged ({' '.join(how.split())}); restore it from a copy, or move it away to begin without holds"


def _pid_of_user(path: str) -> str:
    """Who has a lock on it (F_GETLK, fcntl(2)). Not to be asked by who has one: closing the file would end it."""
    with open(path, "rb", buffering=0) as file:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, question))
    return f" (pid {pid})" if kind != fcntl.F_UNLCK and pid > 0 else ""


# --- documents --------------------------------------------------------------------------------------------------------


def sealed(value: Kept | Identity) -> tuple[str, bytes]:
    """A value as a row has it: as JSON, and what shows that nobody has changed that."""
    document = json.dumps(_CONVERTER.unstructure(value))
    return document, _digest(document)


def _unsealed(document: object, digest: object, shape: type[T]) -> T:
    """Raises ValueError or UnknownFlag: it is not what was written."""
    if not isinstance(document, str) or digest != _digest(document):
        raise ValueError("a row is not as it was written")
    return structure(_CONVERTER, json.loads(document), shape)


def _digest(document: str) -> bytes:
    return hashlib.blake2b(document.encode(), digest_size=16).digest()


def _make() -> cattrs.Converter:
    converter = make_converter(strict=True)
    converter.register_structure_hook(Flags, lambda names, _: parse(names))
    converter.register_unstructure_hook(Flags, lambda flags: list(flags.names))
    converter.register_structure_hook(bytes, lambda digits, _: bytes.fromhex(digits))
    converter.register_unstructure_hook(bytes, bytes.hex)
    configure_tagged_union(End, converter, tag_name="end")
    return converter


_CONVERTER: Final = _make()
