"""Why a removal fails, in sentences: who holds, since when, why, what the hold refuses, and what ends it.

The rule that this module owns: every cause says which of rmdir, unlink and rename fail because of it, of what was asked
about and not of what the hold was placed on; and a hold that refuses none of them, or is not enforced, is told as one
that does not. Nothing here looks anything up: who asks brings the holds.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from attrs import evolve

from exclfs.holds.flags import CLAIMS, NOTHING, OF_DIRECTORIES, Flags, Operation, Place, refuses
from exclfs.holds.lifetime import Close, Connection, Exit, StateFile, Time, Unmount
from exclfs.host.names import printable, quoted
from exclfs.wire.causes import Cause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Holder
    from exclfs.holds.lifetime import End

LABELS: Final = (Operation.UNLINK, Operation.RMDIR, Operation.RENAME)
"""The operations that `blocks` may name. To replace, exchange or white out an inode is to rename in a user's eyes."""

MOST_SENTENCES: Final = 20
"""How many holds `explain` spells out."""


def why(
    path: str,
    holds: Sequence[Hold],
    inode: Inode | None = None,
    *,
    enforced: bool = True,
    now: datetime | None = None,
) -> tuple[Cause, ...]:
    """The causes that these holds are, those that block something first, each kind oldest first.

    Args:
        path: what was asked about, as in the question.
        holds: those that cover it.
        inode: what the path leads to; without it all the holds are on that.
        enforced: whether the mount is in mode enforce.
        now: decides whether a time needs its date; without it, the clock.
    """
    now = now or datetime.now(UTC)
    causes = [_cause(path, hold, _place(path, hold, inode), now) for hold in holds]
    if not enforced:
        causes = [_let_happen(cause) for cause in causes]
    return tuple(sorted(causes, key=lambda cause: not cause.blocks))


def blocked_by(hold: Hold, place: Place = Place.HERE) -> tuple[str, ...]:
    """Which of unlink, rmdir and rename this hold refuses of what lies there."""
    return tuple(operation.value for operation in LABELS if refuses(hold.flags, operation, place))


def explain(
    path: str,
    holds: Sequence[Hold],
    inode: Inode | None = None,
    *,
    enforced: bool = True,
    now: datetime | None = None,
) -> str:
    """All of it in one line, as in the xattr exclfs.why."""
    causes = why(path, holds, inode, enforced=enforced, now=now)
    if not causes:
        return f"Nothing holds {quoted(path)}."
    line = " ".join(cause.text for cause in causes[:MOST_SENTENCES])
    rest = len(causes) - MOST_SENTENCES
    return f'{line} And {rest} more: "exclfs holds" lists them.' if rest > 0 else line


def _place(path: str, hold: Hold, inode: Inode | None) -> Place:
    """Where what was asked about lies, seen from the inode of the hold."""
    if inode is None or hold.inode == inode:
        return Place.HERE
    # A hold on a directory can cover from above and pin what is above it; of one that pins the path is true.
    pins_it = Flags.PIN_PATH in hold.flags and hold.path.startswith(os.path.join(path, ""))
    return Place.ABOVE if pins_it or not hold.flags & OF_DIRECTORIES else Place.BELOW


def _cause(path: str, hold: Hold, place: Place, now: datetime) -> Cause:
    if Close() in hold.ends:
        return _caused("open file", _of_open_file(path, hold, now), blocked_by(hold), hold)
    return _caused("hold", _of_hold(path, hold, place, now), blocked_by(hold, place), hold)


def _caused(kind: str, text: str, blocks: tuple[str, ...], hold: Hold) -> Cause:
    allows = tuple(operation.value for operation in LABELS if operation.value not in blocks)
    return Cause(kind, text, blocks, allows, (), errno="EBUSY" if blocks else None, hold=hold)


def _let_happen(cause: Cause) -> Cause:
    if not cause.blocks:
        return cause
    text = f"{cause.text} The mount does not enforce it now: it refuses nothing until `exclfs mode MNT enforce`."
    return evolve(cause, text=text, blocks=(), errno=None, allows=(*cause.blocks, *cause.allows))


def _of_open_file(path: str, hold: Hold, now: datetime) -> str:
    return (
        f"{quoted(path)} is open: opened by {_holder(hold)} since {time_in_words(hold.since, now)}. "
        f"It refuses {_enumerate(blocked_by(hold), 'and')} by other processes. "
        f"It ends {_ends(hold, now)}."
    )


def _of_hold(path: str, hold: Hold, place: Place, now: datetime) -> str:
    reason = f": {printable(hold.reason).rstrip('.')}" if hold.reason else ""
    return (
        f"{_whose(path, hold, place)} since {time_in_words(hold.since, now)}{reason}. "
        f"{_refusals(hold, place)} "
        f'It ends {_ends(hold, now)}; "exclfs release --break {hold.id}" ends it now.'
    )


def _whose(path: str, hold: Hold, place: Place) -> str:
    match place:
        case Place.BELOW:
            return f"{quoted(path)} is held by {_holder(hold)}, who covers it from above as {quoted(hold.path)},"
        case Place.ABOVE:
            return f"{quoted(path)} is held by {_holder(hold)}, who pins the path of {quoted(hold.path)},"
    by_another_name = "" if hold.path == path else f", as {quoted(hold.path)},"
    return f"{quoted(path)} is held{by_another_name} by {_holder(hold)}"


def _holder(hold: Hold) -> str:
    return f"{printable(hold.holder.name)} ({', '.join(_identity(hold.holder))})"


def _identity(holder: Holder) -> list[str]:
    process = holder.process
    if process.pid is None:
        return [f"user {process.user or process.uid}"]
    parts = [f"pid {process.pid}"]
    if process.comm not in (None, holder.name):
        parts.append(printable(process.comm))
    if process.container is not None:
        parts.append(f"in {printable(process.container)}")
    return parts


def time_in_words(since: datetime, now: datetime) -> str:
    """A time in UTC, to the second; of the day that `now` is in without the date."""
    since, now = since.astimezone(UTC), now.astimezone(UTC)
    return since.strftime("%H:%M:%S UTC" if since.date() == now.date() else "%Y-%m-%d %H:%M:%S UTC")


def _refusals(hold: Hold, place: Place) -> str:
    blocks = blocked_by(hold, place)
    flags = hold.flags if place is Place.HERE else NOTHING  # of what it refuses elsewhere is told where it was placed
    if blocks:
        below = ", here and of every name below" if Flags.NO_REMOVE_BELOW in flags else ""
        above = ", and rename of every directory above" if Flags.PIN_PATH in flags else ""
        return f"It refuses {_enumerate(blocks, 'and')}{below}{above}."
    if hold.flags & CLAIMS:
        below = ", here and below" if Flags.EXCL_SUBTREE in flags else ""
        return f"It refuses other claims{below}, and no removal."
    return "It refuses no removal."


def _ends(hold: Hold, now: datetime) -> str:
    return _enumerate([_end(end, now) for end in hold.ends], "or")


def _end(end: End, now: datetime) -> str:
    match end:
        case Connection():
            return "when the holder's connection closes"
        case Exit():
            return f"when pid {end.pid} exits"
        case Time():
            return f"at {time_in_words(end.at, now)}"
        case Unmount():
            return "at unmount"
        case StateFile():
            return "when it is released (it is kept in the state file)"
        case Close():
            return "when the file is closed"


def _enumerate(words: Sequence[str], last: str) -> str:
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end
