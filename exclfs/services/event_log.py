"""The log: one line per event, to a place that `status` names, and never nowhere.

The rules that this module owns:

- A refusal never waits for the log. Whoever records an event puts it into a bounded queue and goes on; a thread folds
  refusals (exclfs.holds.folding), words and writes. Where the sink blocks, what does not fit is dropped, counted, and
  told as soon as the sink moves again.
- So a refusal may stand in the log a second after it was, while the xattrs, the stream of events and `status` have it
  at once.

What a line says is of log_fields, how of log_lines, the place of log_sinks. The journal gets each value once more as a
field of its own, in its very bytes: `journalctl EXCLFS_OP=rmdir`.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from exclfs.holds.events import Broken, Event, ModeChanged, Orphaned, Refused, UnlockBad
from exclfs.holds.folding import Fold, Folding
from exclfs.options import LogFormat
from exclfs.services import log_fields, log_lines, log_sinks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CAPACITY: Final = 20_000
"""How many entries may wait for the thread: one call may place ten thousand holds."""
TICK: Final = 0.25
"""Seconds from one look at the open folds to the next."""

_WARNINGS: Final = (Refused, UnlockBad, Broken, Orphaned, ModeChanged)
"""What somebody should see who looks for trouble: what was not done, or done against somebody's will."""

Entry = Event | logging.LogRecord | None
"""What waits in the queue: an event, a record of the standard library's logging, or the end."""


class EventLog:
    """The log of one server.

    What is recorded before `start` waits in the queue, so that a server can open its log, go to the background, and
    only then start the thread, which would not survive a fork.

    Args:
        sink: where lines go; it may block.
        place: the name of that place, for people.
        form: how lines are written.
        logger: what of the standard library's logging goes there too; without it the root, so everything.
        capacity: how many entries may wait.
    """

    def __init__(
        self,
        sink: logging.Handler,
        place: str,
        *,
        form: LogFormat = LogFormat.TEXT,
        logger: logging.Logger | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self.dropped = 0
        """How many lines were lost because the sink did not take them."""
        self._place = place if form is LogFormat.TEXT else f"{place}, as JSON"
        self._trouble: str | None = None
        self._told = 0
        self._sink = sink
        self._sink.setFormatter(log_lines.formatter(form))
        self._sink.handleError = self._failed  # type: ignore[method-assign]
        self._capacity = capacity
        self._entries: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        self._folding = Folding()
        self._looked = 0.0
        self._thread = threading.Thread(target=self._write, name="exclfs-log", daemon=True)
        self._logger = logger or logging.getLogger()
        self._logger.setLevel(logging.INFO)
        self._entrance = _Entrance(self._put)
        self._logger.addHandler(self._entrance)

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
        """Has this event written, some time later. Neither blocks nor raises: fit for Keeper.subscribe."""
        self._put(event)

    def close(self, patience: float = 2.0) -> None:
        """Writes what waits and stops. A sink that blocks for longer than `patience` seconds is left alone."""
        self._logger.removeHandler(self._entrance)
        if self._thread.is_alive():
            self._entries.put(None)
            self._thread.join(patience)
        if not self._thread.is_alive():
            self._sink.close()

    def _put(self, entry: Event | logging.LogRecord) -> None:
        if self._entries.qsize() < self._capacity:
            self._entries.put(entry)
        else:
            self._drop()

    def _write(self) -> None:
        while True:
            try:
                entry = self._entries.get(timeout=TICK if self._folding else None)
            except queue.Empty:
                self._tell(self._due())
                continue
            self._tell(self._due())
            match entry:
                case Event():
                    self._tell(self._folding.take(entry, time.monotonic()))
                case logging.LogRecord():
                    self._handle(entry)
                case None:
                    self._tell(self._folding.rest())
                    return

    def _due(self) -> Iterable[Fold]:
        now = time.monotonic()
        if now - self._looked < TICK:
            return ()
        self._looked = now
        return self._folding.due(now)

    def _tell(self, told: Iterable[Fold | Event]) -> None:
        for one in told:
            event, fields = (
                (one.refused, log_fields.of_fold(one)) if isinstance(one, Fold) else (one, log_fields.of_event(one))
            )
            level = logging.WARNING if isinstance(event, _WARNINGS) else logging.INFO
            self._handle(log_lines.record_of(event.name, level, {"at": event.at, **fields}))

    def _handle(self, record: logging.LogRecord) -> None:
        self._trouble = None
        self._sink.handle(record)
        if self.dropped > self._told:
            self._tell_of_drops()

    def _tell_of_drops(self) -> None:
        lost = self.dropped - self._told
        self._told += lost
        self._sink.handle(log_lines.record_of("log_dropped", logging.WARNING, {"lines": lost}))

    def _drop(self) -> None:
        self.dropped += 1

    def _failed(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - the signature of Handler.handleError
        """The sink raised. It must neither end the thread nor write to a terminal that may not be there."""
        self._drop()
        self._told = self.dropped  # telling it through the sink that fails would fail again
        self._trouble = str(sys.exc_info()[1])


def open_log(
    wanted: str | None,
    *,
    foreground: bool,
    form: LogFormat = LogFormat.TEXT,
    logger: logging.Logger | None = None,
) -> EventLog:
    """Opens the log, ready to be started.

    Args:
        wanted: journal, syslog, stderr or the path of a file. None takes the first that can be opened of: the journal,
            syslog, and stderr in the foreground or a file in the background.
        foreground: whether somebody may be reading stderr.
        form, logger: see EventLog.

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
        return EventLog(sink, name, form=form, logger=logger)
    raise last or OSError("there is nowhere to log to")


class _Entrance(logging.Handler):
    """Takes the records of other libraries: they are rendered in the thread that writes them."""

    def __init__(self, put: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # The arguments may change before the line is written; the text cannot.
            record.msg, record.args = record.getMessage(), None
        except Exception:
            self.handleError(record)
        else:
            self._put(record)
