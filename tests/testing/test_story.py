"""What is told of what was recorded, and in which words."""

from __future__ import annotations

import errno
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from exclfs.gating import Operation, When
from exclfs.holds.events import (
    Broken,
    Event,
    Expired,
    Locked,
    LockFailed,
    ModeChanged,
    Orphaned,
    Reaped,
    Refused,
    UnlockBad,
    Unlocked,
)
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.flags import Operation as Removal
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection
from exclfs.holds.mode import Mode
from exclfs.testing.story import MOST, tell
from exclfs.testing.timeline import Kind, Moment, render
from exclfs.testing.trail import Entry, Fate

ROOT: Final = "/mnt/cache"
START: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLOCK: Final = int(START.timestamp()) * 1_000_000_000
"""The clock of entries starts at noon."""
FIND = Process(pid=4711, uid=0, comm="find", start_time=1)
TEST = Process(pid=4700, uid=0, comm="pytest", start_time=2)


def entry(ms: float, operation: str, path: str, fate: Fate = Fate.WENT_ON, **more: Any) -> Entry:
    number = int(ms * 1000)
    fields = {"pid": 4711, "comm": "find", "program": "find", "operation_number": number, **more}
    return Entry(number=number, time=int(ms * 1e6), operation=Operation(operation), path=path, fate=fate, **fields)


def at(ms: float) -> datetime:
    return START + timedelta(milliseconds=ms)


def held(path: str = "objects/4f", process: Process = TEST, flags: Flags = DEFAULT) -> Hold:
    inode = Inode(dev=1, ino=2)
    holder = Holder("reader", process)
    return Hold("h1", inode, f"{ROOT}/{path}", flags, holder, "", START, (Connection(1),))


def told(*records: Entry | Event) -> list[Moment]:
    entries = [record for record in records if isinstance(record, Entry)]
    events = [record for record in records if isinstance(record, Event)]
    return tell(entries, events, root=ROOT, clock=CLOCK)


def only(*records: Entry | Event) -> tuple[str, Kind, str]:
    (moment,) = told(*records)
    return moment.who, moment.kind, moment.text


def test_a_race_is_told_in_the_order_of_both_clocks() -> None:
    moments = told(
        entry(0, "opendir", "objects"),
        entry(1, "unlink", "objects/4f", Fate.STOPPED, gate="1"),
        Locked(at(2), held()),
        entry(3, "unlink", "objects/4f", Fate.LET_GO),
        Refused(at(3.1), Removal.UNLINK, f"{ROOT}/objects/4f", Inode(1, 2), FIND, (held(),)),
        Unlocked(at(4), held()),
    )
    assert render(moments) == (
        "          │ find 4711                        │ pytest 4700\n"
        "──────────┼──────────────────────────────────┼─────────────────────────────────\n"
        "   0.0 ms │ ■ before unlink of objects/4f    │\n"
        "   1.0 ms │                                  │ ● hold of objects/4f:\n"
        "          │                                  │   EXCL_INUSE, NO_REMOVE\n"
        "          │                                  │   (reader)\n"
        "   2.0 ms │ ▶ unlink of objects/4f           │\n"
        "   2.1 ms │ ✗ unlink of objects/4f: EBUSY    │\n"
        "          │  ─────── held by reader ────────▶│\n"
        "   3.0 ms │                                  │ ○ hold of objects/4f released\n"
        "          │                                  │   (reader)\n"
    )


def test_looking_around_is_left_out_and_looking_at_what_matters_is_not() -> None:
    texts = [
        moment.text
        for moment in told(
            entry(0, "open", "objects/4f"),
            entry(1, "open", "elsewhere"),
            entry(2, "getattr", "objects/4f"),
            entry(3, "create", "new"),
            entry(4, "rename", "new", second_path="objects/50"),
            entry(5, "unlink", "objects/4f", Fate.STOPPED),
        )
    ]
    assert texts == [
        "open of objects/4f",
        "getattr of objects/4f",
        "create of new",
        "rename of new to objects/50",
        "before unlink of objects/4f",
    ]


def test_each_fate_has_its_words() -> None:
    what = ("unlink", "a")
    assert only(entry(0, *what)) == ("find 4711", Kind.DONE, "unlink of a")
    assert only(entry(0, *what, Fate.STOPPED)) == ("find 4711", Kind.STOPPED, "before unlink of a")
    assert only(entry(0, *what, Fate.LET_GO)) == ("find 4711", Kind.LET_GO, "unlink of a")
    after = {"when": When.AFTER}
    assert only(entry(0, *what, Fate.STOPPED, **after)) == ("find 4711", Kind.STOPPED, "after unlink of a")
    assert only(entry(0, *what, Fate.LET_GO, **after)) == ("find 4711", Kind.LET_GO, "told of unlink of a")
    answered = entry(0, *what, Fate.ANSWERED, errno=errno.EIO, gate="a fault")
    assert only(answered) == ("find 4711", Kind.REFUSED, "unlink of a: EIO, by a fault")
    assert only(entry(0, *what, Fate.DELAYED)) == ("find 4711", Kind.STOPPED, "before unlink of a, for a while")
    assert only(entry(0, *what, Fate.GONE)) == ("find 4711", Kind.NOTED, "gone before unlink of a")
    assert only(entry(0, "rmdir", "", Fate.STOPPED))[2] == "before rmdir of ."


def test_each_event_has_its_words() -> None:
    who = "pytest 4700"
    assert only(Unlocked(START, held())) == (who, Kind.FREE, "hold of objects/4f released (reader)")
    assert only(Reaped(START, held()))[2] == "hold of objects/4f ended: its holder is gone (reader)"
    assert only(Expired(START, held()))[2] == "hold of objects/4f ended: its time was over (reader)"
    assert only(Orphaned(START, held()))[2] == "hold of objects/4f ended: removed behind the mount (reader)"
    assert only(Broken(START, held(), FIND))[2] == "hold of objects/4f broken (reader)"
    assert only(UnlockBad(START, "h9", FIND, "no such hold"))[2] == "release of h9: no such hold"
    assert only(ModeChanged(START, Mode.ENFORCE, Mode.WARN, FIND))[2] == "mode enforce → warn"
    failed = told(LockFailed(START, f"{ROOT}/a", Inode(1, 2), FIND, held("a")))[0]
    assert (failed.who, failed.text, failed.towards) == ("find 4711", "hold of a: EBUSY", who)


def test_a_refusal_points_at_everybody_who_holds() -> None:
    other = held(process=Process(pid=5, uid=0, comm="other"))
    refused = Refused(START, Removal.UNLINK, f"{ROOT}/objects/4f", Inode(1, 2), FIND, (held(), other), enforced=False)
    moments = told(refused)
    assert [moment.towards for moment in moments] == ["pytest 4700", "other 5"]
    assert moments[0].text == "unlink of objects/4f: would be EBUSY"


def test_a_process_is_called_what_it_was_in_the_end() -> None:
    moments = told(entry(0, "mkdir", "a", comm="sh"), entry(1, "mkdir", "b", comm="find"))
    assert {moment.who for moment in moments} == {"find 4711"}


def test_who_cannot_be_seen_is_somebody() -> None:
    unseen = Process(pid=None, uid=0)
    refused = Refused(START, Removal.RMDIR, f"{ROOT}/a", Inode(1, 2), unseen, (held(),))
    assert told(refused)[0].who == "somebody"


def test_of_a_long_story_the_end_is_told() -> None:
    moments = told(*(entry(number, "create", str(number)) for number in range(MOST + 7)))
    assert len(moments) == MOST + 1
    assert moments[0].text == "(7 moments before that are left out)"
    assert moments[-1].text == f"create of {MOST + 6}"


def test_microseconds_are_kept() -> None:
    early, late = told(
        Unlocked(START + timedelta(microseconds=1), held()), Locked(START + timedelta(microseconds=2), held())
    )
    assert (early.kind, late.at - early.at) == (Kind.FREE, 1000)
