"""A cache that may be culled at any time, and whose entries stay while they are used.

Run it on a directory in an exclfs mount::

    exclfs mount /srv/cache /mnt/cache
    .venv/bin/python examples/hold_a_cache.py /mnt/cache

An entry is a directory. Its user holds that directory; the culler first renames an entry away and then dismantles it.
The rename is one step, so an entry is either there and whole, or gone. If it is held, the rename is refused, and the
culler goes on with the next: it never asks beforehand whether an entry is in use, for the answer could be old.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import exclfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Cache:
    """Entries by key, below a directory in an exclfs mount."""

    def __init__(self, root: Path) -> None:
        """Make the directories of the cache.

        Args:
            root: where; its file system must be an exclfs mount for the entries to be held.
        """
        self.entries = root / "entries"
        self.graveyard = root / "graveyard"
        self.entries.mkdir(parents=True, exist_ok=True)
        self.graveyard.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def use(self, key: str, make: Callable[[Path], None]) -> Iterator[Path]:
        """The directory of an entry, made first if it is not there; it stays as long as the `with` block runs."""
        entry = self.entries / key
        with contextlib.ExitStack() as stack:
            while not self._hold(stack, entry):
                self._fill(entry, make)
            os.utime(entry)
            yield entry

    def _hold(self, stack: contextlib.ExitStack, entry: Path) -> bool:
        """Hold an entry, if it is there and stays there until it is held."""
        attempt = contextlib.ExitStack()
        try:
            before = entry.stat()
            # Without a claim, so that any number of users can have it at once.
            attempt.enter_context(exclfs.hold(entry, holder="example", reason=f"using {entry.name}", claim=False))
            if os.path.samestat(before, entry.stat()):
                stack.push(attempt.pop_all())
                return True
        except (FileNotFoundError, exclfs.Gone):
            pass  # the culler came first
        attempt.close()
        return False

    def _fill(self, entry: Path, make: Callable[[Path], None]) -> None:
        """Make an entry out of sight and put it into place; if somebody else was faster, theirs is as good."""
        new = Path(tempfile.mkdtemp(dir=self.graveyard))
        make(new)
        try:
            new.rename(entry)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise
            shutil.rmtree(new)

    def cull(self, keep: int) -> None:
        """Remove the entries that were not used for longest, until `keep` are left or all others are in use."""
        oldest_first = sorted(self.entries.iterdir(), key=lambda entry: entry.stat().st_mtime)
        surplus = len(oldest_first) - keep
        for entry in oldest_first:
            if surplus <= 0:
                return
            grave = self.graveyard / f"{entry.name}-{secrets.token_hex(8)}"
            try:
                entry.rename(grave)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                print(f"culler: {entry.name} stays. " + " ".join(cause.text for cause in exclfs.why(entry).causes))
                continue
            shutil.rmtree(grave)
            surplus -= 1
            print(f"culler: {entry.name} is removed.")


def write_something(directory: Path) -> None:
    """What would be a download or a build elsewhere."""
    (directory / "data").write_text("expensive to make\n")


def main() -> None:
    """Use one of two entries while all of them are culled, and cull once more."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} DIRECTORY-IN-AN-EXCLFS-MOUNT")
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as root:
        cache = Cache(Path(root))
        with cache.use("one", write_something):
            pass
        with cache.use("two", write_something) as entry:
            cache.cull(keep=0)
            print(f"user: {entry.name} says: {(entry / 'data').read_text().strip()}")
        cache.cull(keep=0)


if __name__ == "__main__":
    main()
