"""The line of an event: key=value pairs that grep, a person and a parser read alike.

The rule that this module owns: every value is one bare word, or stands in double quotes with Python's escapes. So no
file name, comm or reason can forge a pair or a line, and each can be told apart from every other.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from exclfs.host.names import quoted
from exclfs.wire.shapes import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

_WORD: Final = re.compile(r'[^\s"\\=]*')


def formatter() -> logging.Formatter:
    """Makes a line of a structlog event, and of any other record of the standard library's logging."""
    return structlog.stdlib.ProcessorFormatter(
        processors=[
            _head,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _line,
        ],
    )


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


def _line(_: Any, __: str, fields: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items())


def _value(value: object) -> str:
    shown = text(value)
    return shown if _WORD.fullmatch(shown) and shown.isprintable() else quoted(shown)


def text(value: object) -> str:
    """A value as it stands in a line, before it is quoted: nothing for None, RFC 3339 for a time."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return str(to_json(value))
    return str(value)
