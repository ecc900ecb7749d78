"""The line of an event, as key=value pairs or as a JSON object, that grep, a person and a parser read alike.

The rules that this module owns:

- text: every value is one bare word, or stands in double quotes with Python's escapes. So no file name, comm or reason
  can forge a pair or a line, and each can be told apart from every other. What is not known is empty, several values
  are separated by commas.
- json: the same keys in the same order, one object a line and nothing but ASCII. Numbers are numbers, what is not known
  is null, several values are an array, and a name that is not UTF-8 is {"bytes": base64} (exclfs.wire.primitives).
- In both a time is RFC 3339.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from exclfs.host.names import printable, quoted
from exclfs.options import LogFormat
from exclfs.wire.shapes import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

_WORD: Final = re.compile(r'[^\s"\\=]*')


def formatter(form: LogFormat) -> logging.Formatter:
    """Makes a line of a record of ours (`record_of`), and of any other of the standard library's logging."""
    return structlog.stdlib.ProcessorFormatter(
        processors=[
            _head,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _LINES[form],
        ],
    )


def record_of(event: str, level: int, fields: Mapping[str, Any]) -> logging.LogRecord:
    """A record that becomes a line of these keys and values. `at` among them is its time; without it, it is now."""
    made = {
        "msg": {"event": event, **fields},
        "levelno": level,
        "levelname": logging.getLevelName(level),
        # By these two structlog knows a record that it has made itself.
        "_logger": None,
        "_name": event,
    }
    return logging.makeLogRecord(made)


def text(value: object) -> str:
    """A value as it stands in a line of text, before it is quoted."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return str(to_json(value))
    if isinstance(value, tuple):
        return ",".join(map(text, value))
    return str(value)


def _head(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Puts time, level and event at the front, for our events and for the records of other libraries alike."""
    record: logging.LogRecord = fields["_record"]
    head = {
        "at": fields.pop("at", None) or datetime.fromtimestamp(record.created, UTC),
        "level": record.levelname.lower(),
        "event": fields.pop("event"),
    }
    if not fields["_from_structlog"]:
        head["logger"] = record.name
    return {**head, **fields}


def _text_line(_: Any, __: str, fields: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_word(value)}" for key, value in fields.items())


def _word(value: object) -> str:
    shown = text(value)
    return shown if _WORD.fullmatch(shown) and shown.isprintable() else quoted(shown)


def _json_line(_: Any, __: str, fields: Mapping[str, Any]) -> str:
    return json.dumps({key: _json(value) for key, value in fields.items()})


def _json(value: object) -> Any:
    try:
        return to_json(value)
    except ValueError:  # what another library says may hold surrogates that are nobody's bytes
        return printable(text(value))


_LINES: Final[dict[LogFormat, Callable[[Any, str, Mapping[str, Any]], str]]] = {
    LogFormat.TEXT: _text_line,
    LogFormat.JSON: _json_line,
}
