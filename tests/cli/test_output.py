from __future__ import annotations

import json
import os
import pty
import sys
from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve

from exclfs.cli import output
from exclfs.cli.output import asker, hold_row, lifetime, path_to_json, say_json, shown, table, when, who
from exclfs.holds.flags import Flags
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Close, Connection, End, Exit, StateFile, Time, Unmount

STRANGE = os.fsdecode(b"caf\xc3\xa9 \xff\x1b[31m\n")


def hold(process: Process, *, name: str = "cache") -> Hold:
    return Hold(
        id="h1",
        inode=Inode(1, 2),
        path="/mnt/a",
        flags=Flags.EXCL_INUSE | Flags.NO_REMOVE,
        holder=Holder(name, process),
        reason="being served",
        since=datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC),
        ends=(Connection(1), Unmount()),
    )


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain, with spaces and é", "plain, with spaces and é"),
        (STRANGE, "café \\xff\\x1b[31m\\x0a"),
        ("\u202eright to left\u2028\U000e0001", "\\u202eright to left\\u2028\\U000e0001"),
    ],
)
def test_what_is_shown_commands_no_terminal(text: str, safe: str) -> None:
    assert shown(text) == safe


@pytest.mark.parametrize(("path", "json"), [("é", "é"), (os.fsdecode(b"\xff"), {"bytes": "/w=="})])
def test_a_path_as_json(path: str, json: object) -> None:
    assert path_to_json(path) == json


def test_a_document_has_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    say_json(holds=["é"])
    assert json.loads(capsys.readouterr().out) == {"version": 1, "holds": ["é"]}


@pytest.mark.parametrize(
    ("process", "name", "said"),
    [
        (Process(7, 0, comm="python3", user="root"), "cache", "cache (pid 7, python3, user root)"),
        (Process(7, 1000, comm="cache"), "cache", "cache (pid 7, user 1000)"),
        (Process(None, 1000, user="al", container="podman:0123"), "x", "x (user al, podman:0123)"),
        (Process(7, 0, comm="\x1b[31m", user="root"), "x", "x (pid 7, \\x1b[31m, user root)"),
    ],
)
def test_who_holds(process: Process, name: str, said: str) -> None:
    assert who(hold(process, name=name)) == said


def test_the_cells_of_a_hold() -> None:
    row = dict(zip(output.HOLD_HEADINGS, hold_row(hold(Process(None, 0))), strict=True))
    assert row["PID"] == "?"
    assert row["LIFETIME"] == "connection, unmount"
    assert row["FLAGS"] == "EXCL_INUSE,NO_REMOVE"


AT = datetime(2020, 11, 22, 13, 2, 15).astimezone()


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (Connection(7), "connection"),
        (Exit(4711), "process 4711"),
        (Time(AT), "until 2020-11-22 13:02:15"),
        (Unmount(), "unmount"),
        (StateFile(), "state file"),
        (Close(), "while open"),
    ],
)
def test_every_end_has_its_words(end: End, said: str) -> None:
    assert lifetime(evolve(hold(Process(7, 0)), ends=(end,))) == said


def test_who_asked() -> None:
    assert asker(Process(7, 0, comm="rm\n", user="root")) == "rm\\n (pid 7, user root)"
    assert asker(Process(7, 0, comm="rm", user="root", container="docker:ab12")) == "rm (pid 7, user root, docker:ab12)"


def test_a_time_has_its_date_unless_that_is_today() -> None:
    assert when(datetime(2020, 1, 2, 3, 4, 5).astimezone()) == "2020-01-02 03:04:05"
    now = datetime.now(UTC)
    assert when(now) in {f"{now.astimezone():%H:%M:%S}", f"{now.astimezone():%Y-%m-%d %H:%M:%S}"}
    assert len(when(now + timedelta(days=40))) == len("2020-01-02 03:04:05")


def test_a_table_for_a_pipe_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table(["ID", "PATH"], [["h1", "/a\nb"], ["h10", "/" + "long" * 40]])
    assert capsys.readouterr().out == f"ID   PATH\nh1   /a\\x0ab\nh10  /{'long' * 40}\n"
    table((), [["a", "b"]])
    assert capsys.readouterr().out == "a  b\n"


def draw_on_a_terminal(columns: int) -> str:
    """What a table looks like on a terminal of this width."""
    ours, theirs = pty.openpty()
    code = "from exclfs.cli.output import table; table(['ID', 'PATH'], [['h1', '/a/[b]/' + 'c' * 30]])"
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    child = os.posix_spawn(
        sys.executable, [sys.executable, "-c", code], environment, file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 1)]
    )
    os.close(theirs)
    drawn = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # EIO: nobody has the terminal open any more
            break
        if not piece:
            break
        drawn += piece
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return drawn.decode()


def test_a_table_on_a_terminal_has_rules_where_there_is_room() -> None:
    path = "/a/[b]/" + "c" * 30
    wide = draw_on_a_terminal(100)
    assert "──" in wide
    assert path in wide
    assert draw_on_a_terminal(30) == f"ID  PATH\r\nh1  {path}\r\n"
