"""Bytes to messages and back: a message is one JSON object in UTF-8 that ends with a NUL byte (varlink.org, Protocol).

The rule that this module owns: whatever bytes arrive, in whatever pieces, the result is the same messages, and then
at most one ProtocolError, after which nothing more is read. Memory is bounded by the limit of one message and what is
fed at once.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_MESSAGE: Final = 4 << 20
"""The longest message that a server reads, in bytes without its NUL: ten thousand paths of 400 bytes."""
MAX_REPLY: Final = 64 << 20
"""The longest message that a client reads from the server that it has chosen: many thousands of holds."""

LONG: Final = 100
"""How many items of an array are made into text at one go."""
MOST_LEVELS: Final = 2
"""How deep in a message long arrays are: {"parameters": {"holds": […]}}."""

JsonObject = dict[str, Any]

_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class ProtocolError(Exception):
    """What came is not Varlink; `why` says what is wrong with it. The connection is of no further use.

    `messages` are the good ones that came before it in what was fed last, in their order: none of them is lost.
    """

    def __init__(self, why: str, messages: tuple[JsonObject, ...] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.messages = messages


class Decoder:
    """One direction of one connection.

    Args:
        limit: the longest message to accept, in bytes without its NUL.
    """

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0
        self._failure: str | None = None

    @property
    def begun(self) -> int:
        """How many bytes there are of a message that has not come to its end."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[JsonObject]:
        """Takes what has arrived and returns the messages that it completes, in order.

        Raises:
            ProtocolError: a message is longer than the limit, not UTF-8, not JSON, or not an object. Its `messages`
                are those before it. Every later call raises it again.
        """
        if self._failure is not None:
            raise ProtocolError(self._failure)
        self._buffer += data
        messages: list[JsonObject] = []
        try:
            start = 0
            while (end := self._buffer.find(0, max(start, self._searched))) >= 0:
                self._check_length(end - start)
                messages.append(_parse(self._buffer[start:end]))
                start = end + 1
            del self._buffer[:start]
            # What has no NUL now is not searched again, however small the pieces are in which the rest comes.
            self._searched = len(self._buffer)
            self._check_length(self._searched)
        except ProtocolError as error:
            self._buffer.clear()
            self._failure = error.why
            raise ProtocolError(error.why, tuple(messages)) from error.__cause__
        return messages

    def eof(self) -> None:
        """Takes note that nothing more will arrive.

        Raises:
            ProtocolError: what arrived ended within a message, or was broken before.
        """
        if self._failure is not None:
            raise ProtocolError(self._failure)
        if self._buffer:
            raise ProtocolError(f"the connection ended after {len(self._buffer)} bytes of a message")

    def _check_length(self, length: int) -> None:
        if length > self._limit:
            raise ProtocolError(f"a message is longer than {self._limit} bytes")


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as bytes, with its NUL.

    Raises:
        ValueError: it holds a string that is not Unicode text or a number that JSON does not have. What
            exclfs.wire.shapes and messages make holds neither.
    """
    return dumps(message) + b"\0"


def dumps(value: object) -> bytes:
    """Any JSON value, compact and in UTF-8. Control characters are escaped, so that no NUL is in it.

    Raises:
        ValueError: as encode().
    """
    return "".join(_pieces(value, MOST_LEVELS)).encode()


def _has_much(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        return levels > 0 and any(_has_much(inner, levels - 1) for inner in value.values())
    return isinstance(value, list) and len(value) > LONG


def _pieces(value: object, levels: int) -> Iterator[str]:
    """The text in pieces, of which each is soon made: as long as one takes, no other thread of this process runs."""
    if not _has_much(value, levels):
        yield _JSON.encode(value)
    elif isinstance(value, dict):
        separator = "{"
        for key, inner in value.items():
            yield f"{separator}{_JSON.encode(key)}:"
            yield from _pieces(inner, levels - 1)
            separator = ","
        yield "}"
    elif isinstance(value, list):
        separator = "["
        for inner in value:
            yield separator + _JSON.encode(inner)
            separator = ","
        yield "]"


def _parse(raw: bytearray) -> JsonObject:
    try:
        message = json.loads(raw.decode(), parse_constant=_refuse_constant)
        if b"\\u" in raw:
            # "\ud800" is JSON, but half a character: no text, and nothing that could be sent back.
            dumps(message)
    except UnicodeDecodeError as error:
        raise ProtocolError(f"a message is not UTF-8: byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise ProtocolError("a message has half a surrogate pair in a string") from error
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message is not a JSON object")
    return message


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
