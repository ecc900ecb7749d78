from __future__ import annotations

from datetime import UTC, datetime

import pytest

from exclfs.cli import event_lines
from exclfs.holds import events
from exclfs.holds.flags import DEFAULT, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Unmount
from exclfs.holds.mode import Mode

NOW = datetime(2020, 11, 22, 13, 2, 15).astimezone(UTC)
ROOT = Process(7, 0, comm="rm", user="root")
HOLD = Hold(
    id="h7",
    inode=Inode(1, 2),
    path="/mnt/\n",
    flags=DEFAULT,
    holder=Holder("web", Process(42, 1000, comm="python3", user="al")),
    reason="being served",
    since=NOW,
    ends=(Unmount(),),
)
WEB = "web (pid 42, python3, user al)"
RM = "rm (pid 7, user root)"
ON_IT = f"h7 on /mnt/\\x0a, held by {WEB}"

EVENTS = [
    (events.Locked(NOW, HOLD), f"locked       {ON_IT}: EXCL_INUSE,NO_REMOVE: being served"),
    (
        events.LockFailed(NOW, "/mnt/a", Inode(1, 2), ROOT, HOLD),
        f"lock_failed  /mnt/a was wanted by {RM}, held by {WEB}",
    ),
    (events.Unlocked(NOW, HOLD), f"unlocked     {ON_IT}"),
    (events.UnlockBad(NOW, "h9", ROOT, "there is no hold h9"), f"unlock_bad   h9 by {RM}: there is no hold h9"),
    (
        events.Refused(NOW, Operation.RMDIR, "/mnt/a", Inode(1, 2), ROOT, (HOLD, HOLD)),
        f"refused      rmdir of /mnt/a by {RM}, held by {WEB} and by {WEB}",
    ),
    (
        events.Refused(NOW, Operation.UNLINK, "/mnt/a", Inode(1, 2), ROOT, (HOLD,), enforced=False),
        f"refused      unlink of /mnt/a by {RM}, held by {WEB}, and happened",
    ),
    (events.Reaped(NOW, HOLD), f"reaped       {ON_IT}"),
    (events.Broken(NOW, HOLD, ROOT), f"broken       {ON_IT}, by {RM}"),
    (events.Broken(NOW, HOLD, ROOT, "in the\x1b way"), f"broken       {ON_IT}, by {RM}: in the\\x1b way"),
    (events.Expired(NOW, HOLD), f"expired      {ON_IT}"),
    (events.Orphaned(NOW, HOLD), f"orphaned     {ON_IT}"),
    (events.ModeChanged(NOW, Mode.ENFORCE, Mode.WARN, ROOT), f"mode_changed enforce to warn by {RM}"),
]


@pytest.mark.parametrize(("event", "said"), EVENTS, ids=lambda value: getattr(value, "name", ""))
def test_every_event_is_one_line_with_all_there_is_to_say(event: events.Event, said: str) -> None:
    line = event_lines.line(event)
    assert line == f"2020-11-22 13:02:15 {said}"
    assert line.isprintable()


def test_there_is_no_other_event() -> None:
    assert {type(event) for event, _ in EVENTS} == set(events.EVENTS)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (events.Broken(NOW, HOLD, ROOT, "in the way"), f"was broken by {RM}: in the way"),
        (events.Expired(NOW, HOLD), "has expired: its time was over, and nobody renewed it"),
        (events.Orphaned(NOW, HOLD), "has ended: what it held was removed behind the mount"),
        (events.Unlocked(NOW, HOLD), "was released by another process of the same user"),
    ],
)
def test_a_holder_is_told_how_its_hold_ended(event: events.Event, said: str) -> None:
    assert event_lines.is_over(event)
    assert event_lines.ending(event) == f"hold h7 on /mnt/\\x0a {said}"


def test_what_a_holder_knows_itself_is_not_told() -> None:
    assert event_lines.ending(events.Reaped(NOW, HOLD)) is None
    assert not event_lines.is_over(events.Locked(NOW, HOLD))
