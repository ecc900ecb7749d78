"""What a holder may be called, and what it may say."""

from __future__ import annotations

import pytest

from exclfs.holds.errors import BadHold
from exclfs.holds.flags import DEFAULT, NOTHING
from exclfs.holds.lifetime import Unmount
from exclfs.holds.limits import MAX_NAME, MAX_REASON, Limits, check_hold, check_name, check_reason


@pytest.mark.parametrize("name", ["a", "backup of ~/src", "x" * MAX_NAME, "é" * (MAX_NAME // 2), "👩‍💻", "क्‍ष"])
def test_names_that_are_accepted(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "the holder's name is empty"),
        (" \t", "the holder's name is empty"),
        ("x" * (MAX_NAME + 1), "the holder's name is 256 bytes long; at most 255 are allowed"),
        ("é" * 128, "the holder's name is 256 bytes long; at most 255 are allowed"),
        ("a\nb", "the holder's name contains the control character U+000A"),
        ("a\0", "the holder's name contains the control character U+0000"),
        ("\x1b[2J", "the holder's name contains the control character U+001B"),
        ("a\x9bK", "the holder's name contains the control character U+009B"),
        ("a\u2028b", "the holder's name contains the control character U+2028"),
        ("caf\udce9", "the holder's name is not UTF-8"),
    ],
)
def test_names_that_are_refused_and_why(name: str, why: str) -> None:
    with pytest.raises(BadHold) as caught:
        check_name(name)
    assert caught.value.why == why


def test_a_reason_may_be_empty_and_has_its_own_limit() -> None:
    check_reason("")
    check_reason("r" * MAX_REASON)
    with pytest.raises(BadHold, match="the reason is 1025 bytes long; at most 1024 are allowed"):
        check_reason("r" * (MAX_REASON + 1))
    with pytest.raises(BadHold, match="the reason contains the control character U\\+001B"):
        check_reason("\x1b]0;gotcha")
    with pytest.raises(BadHold, match="the reason is not UTF-8"):
        check_reason("\udcff")


def test_a_mount_may_have_a_shorter_limit_for_reasons_in_bytes() -> None:
    check_reason("é" * 5, 10)
    with pytest.raises(BadHold, match="the reason is 12 bytes long; at most 10 are allowed"):
        check_reason("é" * 6, 10)
    check_reason("", 0)


def test_the_limits_of_a_user_are_those_that_the_docs_name() -> None:
    assert Limits() == Limits(holds=16_384, reason=1024, ttl=604_800.0, connections=256, waiting=64)


def test_a_hold_forbids_something_and_something_ends_it() -> None:
    check_hold(DEFAULT, "name", "", (Unmount(),))
    with pytest.raises(BadHold, match="at least one flag"):
        check_hold(NOTHING, "name", "", (Unmount(),))
    with pytest.raises(BadHold, match="what ends it"):
        check_hold(DEFAULT, "name", "", ())
