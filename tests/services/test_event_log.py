from __future__ import annotations

import base64
import json
import logging
import os
import re
import shlex
import socket
import threading
from datetime import UTC, datetime, timedelta
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
from exclfs.holds.folding import MOST_OF_PROGRAM
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, Exit, StateFile, Time, Unmount
from exclfs.holds.mode import Mode
from exclfs.host.names import quoted
from exclfs.options import LogFormat
from exclfs.services import log_sinks
from exclfs.services.event_log import EventLog, open_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT = datetime(2026, 11, 22, 13, 2, 15, 250_000, tzinfo=UTC)
INODE = Inode(dev=2049, ino=42)
CLEANER = Process(pid=99, uid=33, comm="find", exe="/usr/bin/find", user="www-data", container="cron.service")


def hold(name: str = "backup", pid: int | None = 4711, reason: str = "nightly run", path: str = "/mnt/x") -> Hold:
    process = Process(pid=pid, uid=0, comm="rsync", exe="/usr/bin/rsync", user="root") if pid else Process(None, 0)
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


def all_written(logger: logging.Logger, *events: Event, form: LogFormat = LogFormat.TEXT) -> list[str]:
    sink = Blocking()
    sink.let_go.set()
    log = EventLog(sink, "here", form=form, logger=logger)
    log.start()
    for event in events:
        log.record(event)
    log.close()
    return sink.lines


def written(event: Event, logger: logging.Logger) -> str:
    (line,) = all_written(logger, event)
    return line


def test_a_refusal_names_both_sides(logger: logging.Logger) -> None:
    line = written(refused(hold(), hold("indexer", pid=12, reason="")), logger)
    assert line.startswith("at=2026-11-22T13:02:15.250000Z level=warning event=refused op=rmdir path=/mnt/x inode=42 ")
    fields = values(line)
    assert (fields["requester_pid"], fields["requester_comm"], fields["requester_uid"]) == ("99", "find", "33")
    assert (fields["requester_exe"], fields["requester_user"]) == ("/usr/bin/find", "www-data")
    assert fields["requester_container"] == "cron.service"
    assert "requester_own_uid" not in fields
    assert (fields["count"], fields["until"]) == ("1", fields["at"])
    assert fields["holders"] == "2"
    assert (fields["holder_exe"], fields["holder_user"], fields["holder_ends"]) == ("/usr/bin/rsync", "root", "unmount")
    assert (fields["holder"], fields["holder_pid"], fields["holder_comm"]) == ("backup", "4711", "rsync")
    assert (fields["holder_reason"], fields["holder_since"]) == ("nightly run", "2026-11-22T13:02:15.250000Z")
    assert (fields["holder2"], fields["holder2_pid"], fields["holder2_comm"]) == ("indexer", "12", "rsync")
    assert (fields["holder2_reason"], fields["holder2_since"]) == ("", "2026-11-22T13:02:15.250000Z")


def test_what_is_unknown_is_empty(logger: logging.Logger) -> None:
    fields = values(written(refused(hold(pid=None)), logger))
    assert (fields["holder_pid"], fields["holder_comm"], fields["holder_exe"]) == ("", "", "")


def test_whoever_asks_as_somebody_else_is_told_as_both(logger: logging.Logger) -> None:
    """As overlayfs does: the process is one user's, the request another's."""
    event = evolve(refused(), requester=evolve(CLEANER, uid=0, user="root", own_uid=33))
    fields = values(written(event, logger))
    assert (fields["requester_uid"], fields["requester_user"], fields["requester_own_uid"]) == ("0", "root", "33")


def test_repeats_are_one_line_with_their_count_and_span(logger: logging.Logger) -> None:
    tries = [evolve(refused(), at=AT + timedelta(milliseconds=number)) for number in range(1000)]
    (line,) = all_written(logger, *tries)
    fields = values(line)
    assert (fields["count"], fields["at"]) == ("1000", "2026-11-22T13:02:15.250000Z")
    assert fields["until"] == "2026-11-22T13:02:16.249000Z"
    assert "inodes" not in fields
    assert "requesters" not in fields


def test_many_different_ones_are_some_lines_and_one_for_the_rest(logger: logging.Logger) -> None:
    tries = [evolve(refused(path=f"/mnt/{number}"), inode=Inode(2049, number)) for number in range(1000)]
    lines = [values(line) for line in all_written(logger, *tries)]
    assert len(lines) == MOST_OF_PROGRAM + 1
    assert sum(int(line["count"]) for line in lines) == 1000
    assert (lines[-1]["inodes"], lines[-1]["path"]) == (str(1000 - MOST_OF_PROGRAM), "/mnt/999")
    assert "requesters" not in lines[-1]


def test_a_line_of_repeats_stands_before_what_happens_next(logger: logging.Logger) -> None:
    lines = all_written(logger, Locked(AT, hold()), refused(), refused(), Unlocked(AT, hold()), refused())
    assert [(values(line)["event"], values(line).get("count")) for line in lines] == [
        ("locked", None),
        ("refused", "2"),
        ("unlocked", None),
        ("refused", "1"),
    ]


def test_a_line_is_written_when_it_has_been_quiet_without_another_event(logger: logging.Logger) -> None:
    sink = Blocking()
    sink.let_go.set()
    log = EventLog(sink, "here", logger=logger)
    log.start()
    log.record(refused())
    log.record(refused())
    sink.reached.wait()  # or this test never ends
    assert log.dropped == 0
    log.close()
    assert [values(line)["count"] for line in sink.lines] == ["2"]


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
    (Locked(AT, hold()), "info", {"flags": "EXCL_INUSE,NO_REMOVE", "holder": "backup", "holder_ends": "unmount"}),
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
    assert fields["holder_ends"] == "connection,process:4711,time:2026-11-22T13:02:15.250000Z,state-file"


def test_a_sink_that_blocks_delays_nobody_and_what_is_lost_is_told(logger: logging.Logger) -> None:
    sink = Blocking()
    log = EventLog(sink, "here", logger=logger, capacity=5)
    log.start()
    log.record(Locked(AT, hold()))
    sink.reached.wait()
    for _ in range(20):
        log.record(Locked(AT, hold()))  # returns, or this test never ends
    assert sink.lines == []
    assert log.dropped == 15
    assert log.where == "here; 15 lines were lost"
    sink.let_go.set()
    log.close()
    assert [values(line)["event"] for line in sink.lines] == ["locked", "log_dropped", *["locked"] * 5]
    assert values(sink.lines[1])["lines"] == "15"


def test_closing_leaves_a_sink_that_blocks_alone(logger: logging.Logger) -> None:
    sink = Blocking()
    log = EventLog(sink, "here", logger=logger, capacity=1)
    log.start()
    log.record(Locked(AT, hold()))
    sink.reached.wait()
    log.record(Locked(AT, hold()))
    log.close(patience=0.01)  # returns, or this test never ends
    sink.let_go.set()


def test_a_sink_that_fails_is_told_by_where(logger: logging.Logger) -> None:
    log = EventLog(Failing(), "here", logger=logger)
    log.start()
    log.record(Locked(AT, hold()))
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


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [event for event, _, _ in LINES], ids=lambda event: event.name)
def test_json_has_the_same_keys_and_values(event: Event, logger: logging.Logger) -> None:
    (line,) = all_written(logger, event, form=LogFormat.JSON)
    told, expected = json.loads(line), values(written(event, logger))
    assert list(told) == list(expected)
    assert {key: as_text(value) for key, value in told.items()} == expected


def as_text(value: object) -> str:
    match value:
        case list():
            return ",".join(value)
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
    return str(value)


def test_json_has_numbers_nulls_arrays_and_bytes(logger: logging.Logger) -> None:
    event = refused(evolve(hold(pid=None), ends=(Exit(5), Time(AT))), path="/a\n\x1b\udcff\u202e")
    (line,) = all_written(logger, event, form=LogFormat.JSON)
    assert line.isascii()
    assert line.isprintable()
    told = json.loads(line)
    assert (told["inode"], told["requester_pid"], told["count"], told["enforced"]) == (42, 99, 1, True)
    assert (told["holder_pid"], told["holder_comm"]) == (None, None)
    assert told["holder_ends"] == ["process:5", "time:2026-11-22T13:02:15.250000Z"]
    assert base64.b64decode(told["path"]["bytes"]) == b"/a\n\x1b" + b"\xff" + "\u202e".encode()
    assert datetime.fromisoformat(told["at"]) == AT


def test_what_other_libraries_say_is_json_too(tmp_path: Path, logger: logging.Logger) -> None:
    log = open_log(str(tmp_path / "log"), foreground=False, form=LogFormat.JSON, logger=logger)
    log.start()
    try:
        raise ValueError("a\nb")
    except ValueError:
        logger.exception("it \ud800 failed")
    log.close()
    assert log.where == f"file {tmp_path}/log, as JSON"
    told = json.loads((tmp_path / "log").read_text())
    assert (told["level"], told["event"], told["logger"]) == ("error", "it \\ud800 failed", "exclfs.test")
    assert told["exception"].endswith("ValueError: a\nb")


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


def test_the_journal_gets_json_and_the_same_fields(journal: socket.socket, logger: logging.Logger) -> None:
    log = open_log(None, foreground=True, form=LogFormat.JSON, logger=logger)
    log.start()
    log.record(refused(path="/mnt/a\nb\udcff"))
    log.record(refused())
    log.close()
    fields = native_protocol(journal.recv(65536))
    assert json.loads(fields["MESSAGE"])["event"] == fields["EXCLFS_EVENT"].decode() == "refused"
    assert (fields["EXCLFS_COUNT"], fields["EXCLFS_ENFORCED"]) == (b"2", b"yes")
    assert (fields["EXCLFS_PATH"], fields["EXCLFS_HOLDER_ENDS"]) == (b"/mnt/x", b"unmount")


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
