"""cachefiles as a simulated holder: the kernel's own rules, on a tree in an exclfs mount.

    with Cache(exclfs_mount.path / "fscache") as cache, cache.look_up("nfs", "4f") as used:
        cache.cull(used.path.parent, used.path.name)     # OSError: EBUSY, as from /dev/cachefiles

So the culler of a cache can be tested against the rules of a kernel that this machine does not have. The rule that this
module owns: what is in use is what carries S_KERNEL_FILE, here a hold with the flag KERNEL_FILE; it is set by
test-and-set, and only what set it takes it off again. As in Linux 5.17 and later: fs/cachefiles/namei.c and daemon.c,
commits 1bd9c4e4f049 (the flag), 07a90e97400c (culling), ea5dc046127e (an error path that forgot to unmark; April 2022).

The flag refuses rmdir and nothing else: not unlink, not rename. That is the kernel's rule too, and why cachefiles asks
before it buries. What differs from the kernel:

- Somebody else's claim (EXCL_INUSE, as of the default hold) counts as the flag. The kernel has one bit for each.
- A new object lies in `tmp` until it is committed, since a file without any name (O_TMPFILE) cannot be held.
- The 256 fan-out directories of a volume are made as they are needed, and another hash says which is whose.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import zlib
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from exclfs.client.sync_client import connect
from exclfs.holds.errors import Gone, Held
from exclfs.holds.flags import Flags

if TYPE_CHECKING:
    from types import TracebackType

    from exclfs.holds.hold import Hold

HOLDER: Final = "cachefiles"
_NOT_NAMES: Final = frozenset({"", ".", ".."})
_FANOUT: Final = 256


class Cache:
    """A cache as it is between `bind` and the closing of /dev/cachefiles.

    It is bound when it is made, and as a context manager withdrawn at the end of its block. All errors are OSError with
    the errno that the kernel has; if it is EBUSY because of a hold, `__cause__` is the Held that says whose.

    Args:
        root: its directory, in an exclfs mount; what is missing in it is made.
        gone: what culling a name that is not there fails with: ENOENT at first, ESTALE since the kernel looks it up by
            start_removing(); a culler has to take both.
        forgets_to_unmark: as before commit ea5dc046127e: an object whose look-up fails after it was marked stays in
            use, for everybody and for as long as the mount lasts.

    Raises:
        OSError: EBUSY: the cache is in use already. Else what its directories cannot be made for.
        NotAMount, NoServer: `root` is in no exclfs mount, or in one whose server is gone.
    """

    def __init__(self, root: Path, *, gone: int = errno.ENOENT, forgets_to_unmark: bool = False) -> None:
        self.root: Final = Path(root)
        self.store: Final = self.root / "cache"
        """Has the volumes, each with its fan-out directories, which have the objects."""
        self.graveyard: Final = self.root / "graveyard"
        """Where buried directories wait for the daemon to dismantle them."""
        self.dead = False
        """A rename into the graveyard has failed: from then on every cull is EIO."""
        self.files_released = 0
        """Objects that were let go of and could be culled now (`freleased` of /dev/cachefiles)."""
        self._gone = gone
        self._forgets = forgets_to_unmark
        self._graves = count(1)
        self._temporary = count(1)
        self._directories: dict[Path, Hold] = {}
        self._objects: set[Object] = set()
        self._tmp = self.root / "tmp"
        self._tmp.mkdir(parents=True, exist_ok=True)
        self._client = connect(self.root)
        try:
            self._get_directory(self.store)
            self._get_directory(self.graveyard)
        except BaseException:
            self._client.close()
            raise

    def look_up(self, volume: str, key: str, *, error: int = 0) -> Object:
        """Looks an object up, or makes it, and marks it in use (cachefiles_look_up_object).

        Args:
            volume: of what; a file name without its first byte.
            key: which object of it; likewise.
            error: the errno with which what comes after the mark shall fail; 0: it does not.

        Raises:
            OSError: EBUSY: it is in use already. `error`, if that was asked for. EIO: the cache is withdrawn.
        """
        self._must_be_bound()
        fan = self.directory(volume, key)
        self._get_directory(fan.parent)
        self._get_directory(fan)
        path = fan / f"D{key}"
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                return self._open(path, error)
            self._bury(path, None)  # FSCACHE_OBJECT_IS_WEIRD
        return self._create(path, error)

    def directory(self, volume: str, key: str) -> Path:
        """The fan-out directory in which the object is, or would be.

        Raises:
            ValueError: a name has a slash, or is none.
        """
        for name in (volume, key):
            if not name or "/" in name or "\0" in name:
                raise ValueError(f"{name!r} is no name")
        return self.store / f"I{volume}" / f"@{zlib.crc32(os.fsencode(key)) % _FANOUT:02x}"

    def cull(self, directory: Path, name: str) -> None:
        """What `cull NAME` does for a daemon whose working directory is this one (cachefiles_cull).

        A file is unlinked, a directory moved to the graveyard. It returns as if it had been when that rename fails: the
        cache is dead then. An unlink that fails leaves the victim marked.

        Raises:
            OSError: EINVAL: "/" in the name. EBUSY: it is in use. ENOENT or ESTALE, see `gone`: it is not there. EIO:
                anything else, and a cache that is withdrawn or dead. ENOTDIR: this is no directory.
        """
        victim = self._look_up_for_cull(directory, name)
        mark = self._mark(victim, "being culled")  # "Stop the cache from picking it back up"
        try:
            self._bury(victim, mark)
        except OSError as failed:
            raise OSError(errno.EIO, "cull: internal error", str(victim)) from failed

    def inuse(self, directory: Path, name: str) -> bool:
        """What `inuse NAME` answers: whether it is EBUSY (cachefiles_check_in_use).

        Raises:
            OSError: as cull(), except EBUSY.
        """
        try:
            self._look_up_for_cull(directory, name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return True
        return False

    def dismantle(self) -> tuple[Path, ...]:
        """Removes what is buried, as cachefilesd does, and gives what it could not remove."""
        left: list[Path] = []
        for directory, directories, files in os.walk(self.graveyard, topdown=False):
            for remove, names in ((os.unlink, files), (os.rmdir, directories)):
                for name in names:
                    try:
                        remove(Path(directory, name))
                    except OSError:
                        left.append(Path(directory, name))
        return tuple(left)

    def withdraw(self) -> None:
        """Closes what is open and unmarks what the cache knows to have marked. What it forgot stays marked."""
        if self._client.closed:
            return
        for used in tuple(self._objects):
            used.close()
        for mark in reversed(self._directories.values()):
            self._client.end([mark])
        self._directories.clear()
        self._client.close()

    # --- marks: S_KERNEL_FILE -------------------------------------------------------------------------------------

    def _mark(self, path: Path, reason: str, *, forgotten: bool = False) -> Hold:
        """Test-and-set (__cachefiles_mark_inode_in_use)."""
        try:
            # A bit in i_flags lasts as long as the inode is in memory: one that nobody takes off outlives the cache.
            (mark,) = self._client.hold(
                path, holder=HOLDER, reason=reason, flags=Flags.KERNEL_FILE, until_unmount=forgotten
            )
        except Held as held:
            raise _in_use(path, held) from held
        except Gone as gone:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path)) from gone
        return mark

    def _unmark(self, mark: Hold) -> None:
        self._client.end([mark])

    def _get_directory(self, path: Path) -> None:
        """Makes it if it is not there, and marks it once (cachefiles_get_directory)."""
        if path not in self._directories:
            path.mkdir(exist_ok=True)
            self._directories[path] = self._mark(path, "directory of a cache")

    # --- objects ---------------------------------------------------------------------------------------------------

    def _open(self, path: Path, error: int) -> Object:
        """cachefiles_open_file: the mark comes first."""
        forgotten = bool(error) and self._forgets
        mark = self._mark(path, f"object {path.name[1:]}", forgotten=forgotten)
        try:
            if error:
                raise OSError(error, os.strerror(error), str(path))
            opened = Object(self, path, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), mark)
            os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))  # touch_atime: culling goes by it
        except OSError:
            if not forgotten:
                self._unmark(mark)
            raise
        self._objects.add(opened)
        return opened

    def _create(self, path: Path, error: int) -> Object:
        """cachefiles_create_tmpfile."""
        temporary = self._tmp / f"{os.getpid()}-{next(self._temporary)}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            mark = self._mark(temporary, f"object {path.name[1:]}")
            if error:
                self._unmark(mark)  # nobody ever finds a file without a name, marked or not
                raise OSError(error, os.strerror(error), str(path))
        except BaseException:
            os.close(descriptor)
            temporary.unlink()
            raise
        made = Object(self, path, descriptor, mark, temporary)
        self._objects.add(made)
        return made

    def _let_go(self, used: Object, mark: Hold, *, committed: bool) -> None:
        """cachefiles_unmark_inode_in_use."""
        self._objects.discard(used)
        self._unmark(mark)
        self.files_released += committed

    # --- culling ---------------------------------------------------------------------------------------------------

    def _look_up_for_cull(self, directory: Path, name: str) -> Path:
        if "/" in name:
            raise OSError(errno.EINVAL, "cull command requires dirfd and filename", name)
        self._must_be_bound()
        if self.dead:
            raise OSError(errno.EIO, "cull applied to dead cache")
        victim = Path(directory, name)
        if not Path(directory).is_dir():
            raise OSError(errno.ENOTDIR, "cull command requires dirfd to be a directory", str(directory))
        if name in _NOT_NAMES:
            raise OSError(errno.EIO, "cull: internal error", str(victim))
        try:
            marks = [hold for hold in self._client.holds(victim) if hold.flags & Flags.KERNEL_FILE]
        except FileNotFoundError:
            raise OSError(self._gone, os.strerror(self._gone), str(victim)) from None
        if marks:
            held = Held(marks[0])
            raise _in_use(victim, held) from held
        return victim

    def _bury(self, victim: Path, mark: Hold | None) -> None:
        """cachefiles_bury_object: files are unlinked, directories await their end in the graveyard."""
        if not stat.S_ISDIR(os.lstat(victim).st_mode):
            os.unlink(victim)
        else:
            try:
                os.rename(victim, self._grave())
            except OSError:
                self.dead = True  # "Rename failed with error": cachefiles_io_error, and still it returns 0
        if mark is not None:
            self._unmark(mark)

    def _grave(self) -> Path:
        while True:
            grave = self.graveyard / f"{int(time.time()):08x}{next(self._graves):08x}"
            if not os.path.lexists(grave):
                return grave

    def _must_be_bound(self) -> None:
        if self._client.closed:
            raise OSError(errno.EIO, "the cache is withdrawn", str(self.root))

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Withdraws the cache."""
        self.withdraw()


class Object:
    """An object in use: marked from look_up() until it is closed. As a context manager it closes itself."""

    def __init__(self, cache: Cache, path: Path, descriptor: int, mark: Hold, temporary: Path | None = None) -> None:
        self.path: Final = path
        """Where it is, or will be when it is committed."""
        self._cache = cache
        self._descriptor = descriptor
        self._mark: Hold | None = mark
        self._temporary = temporary

    @property
    def is_new(self) -> bool:
        """Whether it has no name yet, so that no culler can see it."""
        return self._temporary is not None

    def fileno(self) -> int:
        """Its open descriptor, for reading and writing; -1 once it is closed."""
        return self._descriptor

    def commit(self) -> None:
        """Gives a new object its name (cachefiles_commit_tmpfile); marked or not, who has the name goes.

        Raises:
            OSError: EBUSY: who has the name cannot be removed.
        """
        if self._temporary is None:
            return
        while True:
            try:
                os.link(self._temporary, self.path)
                break
            except FileExistsError:
                os.unlink(self.path)
        os.unlink(self._temporary)
        self._temporary = None

    def close(self) -> None:
        """Commits it if it is new, unmarks and closes it."""
        mark, self._mark = self._mark, None
        if mark is None:
            return
        try:
            self.commit()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
            self._cache._let_go(self, mark, committed=not self.is_new)
            if self._temporary is not None:
                self._temporary.unlink()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes it."""
        self.close()


def _in_use(path: Path, held: Held) -> OSError:
    return OSError(errno.EBUSY, f"inode already in use, by {held.hold.holder.name}", str(path))
