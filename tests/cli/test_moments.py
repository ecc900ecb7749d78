"""Points in time, and spans of it, as people type and read them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exclfs import durations
from exclfs.cli.moments import moment

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 11, 22, 20, 30, 5, tzinfo=UTC)


@pytest.fixture(params=["UTC", "Asia/Kolkata", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10m", datetime(2026, 11, 22, 20, 20, 5, tzinfo=UTC)),
        ("90", datetime(2026, 11, 22, 20, 28, 35, tzinfo=UTC)),
        ("1d", datetime(2026, 11, 21, 20, 30, 5, tzinfo=UTC)),
        ("2026-11-22T14:03:22Z", datetime(2026, 11, 22, 14, 3, 22, tzinfo=UTC)),
        ("2026-11-22t14:03:22.5z", datetime(2026, 11, 22, 14, 3, 22, 500_000, tzinfo=UTC)),
        ("2026-11-22 16:03:22+02:00", datetime(2026, 11, 22, 14, 3, 22, tzinfo=UTC)),
        ("99999999999999d", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_moment_that_is_the_same_everywhere(text: str, meant: datetime) -> None:
    assert moment(text, NOW) == meant


@pytest.mark.usefixtures("zone")
def test_a_time_of_day_is_of_today_here() -> None:
    now = datetime.now().astimezone()
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    assert moment("00:00", now.astimezone(UTC)) == moment(f"{now:%Y-%m-%d}", now.astimezone(UTC)) == today
    assert moment(f"{now:%H:%M:%S}", now.astimezone(UTC)) == now.replace(microsecond=0)
    assert moment(f"{now:%H:%M}", now.astimezone(UTC)) == now.replace(second=0, microsecond=0)


@pytest.mark.parametrize(
    "text",
    ["", "x", "-5", "0", "10 m", "25:00", "12:60", "2026-13-01", "now", "10m ago", "1-2", "2026-11-22T14:03:22ZZ"],
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time; write 10m, 14:03"):
        moment(text, NOW)


@pytest.mark.parametrize("text", ["2026-11-22T20:30:06Z", "2027-01-01T00:00:00Z"])
def test_what_has_not_come_yet(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text} has not come yet"):
        moment(text, NOW)


@pytest.mark.parametrize(
    ("span", "text"),
    [
        *((0, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m"), (322, "5m22s"), (3600, "1h"), (3605, "1h"), (3900, "1h5m")),
        *((86400, "1d"), (3 * 86400 + 4 * 3600 + 59, "3d4h"), (400 * 86400, "400d")),
    ],
)
def test_a_span_is_spelled_in_its_two_largest_units(span: float, text: str) -> None:
    assert durations.spelled(span) == text


@given(st.floats(1, 1e9))
def test_what_is_spelled_can_be_typed(span: float) -> None:
    assert 0.9 * span < durations.seconds(durations.spelled(span)) <= span or span < 2
