"""Bytes to messages: however they are cut, and whatever they are."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exclfs.wire.framing import LONG, MAX_MESSAGE, Decoder, ProtocolError, encode

MESSAGES: list[dict[str, Any]] = [
    {"method": "org.exclfs.Status"},
    {},
    {"parameters": {"path": "/tmp/naïve/日本", "nul": "\0", "deep": [[[{}]]]}},
]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)


def feed_in_pieces(decoder: Decoder, data: bytes, sizes: list[int]) -> list[dict[str, Any]]:
    """Feeds `data` in pieces of these sizes, again and again, and returns all that came out."""
    messages: list[dict[str, Any]] = []
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        piece, data = data[:size], data[size:]
        messages += decoder.feed(piece)
        turn += 1
    return messages


def test_a_message_is_compact_utf_8_with_one_nul_at_its_end() -> None:
    assert encode({"a": "é\0", "b": [1, None]}) == '{"a":"é\\u0000","b":[1,null]}\0'.encode()


@pytest.mark.parametrize("length", [0, 1, LONG, LONG + 1, 10 * LONG])
def test_a_long_array_is_written_as_a_short_one_is(length: int) -> None:
    items = [{"path": f"é{number}", "deep": [number]} for number in range(length)]
    for value in items, {"a": items, "é": items, "b": {}}, {"parameters": {"holds": items}, "continues": True}:
        message = {"value": value}
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
        assert encode(message) == text.encode() + b"\0"


def test_what_has_begun_is_counted() -> None:
    decoder = Decoder()
    decoder.feed(encode({}) + b'{"method"')
    assert decoder.begun == 9


def test_split_at_every_byte() -> None:
    data = b"".join(encode(message) for message in MESSAGES)
    for cut in range(len(data) + 1):
        decoder = Decoder()
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == MESSAGES
        decoder.eof()


def test_byte_by_byte() -> None:
    data = b"".join(encode(message) for message in MESSAGES)
    assert feed_in_pieces(Decoder(), data, [1]) == MESSAGES


@given(st.lists(OBJECTS, max_size=5), st.lists(st.integers(1, 50), min_size=1))
def test_whatever_is_encoded_comes_out_however_it_is_cut(messages: list[dict[str, Any]], sizes: list[int]) -> None:
    decoder = Decoder()
    assert feed_in_pieces(decoder, b"".join(map(encode, messages)), sizes) == messages
    decoder.eof()


def outcome(data: bytes, sizes: list[int], limit: int) -> tuple[list[dict[str, Any]], str | None]:
    """What comes of these bytes in these pieces: the messages, and then the error if there is one."""
    decoder = Decoder(limit)
    messages: list[dict[str, Any]] = []
    rest = data
    turn = 0
    try:
        while rest:
            size = sizes[turn % len(sizes)]
            piece, rest = rest[:size], rest[size:]
            messages += decoder.feed(piece)
            turn += 1
        decoder.eof()
    except ProtocolError as error:
        return messages + list(error.messages), error.why
    return messages, None


@given(
    st.lists(st.binary(max_size=12) | OBJECTS.map(encode) | st.just(b"\0"), max_size=6).map(b"".join),
    st.lists(st.integers(1, 20), min_size=1),
)
def test_the_outcome_of_any_bytes_does_not_depend_on_how_they_are_cut(data: bytes, sizes: list[int]) -> None:
    assert outcome(data, sizes, limit=24) == outcome(data, [len(data) or 1], limit=24)


@pytest.mark.parametrize("pieces", [[10 << 20], [1 << 16], [4093]])
def test_ten_megabytes_of_garbage_are_refused_before_they_are_kept(pieces: list[int]) -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError, match=f"longer than {MAX_MESSAGE} bytes") as caught:
        feed_in_pieces(decoder, b"\xa5" * (10 << 20), pieces)
    assert caught.value.messages == ()
    with pytest.raises(ProtocolError, match="longer than"):
        decoder.feed(encode({}))
    with pytest.raises(ProtocolError, match="longer than"):
        decoder.eof()


def test_the_limit_holds_for_each_message_and_to_the_byte() -> None:
    exact = encode({"a": "x" * 92})
    assert len(exact) == 101
    assert len(Decoder(100).feed(exact * 50)) == 50
    with pytest.raises(ProtocolError, match="longer than 99 bytes"):
        Decoder(99).feed(exact)
    with pytest.raises(ProtocolError, match="longer than 99 bytes"):
        Decoder(99).feed(exact[:-1])


def test_half_a_message_is_noticed_at_the_end() -> None:
    decoder = Decoder()
    assert decoder.feed(b'{"method":"org.excl') == []
    with pytest.raises(ProtocolError, match="ended after 19 bytes of a message"):
        decoder.eof()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"", "not JSON"),
        (b"GET / HTTP/1.1\r\n", "not JSON"),
        (b'{"a":1}{"b":2}', "not JSON"),
        (b'{"a":', "not JSON"),
        (b'{"a":NaN}', "NaN is not a number of JSON"),
        (b'{"a":-Infinity}', "-Infinity is not a number of JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a":"\xff"}', "not UTF-8: byte 6"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a":"\\ud800"}', "half a surrogate pair"),
        (b'{"\\udcff":1}', "half a surrogate pair"),
        (b'\xef\xbb\xbf{"a":1}', "not JSON"),
    ],
)
def test_what_is_no_message_is_refused_and_what_came_before_it_is_not_lost(bad: bytes, why: str) -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError, match=why) as caught:
        decoder.feed(encode({"good": 1}) + encode({"good": 2}) + bad + b"\0" + encode({"late": 3}))
    assert caught.value.messages == ({"good": 1}, {"good": 2})
    with pytest.raises(ProtocolError, match=why) as caught:
        decoder.feed(encode({"later": 4}))
    assert caught.value.messages == ()


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert Decoder().feed(b'{"a":"\\ud83d\\ude00"}\0') == [{"a": "😀"}]


@pytest.mark.parametrize("message", [{"a": "\udcff"}, {"\ud800": 1}, {"a": math.nan}, {"a": math.inf}])
def test_what_is_not_json_is_not_sent(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"surrogates not allowed|not JSON compliant"):
        encode(message)


@given(OBJECTS)
def test_other_implementations_read_what_we_write(message: dict[str, Any]) -> None:
    data = encode(message)
    assert data.count(b"\0") == 1
    assert json.loads(data[:-1]) == message
