"""Why a removal fails, in sentences: who holds, since when, why, what the hold refuses, and what ends it.

The rule that this module owns: every cause says which of rmdir, unlink and rename fail because of it, and a hold that
refuses none of them is told as one that does not. Nothing here looks anything up: who asks brings the holds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from exclfs.holds.flags import CLAIMS, Operation, refuses
from exclfs.holds.lifetime import Connection
from exclfs.host.names import printable, quoted
from exclfs.wire.messages import Cause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.holds.hold import Hold
    from exclfs.holds.holder import Process
    from exclfs.holds.lifetime import End

LABELS: Final = (Operation.UNLINK, Operation.RMDIR, Operation.RENAME)
"""The operations that `blocks` may name. To replace, exchange or white out an inode is to rename in a user's eyes."""

MOST_SENTENCES: Final = 20
"""How many holds `explain` spells out."""


def why(path: str, holds: Sequence[Hold], *, now: datetime | None = None) -> tuple[Cause, ...]:
    """The causes that these holds are, those that block something first, each kind oldest first.

    Args:
        path: what was asked about, as in the question.
        holds: those that cover it.
        now: decides whether a time needs its date; without it, the clock.
    """
    now = now or datetime.now(UTC)
    causes = (
        Cause(kind="hold", text=_sentences(path, hold, now), blocks=blocked_by(hold), hold=hold) for hold in holds
    )
    return tuple(sorted(causes, key=lambda cause: not cause.blocks))


def blocked_by(hold: Hold) -> tuple[str, ...]:
    """Which of unlink, rmdir and rename this hold refuses."""
    return tuple(operation.value for operation in LABELS if refuses(hold.flags, operation))


def explain(path: str, holds: Sequence[Hold], *, now: datetime | None = None) -> str:
    """All of it in one line, as in the xattr exclfs.why."""
    causes = why(path, holds, now=now)
    if not causes:
        return f"Nothing holds {quoted(path)}."
    line = " ".join(cause.text for cause in causes[:MOST_SENTENCES])
    rest = len(causes) - MOST_SENTENCES
    return f'{line} And {rest} more: "exclfs holds" lists them.' if rest > 0 else line


def _sentences(path: str, hold: Hold, now: datetime) -> str:
    by_another_name = "" if hold.path == path else f", as {quoted(hold.path)},"
    reason = f": {printable(hold.reason).rstrip('.')}" if hold.reason else ""
    return (
        f"{quoted(path)} is held{by_another_name} by {_holder(hold)} since {_time(hold.since, now)}{reason}. "
        f"{_refusals(hold)} "
        f'It ends {_ends(hold)}; "exclfs release --break {hold.id}" ends it now.'
    )


def _holder(hold: Hold) -> str:
    return f"{printable(hold.holder.name)} ({', '.join(_identity(hold.holder.process))})"


def _identity(process: Process) -> list[str]:
    if process.pid is None:
        return [f"user {process.user or process.uid}"]
    parts = [f"pid {process.pid}"]
    if process.comm is not None:
        parts.append(printable(process.comm))
    if process.container is not None:
        parts.append(f"in {printable(process.container)}")
    return parts


def _time(since: datetime, now: datetime) -> str:
    since, now = since.astimezone(UTC), now.astimezone(UTC)
    return since.strftime("%H:%M:%S UTC" if since.date() == now.date() else "%Y-%m-%d %H:%M:%S UTC")


def _refusals(hold: Hold) -> str:
    blocks = blocked_by(hold)
    if blocks:
        return f"It refuses {_enumerate(blocks, 'and')}."
    return "It refuses other claims, and no removal." if hold.flags & CLAIMS else "It refuses no removal."


def _ends(hold: Hold) -> str:
    return _enumerate([_end(end) for end in hold.ends], "or")


def _end(end: End) -> str:
    return "when the holder's connection closes" if isinstance(end, Connection) else "at unmount"


def _enumerate(words: Sequence[str], last: str) -> str:
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end
