"""From what was recorded to moments on a timeline: which of it is told, in whose column, in which words.

The rule that this module owns: a story is about what somebody stopped at, held, or was refused. Of all other operations
it tells those on the same paths, and those that made or removed something; looking around is left out. It is pure: what
trails and servers have recorded comes in, moments go out.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from exclfs.gating import Operation, When
from exclfs.holds.events import (
    Broken,
    Event,
    Expired,
    Locked,
    LockFailed,
    ModeChanged,
    Orphaned,
    Reaped,
    Refused,
    UnlockBad,
    Unlocked,
)
from exclfs.testing.timeline import Kind, Moment
from exclfs.testing.trail import Fate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from exclfs.holds.hold import Hold
    from exclfs.holds.holder import Process
    from exclfs.testing.trail import Entry

MOST: Final = 200
"""How many moments are told; of more, the last."""
_MAKING: Final = frozenset({
    Operation.CREATE, Operation.MKDIR, Operation.MKNOD, Operation.SYMLINK, Operation.LINK,
    Operation.UNLINK, Operation.RMDIR, Operation.RENAME,
})  # fmt: skip
_ENDED: Final = {
    Unlocked: "released",
    Reaped: "ended: its holder is gone",
    Expired: "ended: its time was over",
    Orphaned: "ended: removed behind the mount",
    Broken: "broken",
}
"""How a hold has ended."""


def tell(entries: Iterable[Entry], events: Iterable[Event], *, root: str, clock: int) -> list[Moment]:
    """The story of a test.

    Args:
        entries: of the trails, in any order.
        events: of the server.
        root: the mountpoint; paths are told relative to it.
        clock: what the clock of events (the time of day) is ahead of that of entries (CLOCK_MONOTONIC), in nanoseconds.
    """
    entries, events = sorted(entries, key=lambda entry: entry.number), tuple(events)
    teller = _Teller(entries, events, root, clock)
    moments = [*teller.operations(entries), *(moment for event in events for moment in teller.event(event))]
    moments.sort(key=lambda moment: moment.at)
    if len(moments) <= MOST:
        return moments
    left_out = len(moments) - MOST
    first = moments[left_out]
    note = Moment(at=first.at, who=first.who, kind=Kind.NOTED, text=f"({left_out} moments before that are left out)")
    return [note, *moments[left_out:]]


class _Teller:
    """Who is called what, and which paths matter."""

    def __init__(self, entries: Sequence[Entry], events: Sequence[Event], root: str, clock: int) -> None:
        self._root = root
        self._clock = clock
        self._names: dict[int, str] = {}
        for process in (process for event in events for process in _processes(event)):
            if process.pid is not None and process.comm:
                self._names[process.pid] = process.comm
        for entry in entries:  # the last name counts: a process has another before it executes its program
            self._names[entry.pid] = entry.comm or self._names.get(entry.pid, "")
        self._paths = {path for event in events for path in self._paths_of(event)}
        for entry in entries:
            if entry.fate is not Fate.WENT_ON:
                self._paths.update(path for path in (entry.path, entry.second_path) if path is not None)

    def operations(self, entries: Iterable[Entry]) -> Iterable[Moment]:
        """Those that matter."""
        for entry in entries:
            known = entry.path in self._paths or entry.second_path in self._paths
            if entry.fate is not Fate.WENT_ON or entry.operation in _MAKING or known:
                kind, text = self._fate(entry)
                yield Moment(at=entry.time + self._clock, who=self._who(entry.pid), kind=kind, text=text)

    def _fate(self, entry: Entry) -> tuple[Kind, str]:
        to = "" if entry.second_path is None else f" to {entry.second_path}"
        what = f"{entry.operation} of {entry.path or '.'}{to}"
        match entry.fate:
            case Fate.STOPPED:
                return Kind.STOPPED, f"{entry.when} {what}"
            case Fate.LET_GO:
                return Kind.LET_GO, what if entry.when is When.BEFORE else f"told of {what}"
            case Fate.ANSWERED:
                return Kind.REFUSED, f"{what}: {_error(entry.errno)}, by {entry.gate or 'a gate'}"
            case Fate.DELAYED:
                return Kind.STOPPED, f"before {what}, for a while"
            case Fate.GONE:
                return Kind.NOTED, f"gone before {what}"
            case _:
                return Kind.DONE, what

    def event(self, event: Event) -> Iterable[Moment]:
        """What an event is in the story: nothing, one moment, or one for each holder."""
        match event:
            case Locked(hold=hold):
                yield self._of_hold(event, hold, Kind.HELD, f"hold of {{}}: {', '.join(hold.flags.names)}")
            case Unlocked(hold=hold) | Reaped(hold=hold) | Expired(hold=hold) | Orphaned(hold=hold) | Broken(hold=hold):
                yield self._of_hold(event, hold, Kind.FREE, f"hold of {{}} {_ENDED[type(event)]}")
            case LockFailed():
                yield self._refusal(event, event.requester, f"hold of {self._short(event.path)}: EBUSY", event.conflict)
            case Refused():
                verb = "EBUSY" if event.enforced else "would be EBUSY"
                text = f"{event.operation} of {self._short(event.path)}: {verb}"
                for hold in event.holds:
                    yield self._refusal(event, event.requester, text, hold)
            case UnlockBad():
                who = self._who(event.requester.pid)
                yield Moment(at=_ns(event.at), who=who, kind=Kind.REFUSED, text=f"release of {event.id}: {event.why}")
            case ModeChanged():
                who = self._who(event.requester.pid)
                yield Moment(at=_ns(event.at), who=who, kind=Kind.NOTED, text=f"mode {event.before} → {event.after}")

    def _of_hold(self, event: Event, hold: Hold, kind: Kind, text: str) -> Moment:
        words = f"{text.format(self._short(hold.path))} ({hold.holder.name})"
        return Moment(at=_ns(event.at), who=self._who(hold.holder.process.pid), kind=kind, text=words)

    def _refusal(self, event: Event, requester: Process, text: str, hold: Hold) -> Moment:
        return Moment(
            at=_ns(event.at),
            who=self._who(requester.pid),
            kind=Kind.REFUSED,
            text=text,
            towards=self._who(hold.holder.process.pid),
            label=f"held by {hold.holder.name}",
        )

    def _paths_of(self, event: Event) -> Iterable[str]:
        if isinstance(event, Refused | LockFailed):
            yield self._short(event.path)
        elif hold := getattr(event, "hold", None):
            yield self._short(hold.path)

    def _who(self, pid: int | None) -> str:
        if not pid:
            return "somebody"
        return f"{self._names.get(pid) or '?'} {pid}"

    def _short(self, path: str) -> str:
        return os.path.relpath(path, self._root) if path.startswith("/") else path


def _processes(event: Event) -> Iterable[Process]:
    holds = [getattr(event, name) for name in ("hold", "conflict") if hasattr(event, name)]
    for hold in (*holds, *getattr(event, "holds", ())):
        yield hold.holder.process
    if requester := getattr(event, "requester", None):
        yield requester


def _error(number: int | None) -> str:
    return "an error" if number is None else errno.errorcode.get(number, str(number))


def _ns(at: datetime) -> int:
    """Exactly, which timestamp() is not."""
    return int(at.timestamp()) * 1_000_000_000 + at.microsecond * 1_000
