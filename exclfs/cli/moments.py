"""Points in time as they are typed: 10m (ago), 14:03, 14:03:22, or as in RFC 3339."""

from __future__ import annotations

from datetime import datetime, time, timedelta

from exclfs import durations


def moment(text: str, now: datetime) -> datetime:
    """The point in time that is meant: so long before now, at this time of today, or on this day.

    Args:
        text: what was typed. A time of day, and a date without a time zone, are those of the local zone.
        now: the time; aware.

    Raises:
        ValueError: it is none of these, or has not come yet.
    """
    meant = _read(text, now)
    if meant is None:
        raise ValueError(f"{text!r} is not a time; write 10m, 14:03, 14:03:22 or 2026-11-22T14:03:22Z")
    if meant > now:
        raise ValueError(f"{text} has not come yet")
    return meant


def _read(text: str, now: datetime) -> datetime | None:
    try:
        return now - timedelta(seconds=durations.seconds(text))
    except OverflowError:
        return datetime.min.replace(tzinfo=now.tzinfo)
    except ValueError:
        pass
    try:
        if "-" not in text:
            today = now.astimezone().date()
            return datetime.combine(today, time.fromisoformat(text)).astimezone()
        return datetime.fromisoformat(text.upper()).astimezone()
    except (ValueError, OverflowError):
        return None
