"""Which program a process runs is for root and its own user."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from attrs import evolve

from exclfs.holds.discretion import as_seen_by
from exclfs.holds.events import Refused
from exclfs.holds.flags import DEFAULT, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Unmount

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALICE = Process(10, 1000, "prog", "/home/alice/secret", start_time=5)
BOB = Process(20, 1001, "rm", "/usr/bin/rm", start_time=7)
HOLD = Hold("h1", Inode(7, 1), "/mnt/f", DEFAULT, Holder("alice", ALICE), "", NOW, (Unmount(),))
REFUSED = Refused(NOW, Operation.UNLINK, "/mnt/f", Inode(7, 1), BOB, (HOLD,))


@pytest.mark.parametrize("value", [ALICE, HOLD, (HOLD,), REFUSED, "text", None, 7, ()])
def test_root_sees_everything(value: object) -> None:
    assert as_seen_by(0, value) is value


@pytest.mark.parametrize("value", [ALICE, HOLD, (HOLD, HOLD)])
def test_their_user_sees_everything(value: object) -> None:
    assert as_seen_by(1000, value) is value


def test_of_one_that_asked_as_another_it_is_its_own_user_who_sees_the_program() -> None:
    behind_an_overlay = evolve(ALICE, uid=1001, own_uid=1000)
    assert as_seen_by(1000, behind_an_overlay) is behind_an_overlay
    assert as_seen_by(1001, behind_an_overlay) == evolve(behind_an_overlay, exe=None)


def test_others_do_not_see_the_program() -> None:
    hidden = evolve(HOLD, holder=Holder("alice", evolve(ALICE, exe=None)))
    assert as_seen_by(1001, HOLD) == hidden
    assert as_seen_by(1001, (HOLD, "text")) == (hidden, "text")


def test_of_an_event_each_sees_its_own_side() -> None:
    assert as_seen_by(1001, REFUSED).requester == BOB
    assert as_seen_by(1001, REFUSED).holds[0].holder.process.exe is None
    assert as_seen_by(1000, REFUSED).requester == evolve(BOB, exe=None)
    assert as_seen_by(1000, REFUSED).holds == (HOLD,)
    both = as_seen_by(1002, REFUSED)
    assert both.requester.exe is both.holds[0].holder.process.exe is None
