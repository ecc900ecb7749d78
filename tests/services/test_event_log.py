from __future__ import annotations

import logging
import os
import re
import shlex
import socket
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from exclfs.holds.events import (
    EVENTS,
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
from exclfs.holds.flags import DEFAULT, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, Exit, StateFile, Time, Unmount
from exclfs.holds.mode import Mode
from exclfs.host.names import quoted
from exclfs.services import log_sinks
from exclfs.services.event_log import EventLog, open_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT = datetime(2026, 11, 22, 13, 2, 15, 250_000, tzinfo=UTC)
INODE = Inode(dev=2049, ino=42)
CLEANER = Process(pid=99, uid=33, comm="find", user="www-data", container="cron.service")


def hold(name: str = "backup", pid: int | None = 4711, reason: str = "nightly run", path: str = "/mnt/x") -> Hold:
    process = Process(pid=pid, uid=0, comm="rsync" if pid else None)
    return Hold(f"h-{name}", INODE, path, DEFAULT, Holder(name, process), reason, AT, (Unmount(),))


def refused(*holds: Hold, path: str = "/mnt/x") -> Refused:
    return Refused(AT, Operation.RMDIR, path, INODE, CLEANER, holds or (hold(),))


def values(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(line))


@pytest.fixture
def logger() -> logging.Logger:
    """One that shares nothing with pytest's own."""
    return logging.Logger("exclfs.test")  # noqa: LOG001


class Blocking(logging.Handler):
    """A sink that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.reached.set()
        self.let_go.wait()
        self.lines.append(self.format(record))


class Failing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            self.handleError(record)


def written(event: Event, logger: logging.Logger) -> str:
    sink = Blocking()
    sink.let_go.set()
    log = EventLog(sink, "here", logger=logger)
    log.start()
    log.record(event)
    log.close()
    (line,) = sink.lines
    return line


def test_a_refusal_names_both_sides(logger: logging.Logger) -> None:
    line = written(refused(hold(), hold("indexer", pid=12, reason="")), logger)
    assert line.startswith("at=2026-11-22T13:02:15.250000Z level=warning event=refused op=rmdir path=/mnt/x inode=42 ")
    fields = values(line)
    assert (fields["requester_pid"], fields["requester_comm"], fields["requester_uid"]) == ("99", "find", "33")
    assert fields["requester_container"] == "cron.service"
    assert fields["holders"] == "2"
    assert (fields["holder"], fields["holder_pid"], fields["holder_comm"]) == ("backup", "4711", "rsync")
    assert (fields["holder_reason"], fields["holder_since"]) == ("nightly run", "2026-11-22T13:02:15.250000Z")
    assert (fields["holder2"], fields["holder2_pid"], fields["holder2_comm"]) == ("indexer", "12", "rsync")
    assert (fields["holder2_reason"], fields["holder2_since"]) == ("", "2026-11-22T13:02:15.250000Z")


def test_what_is_unknown_is_empty(logger: logging.Logger) -> None:
    fields = values(written(refused(hold(pid=None)), logger))
    assert (fields["holder_pid"], fields["holder_comm"]) == ("", "")


def test_a_thousand_holders_are_counted_and_some_are_named(logger: logging.Logger) -> None:
    fields = values(written(refused(*(hold(f"n{number}") for number in range(1000))), logger))
    assert fields["holders"] == "1000"
    assert fields["holder100"] == "n99"
    assert "holder101" not in fields


@pytest.mark.parametrize(
    "path",
    ["/a\nat=2026 event=refused", "/\x1b[2J", '/"', "/\\n", "/a b", "/\udcff", "/\u202e", "/é", ""],
)
def test_no_name_forges_a_line(path: str, logger: logging.Logger) -> None:
    line = written(refused(path=path), logger)
    assert line.isprintable()
    written_path = re.search(r' path=("(?:[^"\\]|\\.)*"|\S*) inode=42 ', line)
    assert written_path is not None
    assert written_path[1] == (path if path in ("/é", "") else quoted(path))


LINES: list[tuple[Event, str, dict[str, str]]] = [
    (Locked(AT, hold()), "info", {"flags": "EXCL_INUSE,NO_REMOVE", "holder": "backup", "ends": "unmount"}),
    (LockFailed(AT, "/mnt/x", INODE, CLEANER, hold()), "info", {"requester_pid": "99", "holder": "backup"}),
    (Unlocked(AT, hold()), "info", {"holder_id": "h-backup"}),
    (UnlockBad(AT, "h9", CLEANER, "not yours"), "warning", {"id": "h9", "why": "not yours"}),
    (refused(), "warning", {"op": "rmdir", "enforced": "yes"}),
    (Reaped(AT, hold()), "info", {"path": "/mnt/x"}),
    (Expired(AT, hold()), "info", {"path": "/mnt/x"}),
    (
        Broken(AT, hold(), CLEANER, "it hangs"),
        "warning",
        {"requester_comm": "find", "holder": "backup", "reason": "it hangs"},
    ),
    (Orphaned(AT, hold()), "warning", {"path": "/mnt/x", "holder": "backup"}),
    (
        ModeChanged(AT, Mode.ENFORCE, Mode.WARN, CLEANER),
        "warning",
        {"before": "enforce", "after": "warn", "requester_pid": "99"},
    ),
]


@pytest.mark.parametrize(("event", "level", "expected"), LINES)
def test_every_event_has_its_line(event: Event, level: str, expected: dict[str, str], logger: logging.Logger) -> None:
    fields = values(written(event, logger))
    assert (fields["event"], fields["level"]) == (event.name, level)
    assert {key: fields[key] for key in expected} == expected


def test_every_event_that_there_is_was_tried() -> None:
    assert [type(event) for event, _, _ in LINES] == list(EVENTS)


def test_what_was_only_recorded_says_so(logger: logging.Logger) -> None:
    fields = values(written(evolve(refused(), enforced=False), logger))
    assert (fields["event"], fields["level"], fields["enforced"]) == ("refused", "warning", "no")


def test_a_hold_that_is_placed_says_what_will_end_it(logger: logging.Logger) -> None:
    ends = (Connection(1), Exit(4711, 5, "boot"), Time(AT), StateFile())
    fields = values(written(Locked(AT, evolve(hold(), ends=ends)), logger))
    assert fields["ends"] == "connection,process:4711,time:2026-11-22T13:02:15.250000Z,state-file"


def test_a_sink_that_blocks_delays_nobody_and_what_is_lost_is_told(logger: logging.Logger) -> None:
    sink = Blocking()
    log = EventLog(sink, "here", logger=logger, capacity=5)
    log.start()
    log.record(refused())
    sink.reached.wait()
    for _ in range(20):
        log.record(refused())  # returns, or this test never ends
    assert sink.lines == []
    assert log.dropped == 15
    assert log.where == "here; 15 lines were lost"
    sink.let_go.set()
    log.close()
    assert [values(line)["event"] for line in sink.lines] == ["refused", "log_dropped", *["refused"] * 5]
    assert values(sink.lines[1])["lines"] == "15"


def test_closing_leaves_a_sink_that_blocks_alone(logger: logging.Logger) -> None:
    sink = Blocking()
    log = EventLog(sink, "here", logger=logger, capacity=1)
    log.start()
    log.record(refused())
    sink.reached.wait()
    log.record(refused())
    log.close(patience=0.01)  # returns, or this test never ends
    sink.let_go.set()


def test_a_sink_that_fails_is_told_by_where(logger: logging.Logger) -> None:
    log = EventLog(Failing(), "here", logger=logger)
    log.start()
    log.record(refused())
    log.record(refused())
    log.close()
    assert log.where == "here; it fails: [Errno 28] No space left on device; 2 lines were lost"


def test_what_is_recorded_before_the_start_is_written_after(tmp_path: Path, logger: logging.Logger) -> None:
    log = open_log(str(tmp_path / "log"), foreground=False, logger=logger)
    log.record(refused())
    assert (tmp_path / "log").read_text() == ""
    log.start()
    log.close()
    assert "event=refused" in (tmp_path / "log").read_text()


def test_other_libraries_and_tracebacks_take_one_line_each(tmp_path: Path, logger: logging.Logger) -> None:
    log = open_log(str(tmp_path / "log"), foreground=False, logger=logger)
    log.start()
    arguments = ["before"]
    logger.warning("it is %s", arguments)
    arguments[0] = "after"
    try:
        raise ValueError("a\nb")
    except ValueError:
        logger.exception("failed")
    log.close()
    first, second = (tmp_path / "log").read_text().splitlines()
    assert values(first)["event"] == "it is ['before']"
    assert values(first)["logger"] == "exclfs.test"
    assert "ValueError: a\\nb" in second
    assert "level=error event=failed" in second


# --- where -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd-journald listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "journal"))
        listening.settimeout(30)
        monkeypatch.setattr(log_sinks, "JOURNAL", str(tmp_path / "journal"))
        yield listening


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "JOURNAL", "SYSLOG", "ROOTS_FILE":
        monkeypatch.setattr(log_sinks, name, str(tmp_path / "none" / name))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def native_protocol(message: bytes) -> dict[str, bytes]:
    """systemd.io/JOURNAL_NATIVE_PROTOCOL: NAME=value, or NAME, the length in 64 bits, and the value in its bytes."""
    fields = {}
    while message:
        line, _, rest = message.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if not separator:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        fields[name.decode()] = value
        message = rest
    return fields


def test_the_journal_gets_the_line_and_the_fields(journal: socket.socket, logger: logging.Logger) -> None:
    log = open_log(None, foreground=True, logger=logger)
    log.start()
    log.record(refused(path="/mnt/a\nb\udcff"))
    log.close()
    assert log.where == "journal"
    fields = native_protocol(journal.recv(65536))
    assert fields["MESSAGE"].startswith(b"at=2026-11-22T13:02:15.250000Z level=warning event=refused op=rmdir ")
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]) == (b"4", b"exclfs")
    assert (fields["EXCLFS_OP"], fields["EXCLFS_HOLDER"]) == (b"rmdir", b"backup")
    assert fields["EXCLFS_PATH"] == b"/mnt/a\nb\xff"


def test_syslog_gets_the_line(nowhere: None, tmp_path: Path, monkeypatch: Any, logger: logging.Logger) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.settimeout(30)
        monkeypatch.setattr(log_sinks, "SYSLOG", str(tmp_path / "log"))
        log = open_log(None, foreground=False, logger=logger)
        log.start()
        log.record(refused())
        log.close()
        assert log.where == "syslog"
        assert listening.recv(65536).startswith(b"<28>exclfs[%d]: at=2026-11-22T13:02:15.250000Z level=" % os.getpid())


def test_stderr_in_the_foreground(nowhere: None, capsys: Any, logger: logging.Logger) -> None:
    log = open_log(None, foreground=True, logger=logger)
    log.start()
    log.record(refused())
    log.close()
    assert log.where == "stderr"
    assert "event=refused" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_in_the_background_of_root(
    nowhere: None, tmp_path: Path, monkeypatch: Any, logger: logging.Logger
) -> None:
    monkeypatch.setattr(log_sinks, "ROOTS_FILE", str(tmp_path / "exclfs.log"))
    log = open_log(None, foreground=False, logger=logger)
    log.close()
    assert log.where == f"file {tmp_path}/exclfs.log"
    assert (tmp_path / "exclfs.log").stat().st_mode & 0o007 == 0


def test_a_file_in_the_background_of_others(
    nowhere: None, tmp_path: Path, monkeypatch: Any, logger: logging.Logger
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    log = open_log(None, foreground=False, logger=logger)
    log.close()
    assert log.where == f"file {tmp_path}/state/exclfs/exclfs.log"


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("wanted", ["journal", "syslog", "/no/such/directory/log"])
def test_what_was_wanted_and_is_not_there_is_told(wanted: str, logger: logging.Logger) -> None:
    with pytest.raises(FileNotFoundError, match=f"cannot log to {wanted}: No such file or directory"):
        open_log(wanted, foreground=True, logger=logger)


def test_never_nowhere(nowhere: None, monkeypatch: Any, logger: logging.Logger) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nothing")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FileNotFoundError, match="cannot log to /proc/nothing/exclfs"):
        open_log(None, foreground=False, logger=logger)
