from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exclfs.host.names import printable, quoted


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain", "plain"),
        ("größe 1".encode(), "größe 1"),
        (b"a\nb\tc", "a\\nb\\tc"),
        (b"\x1b[31m", "\\x1b[31m"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u202etxt.exe".encode(), "\\u202etxt.exe"),
        ("\u2028".encode(), "\\u2028"),
        (b"a\\nb", "a\\\\nb"),
    ],
)
def test_one_printable_line(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown


def test_quotes_within_quotes() -> None:
    assert quoted('say "no"') == '"say \\"no\\""'


@given(st.binary(min_size=1), st.binary(min_size=1))
def test_two_names_never_look_the_same(one: bytes, other: bytes) -> None:
    shown = [quoted(os.fsdecode(name)) for name in (one, other)]
    assert all(line.isprintable() for line in shown)
    assert (shown[0] == shown[1]) == (one == other)
