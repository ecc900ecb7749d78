"""The log: one key=value line per event, to a place that `status` names, and never nowhere.

The rule that this module owns: a refusal never waits for the log. A line is put into a bounded queue and written by a
thread; where the sink blocks, what does not fit is dropped, counted, and told as soon as the sink moves again.

The line is of log_lines, the place of log_sinks. The journal gets each value once more as a field of its own, in its
very bytes: `journalctl EXCLFS_OP=rmdir`.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from exclfs.holds.events import (
    Broken,
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
from exclfs.holds.lifetime import Exit, Time
from exclfs.services import log_lines, log_sinks
from exclfs.wire.shapes import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exclfs.holds.events import Event
    from exclfs.holds.hold import Hold
    from exclfs.holds.holder import Process
    from exclfs.holds.lifetime import End

CAPACITY: Final = 20_000
"""How many lines may wait for the sink: one call may place ten thousand holds."""
MOST_HOLDERS: Final = 100
"""How many holders one line names; `holders` counts them all."""

_WARNINGS: Final = (Refused, UnlockBad, Broken, Orphaned, ModeChanged)
"""What somebody should see who looks for trouble: what was not done, or done against somebody's will."""

Fields = dict[str, Any]


class EventLog:
    """The log of one server.

    What is recorded before `start` waits in the queue, so that a server can open its log, go to the background, and
    only then start the thread, which would not survive a fork.

    Args:
        sink: where lines go; it may block.
        place: the name of that place, for people.
        logger: what of the standard library's logging goes there too; without it the root, so everything.
        capacity: how many lines may wait.
    """

    def __init__(
        self, sink: logging.Handler, place: str, *, logger: logging.Logger | None = None, capacity: int = CAPACITY
    ) -> None:
        self.dropped = 0
        """How many lines were lost because the sink did not take them."""
        self._place = place
        self._trouble: str | None = None
        self._told = 0
        self._sink = sink
        self._sink.setFormatter(log_lines.formatter())
        self._sink.handleError = self._failed  # type: ignore[method-assign]
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._write, name="exclfs-log", daemon=True)
        self._logger = logger or logging.getLogger()
        self._logger.setLevel(logging.INFO)
        self._entrance = _Entrance(self._records, self._drop)
        self._logger.addHandler(self._entrance)
        self._log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
            self._logger,
            processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
            wrapper_class=structlog.stdlib.BoundLogger,
        )

    @property
    def where(self) -> str:
        """Where the lines go, and what is the matter with it if they do not arrive."""
        lost = f"; {self.dropped} lines were lost" if self.dropped else ""
        trouble = f"; it fails: {self._trouble}" if self._trouble else ""
        return self._place + trouble + lost

    def start(self) -> None:
        """Starts writing. To be called once, in the process that serves."""
        self._thread.start()

    def record(self, event: Event) -> None:
        """Writes one line of this event, some time later. Neither blocks nor raises: fit for Keeper.subscribe."""
        level = logging.WARNING if isinstance(event, _WARNINGS) else logging.INFO
        self._log.log(level, event.name, at=event.at, **fields_of(event))

    def close(self, patience: float = 2.0) -> None:
        """Writes what waits and stops. A sink that blocks for longer than `patience` seconds is left alone."""
        self._logger.removeHandler(self._entrance)
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._records.put(None, timeout=patience)
                self._thread.join(patience)
        if not self._thread.is_alive():
            self._sink.close()

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            self._trouble = None
            self._sink.handle(record)
            if self.dropped > self._told:
                self._tell_of_drops()

    def _tell_of_drops(self) -> None:
        lost = self.dropped - self._told
        self._told += lost
        line = {
            "msg": {"event": "log_dropped", "lines": lost},
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            # By these two structlog knows a record that it has made itself.
            "_logger": self._logger,
            "_name": "warning",
        }
        self._sink.handle(logging.makeLogRecord(line))

    def _drop(self) -> None:
        self.dropped += 1

    def _failed(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - the signature of Handler.handleError
        """The sink raised. It must neither end the thread nor write to a terminal that may not be there."""
        self._drop()
        self._told = self.dropped  # telling it through the sink that fails would fail again
        self._trouble = str(sys.exc_info()[1])


def open_log(wanted: str | None, *, foreground: bool, logger: logging.Logger | None = None) -> EventLog:
    """Opens the log, ready to be started.

    Args:
        wanted: journal, syslog, stderr or the path of a file. None takes the first that can be opened of: the journal,
            syslog, and stderr in the foreground or a file in the background.
        foreground: whether somebody may be reading stderr.
        logger: see EventLog.

    Raises:
        OSError: what was wanted cannot be opened, or, if nothing was wanted, nothing can.
    """
    last: OSError | None = None
    for place in (wanted,) if wanted is not None else log_sinks.choices(foreground=foreground):
        try:
            sink = log_sinks.open_sink(place)
        except OSError as error:
            last = OSError(error.errno, f"cannot log to {place}: {error.strerror or error}")
            continue
        name = place if place in log_sinks.NAMED else f"file {os.path.abspath(place)}"
        return EventLog(sink, name, logger=logger)
    raise last or OSError("there is nowhere to log to")


def fields_of(event: Event) -> Fields:
    """The keys and values of an event's line, in their order, without its name and time."""
    match event:
        case Refused():
            return {
                "op": event.operation.value,
                "path": event.path,
                "inode": event.inode.ino,
                "dev": event.inode.dev,
                "enforced": "yes" if event.enforced else "no",
                **_process("requester", event.requester),
                "holders": len(event.holds),
                **_holders(event.holds),
            }
        case LockFailed():
            return {
                "path": event.path,
                "inode": event.inode.ino,
                "dev": event.inode.dev,
                **_process("requester", event.requester),
                **_holders([event.conflict]),
            }
        case UnlockBad():
            return {"id": event.id, "why": event.why, **_process("requester", event.requester)}
        case Broken():
            return {**_hold(event.hold), **_process("requester", event.requester), "reason": event.reason}
        case ModeChanged():
            return {
                "before": event.before.value,
                "after": event.after.value,
                **_process("requester", event.requester),
            }
        case Locked():
            return {**_hold(event.hold), "ends": ",".join(_end(end) for end in event.hold.ends)}
        case Unlocked() | Reaped() | Expired() | Orphaned():
            return _hold(event.hold)
    raise TypeError(f"no line is known for {event!r}")


def _hold(hold: Hold) -> Fields:
    return {
        "path": hold.path,
        "inode": hold.inode.ino,
        "dev": hold.inode.dev,
        "flags": ",".join(hold.flags.names),
        **_holders([hold]),
    }


def _end(end: End) -> str:
    """connection, unmount, …; process:PID; time:WHEN."""
    kind = KINDS[type(end)].replace(" ", "-")
    match end:
        case Exit():
            return f"{kind}:{end.pid}"
        case Time():
            return f"{kind}:{log_lines.text(end.at)}"
    return kind


def _holders(holds: Sequence[Hold]) -> Fields:
    """holder, holder_pid, … for the first; holder2, holder2_pid, … for the second, and so on."""
    fields: Fields = {}
    for number, hold in enumerate(holds[:MOST_HOLDERS], 1):
        key = "holder" if number == 1 else f"holder{number}"
        fields[key] = hold.holder.name
        fields |= _process(key, hold.holder.process)
        fields |= {f"{key}_reason": hold.reason, f"{key}_since": hold.since, f"{key}_id": hold.id}
    return fields


def _process(key: str, process: Process) -> Fields:
    fields: Fields = {f"{key}_pid": process.pid, f"{key}_comm": process.comm, f"{key}_uid": process.uid}
    if process.container is not None:
        fields[f"{key}_container"] = process.container
    return fields


class _Entrance(logging.handlers.QueueHandler):
    """Takes records into the queue as they are: they are rendered in the thread that writes them."""

    def __init__(self, records: queue.Queue[logging.LogRecord | None], on_full: Callable[[], None]) -> None:
        super().__init__(records)
        self._on_full = on_full

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        if not isinstance(record.msg, dict):
            # The arguments may change before the line is written; the text cannot.
            record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._on_full()
