"""What the commands print: tables for people, JSON for programs, and text of strangers made harmless.

A path, a reason or a comm is chosen by somebody else. What of it could command a terminal or break a line is shown as
an escape; --json carries it unchanged.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

from exclfs.holds.lifetime import Close, Exit, StateFile, Time
from exclfs.host import requesters

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from exclfs.holds.hold import Hold
    from exclfs.holds.holder import Process
    from exclfs.holds.lifetime import End

_BETWEEN: Final = 3
"""Columns of a terminal that rich has around each of a table."""

VERSION: Final = 1
"""The version of every JSON document that a command prints."""


def shown(text: str) -> str:
    """The text without anything that a terminal would act upon: control characters and bytes that are not UTF-8."""
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode() gives it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say(line: str) -> None:
    """One line on standard output."""
    print(line)


def say_now(line: str) -> None:
    """One line on standard output, which is flushed: somebody waits for it."""
    print(line, flush=True)


def warn(line: str) -> None:
    """One line on standard error, said by exclfs."""
    print(f"exclfs: {line}", file=sys.stderr, flush=True)


def say_json(**document: Any) -> None:
    """One JSON document on standard output, which is flushed: somebody may wait for it."""
    print(json.dumps({"version": VERSION, **document}, ensure_ascii=False), flush=True)


def path_to_json(path: str) -> str | dict[str, str]:
    """A path as in the JSON of a hold: a string, or {"bytes": base64} if it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        from base64 import b64encode

        return {"bytes": b64encode(os.fsencode(path)).decode()}
    return path


def when(time: datetime) -> str:
    """A time for people: local, to the second; of today without the date."""
    local = time.astimezone()
    return f"{local:%H:%M:%S}" if local.date() == type(time).now().date() else f"{local:%Y-%m-%d %H:%M:%S}"


def who(hold: Hold) -> str:
    """The holder of a hold: its name, and the process behind it as far as it is known."""
    name, process = hold.holder.name, hold.holder.process
    known = [
        f"pid {process.pid}" if process.pid is not None else None,
        process.comm if process.comm != name else None,
        requesters.user_in_words(process),
        process.container,
    ]
    return f"{shown(name)} ({', '.join(shown(part) for part in known if part)})"


def asker(process: Process) -> str:
    """Who asked for something: the process, as far as it is known."""
    return requesters.in_words(process)


def lifetime(hold: Hold) -> str:
    """What ends a hold, in the order in which that was named."""
    return ", ".join(_lasts(end) for end in hold.ends)


def _lasts(end: End) -> str:
    match end:
        case Exit(pid=pid):
            return f"process {pid}"
        case Time(at=at):
            return f"until {when(at)}"
        case StateFile():
            return "state file"
        case Close():
            return "while open"
        case _:
            return type(end).__name__.lower()


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, under headings or, with (), without: with rules on a terminal, plain columns for everything else.

    Nothing is cut off or folded: on a terminal that is too narrow the columns are plain, too, and their lines long.
    """
    rows = [[shown(cell) for cell in row] for row in rows]
    lines = [headings, *rows] if headings else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty() and sum(widths) + _BETWEEN * len(widths) <= shutil.get_terminal_size().columns:
        _rich_table(headings, rows)
        return
    for row in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=bool(headings))
    for heading in headings:
        drawn.add_column(Text(heading))
    for row in rows:
        drawn.add_row(*map(Text, row))  # as Text: square brackets in a name are no markup
    Console().print(drawn)


HOLD_HEADINGS: Final = ("ID", "PATH", "HOLDER", "PID", "SINCE", "LIFETIME", "FLAGS", "REASON")


def hold_row(hold: Hold) -> list[str]:
    """The cells of one hold, under HOLD_HEADINGS: what fits a line. `exclfs why` and --json tell the rest."""
    pid = hold.holder.process.pid
    flags = ",".join(hold.flags.names)
    return [
        hold.id,
        hold.path,
        hold.holder.name,
        "?" if pid is None else str(pid),
        when(hold.since),
        lifetime(hold),
        flags,
        hold.reason,
    ]
