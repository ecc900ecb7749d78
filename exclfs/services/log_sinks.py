"""Where a log can go: the journal, syslog, stderr or a file.

The rule that this module owns: a sink that is opened is there. Neither of the two libraries tells if nobody listens
before the first line is lost, so it is tried here.
"""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO

from logging_journald import JournaldTransport  # type: ignore[import-untyped]

from exclfs.services.log_lines import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JOURNAL: Final = "/run/systemd/journal/socket"
SYSLOG: Final = "/dev/log"
ROOTS_FILE: Final = "/var/log/exclfs.log"


class _Journal(logging.Handler):
    """The journal's native protocol: the line as MESSAGE, and each value as a field EXCLFS_…"""

    PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

    def __init__(self, path: str) -> None:
        super().__init__()
        _probe(path)
        self._transport = JournaldTransport(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._transport.send(self._pairs(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._transport.socket.close()
        super().close()

    def _pairs(self, record: logging.LogRecord) -> Iterator[tuple[str, bytes]]:
        yield "message", self.format(record).encode()
        yield "priority", str(self.PRIORITIES.get(record.levelno, 6)).encode()
        yield "syslog_identifier", b"exclfs"
        if isinstance(record.msg, dict):
            for key, value in record.msg.items():
                yield f"exclfs_{key}", os.fsencode(text(value))


def _open_syslog() -> logging.Handler:
    _probe(SYSLOG)
    handler = logging.handlers.SysLogHandler(SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    handler.ident = f"exclfs[{os.getpid()}]: "
    return handler


def _open_stderr() -> logging.StreamHandler[TextIO]:
    return logging.StreamHandler(sys.stderr)


def _probe(path: str) -> None:
    """Sees that somebody listens there: neither library tells before the first line is lost. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # a stream socket, as some have in /dev/log: there is somebody
                raise


NAMED: Final[dict[str, Callable[[], logging.Handler]]] = {
    "journal": lambda: _Journal(JOURNAL),
    "syslog": _open_syslog,
    "stderr": _open_stderr,
}


def open_sink(place: str) -> logging.Handler:
    """The sink at a place: journal, syslog, stderr or the path of a file. Raises OSError."""
    if place in NAMED:
        return NAMED[place]()
    # Names, reasons and paths are not for everybody's eyes: the umask could leave the file readable to all.
    os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640))
    return logging.handlers.WatchedFileHandler(place, encoding="utf-8")  # goes on in a new file after logrotate(8)


def choices(*, foreground: bool) -> Iterator[str]:
    """The places to try when none is named, the best first; only a directory is made, and nothing opened."""
    if os.path.exists(JOURNAL):
        yield "journal"
    if os.path.exists(SYSLOG):
        yield "syslog"
    if foreground:
        yield "stderr"
    elif os.geteuid() == 0:
        yield ROOTS_FILE
    else:
        directory = os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "exclfs")
        with suppress(OSError):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        yield os.path.join(directory, "exclfs.log")
