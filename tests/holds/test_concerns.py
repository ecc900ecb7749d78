"""Of every event is known whom it concerns, and what."""

from __future__ import annotations

from datetime import UTC, datetime

from exclfs.holds.concerns import concerns_holder, concerns_inode, concerns_user, holds_of, requester_of
from exclfs.holds.events import EVENTS, LockFailed, Refused
from exclfs.holds.flags import DEFAULT, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection
from exclfs.holds.mode import Mode

NOW = datetime(2026, 11, 22, tzinfo=UTC)
HELD, OTHER = Inode(1, 2, 2), Inode(1, 3, 3)
ALICE, BOB, CAROL = Process(10, 1000, start_time=1), Process(20, 1001, start_time=2), Process(30, 1002, start_time=3)
HOLD = Hold("h1", HELD, "/mnt/a", DEFAULT, Holder("alice", ALICE), "", NOW, (Connection(7),))


def test_of_every_event_is_known_whom_it_concerns() -> None:
    for kind in EVENTS:
        fields = {"hold": HOLD, "conflict": HOLD, "holds": (HOLD,), "path": "/mnt/a", "inode": HELD, "id": "h1"}
        fields |= {"operation": Operation.RMDIR, "requester": BOB, "why": "", "before": Mode.OFF, "after": Mode.WARN}
        event = kind(NOW, **{name: value for name, value in fields.items() if name in kind.__annotations__})
        has_hold = bool({"hold", "conflict", "holds"} & kind.__annotations__.keys())
        assert holds_of(event) == ((HOLD,) if has_hold else ())
        assert requester_of(event) == (BOB if "requester" in kind.__annotations__ else None)
        assert concerns_user(event, ALICE.uid) is has_hold
        assert concerns_user(event, BOB.uid) is ("requester" in kind.__annotations__)
        assert not concerns_user(event, CAROL.uid)
        assert concerns_holder(event, Connection(7), CAROL) is has_hold
        assert concerns_holder(event, Connection(8), ALICE) is has_hold
        assert not concerns_holder(event, Connection(8), BOB)
        assert concerns_inode(event, HELD) is has_hold
        assert not concerns_inode(event, OTHER)


def test_what_is_refused_from_above_concerns_both_inodes() -> None:
    refused = Refused(NOW, Operation.RENAME, "/mnt/a/b", OTHER, BOB, (HOLD,))
    failed = LockFailed(NOW, "/mnt/a/b", OTHER, BOB, HOLD)
    for event in refused, failed:
        assert concerns_inode(event, OTHER)
        assert concerns_inode(event, HELD)
