"""The functions of `exclfs`: each has a connection of its own to the server of the mount that its path is in."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, overload

from exclfs.client import calls, discovery, sync_client
from exclfs.client.errors import ClientError
from exclfs.client.sync_client import connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime

    from exclfs.client.calls import Path
    from exclfs.client.sync_client import Events
    from exclfs.holds.flags import Flags
    from exclfs.holds.hold import Hold


@overload
def hold(  # type: ignore[overload-overlap]  # a str is a path, though it is an iterable of them, too
    paths: Path,
    *,
    holder: str | None = None,
    reason: str = "",
    claim: bool = True,
    flags: Flags | None = None,
    timeout: float | None = 0.0,
) -> AbstractContextManager[Hold]: ...


@overload
def hold(
    paths: Iterable[Path],
    *,
    holder: str | None = None,
    reason: str = "",
    claim: bool = True,
    flags: Flags | None = None,
    timeout: float | None = 0.0,
) -> AbstractContextManager[tuple[Hold, ...]]: ...


def hold(
    paths: Path | Iterable[Path],
    *,
    holder: str | None = None,
    reason: str = "",
    claim: bool = True,
    flags: Flags | None = None,
    timeout: float | None = 0.0,
) -> AbstractContextManager[Any]:
    """Holds a path, or several, for as long as the `with` block runs, and gives the Hold, or a tuple of them.

    It has a connection of its own, and ends with it: when the block is left, and when this process dies. Nothing is
    held before the block is entered.

    Args:
        paths: what to hold: one path, or up to 10,000 of one mount, all or none; a symlink is held itself.
        holder: who holds, 1 to 255 bytes of UTF-8; by default the name of the running program.
        reason: why, for whoever is refused; up to 1,024 bytes of UTF-8.
        claim: whether it is exclusive: EXCL_INUSE beside NO_REMOVE.
        flags: exactly these, instead.
        timeout: seconds to queue for a claim that is taken; 0: at once or not at all; None: for ever.

    Raises:
        Held: a claim is taken, and was so for `timeout` seconds; the error's `hold` says by whom.
        Gone: a path was removed meanwhile.
        NotPermitted: the caller may not hold this, or not so many.
        BadHold: this is no hold: no flags, a name or reason that is too long, ….
        BadObject: the paths are not all in one mount; or there are more than 10,000.
        NotAMount, NoServer: the path is in no exclfs mount, or in one whose server is gone.
        ClientError: the server did not answer, or not as it should.
        OSError: a path cannot be reached.
    """
    return _held(paths, holder=holder, reason=reason, claim=claim, flags=flags, timeout=timeout)


@contextlib.contextmanager
def _held(paths: Path | Iterable[Path], **wanted: Any) -> Iterator[Any]:
    named = calls.several(paths)
    with connect(named[0]) as client:
        placed = client.hold(named, **wanted)
        try:
            yield placed[0] if isinstance(paths, str | os.PathLike) else placed
        finally:
            # Closing would end it as well, but not before this process goes on: it may remove the path right now.
            with contextlib.suppress(ClientError):
                client.end(placed)


def inuse(path: Path) -> bool:
    """Whether any hold covers `path`. It may be another answer a moment later: to remove it, try, and see EBUSY.

    Raises:
        NotAMount, NoServer, ClientError, OSError: as exclfs.holds().
    """
    with connect(path) as client:
        return client.inuse(path)


def release(path: Path, *, break_it: bool = False, reason: str = "") -> tuple[Hold, ...]:
    """Releases every hold of the caller on `path`, and returns them.

    Args:
        path: what to let go of.
        break_it: those of others, too. Root and the owners of the mount and of the directory may; it is recorded.
        reason: why it is broken, for the record; up to 1,024 bytes of UTF-8.

    Raises:
        NotPermitted: they are not the caller's.
        NotAMount, NoServer, ClientError, OSError: as exclfs.holds().
    """
    with connect(path) as client:
        return client.release(path=path, break_it=break_it, reason=reason)


def events(path: Path, *, own: bool = False, since: datetime | None = None, follow: bool = True) -> Events:
    """What happens from now on, one event after another. When this returns, nothing is missed any more.

    Args:
        path: an object in a mount: what concerns it. Of the root of a mount: what concerns any object in it.
        own: only what concerns the holds of this process.
        since: an aware datetime: before that, what has happened since then, as far as the server still knows it.
        follow: False: nothing from now on, but what has happened, all that the server still knows or since `since`.

    Raises:
        NotAMount, NoServer, ClientError, OSError: as exclfs.holds().
        NotPermitted: the caller has too many connections.
        ValueError: `since` has no time zone.
    """
    server = discovery.find(os.fspath(path))
    return sync_client.listen(server, None if server.whole else path, own=own, since=since, follow=follow)
