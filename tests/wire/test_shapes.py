"""Holds and events as JSON: the documented shape, there and back."""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exclfs.holds.errors import UnknownFlag
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
from exclfs.holds.flags import DEFAULT, Flags, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Close, Connection, Exit, StateFile, Time, Unmount
from exclfs.holds.mode import Mode
from exclfs.wire.framing import encode
from exclfs.wire.primitives import BadShape
from exclfs.wire.shapes import (
    EVENTS,
    MAX_XATTR,
    event_from_json,
    event_to_json,
    from_json,
    hold_from_json,
    hold_to_json,
    holds_document,
    refusals_document,
)

NOON = datetime(2026, 11, 22, 13, 2, 15, tzinfo=UTC)
HOLD = Hold(
    id="h7",
    inode=Inode(66306, 1234, nodeid=5),
    path="/cache/a",
    flags=DEFAULT,
    holder=Holder("build", Process(4711, 1000, "cc1", "/usr/bin/cc1", "ada", "docker:ab12", start_time=99)),
    reason="linking",
    since=NOON,
    ends=(Connection(12), Exit(4711, 99, "b00t"), Time(NOON + timedelta(hours=1), 77.5), Unmount()),
)
HOLD_JSON: dict[str, Any] = {
    "id": "h7",
    "path": "/cache/a",
    "dev": 66306,
    "inode": 1234,
    "flags": ["EXCL_INUSE", "NO_REMOVE"],
    "holder": {
        "name": "build",
        "pid": 4711,
        "comm": "cc1",
        "exe": "/usr/bin/cc1",
        "uid": 1000,
        "user": "ada",
        "own_uid": None,
        "container": "docker:ab12",
    },
    "reason": "linking",
    "since": "2026-11-22T13:02:15Z",
    "ends": [
        {"kind": "connection", "pid": None, "at": None},
        {"kind": "process", "pid": 4711, "at": None},
        {"kind": "time", "pid": None, "at": "2026-11-22T14:02:15Z"},
        {"kind": "unmount", "pid": None, "at": None},
    ],
}

NAMES = st.text(max_size=20) | st.binary(max_size=20).map(os.fsdecode)
TIMES = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))
NUMBERS = st.integers(0, 2**64 - 1)
# What JSON does not carry (nodeid, start time, number of the connection) is left at what it is read as.
INODES = st.builds(Inode, NUMBERS, NUMBERS, st.just(0))
PROCESSES = st.builds(
    Process,
    pid=st.none() | st.integers(1, 2**22),
    uid=st.integers(0, 2**32 - 1),
    comm=st.none() | NAMES,
    exe=st.none() | NAMES,
    user=st.none() | st.text(max_size=8),
    container=st.none() | st.text(max_size=8),
    start_time=st.none(),
)
FLAGS = st.sets(st.sampled_from(list(Flags)), min_size=1).map(lambda chosen: Flags(sum(flag.value for flag in chosen)))
ENDS = st.one_of(
    st.sampled_from([Connection(0), Unmount(), StateFile(), Close()]),
    st.builds(Exit, st.integers(1, 2**22)),
    st.builds(Time, TIMES),
)
HOLDS = st.builds(
    Hold,
    id=st.text(max_size=8),
    inode=INODES,
    path=NAMES,
    flags=FLAGS,
    holder=st.builds(Holder, st.text(max_size=20), PROCESSES),
    reason=st.text(max_size=20),
    since=TIMES,
    ends=st.lists(ENDS, max_size=2).map(tuple),
)
EVENT = st.one_of(
    st.builds(Locked, TIMES, HOLDS),
    st.builds(LockFailed, TIMES, NAMES, INODES, PROCESSES, HOLDS),
    st.builds(Unlocked, TIMES, HOLDS),
    st.builds(UnlockBad, TIMES, st.text(), PROCESSES, st.text()),
    st.builds(
        Refused,
        TIMES,
        st.sampled_from(Operation),
        NAMES,
        INODES,
        PROCESSES,
        st.lists(HOLDS, max_size=3).map(tuple),
        st.booleans(),
    ),
    st.builds(Reaped, TIMES, HOLDS),
    st.builds(Expired, TIMES, HOLDS),
    st.builds(Broken, TIMES, HOLDS, PROCESSES, st.text()),
    st.builds(Orphaned, TIMES, HOLDS),
    st.builds(ModeChanged, TIMES, st.sampled_from(Mode), st.sampled_from(Mode), PROCESSES),
)


def test_a_hold_has_the_documented_shape_in_the_documented_order() -> None:
    assert json.dumps(hold_to_json(HOLD)) == json.dumps(HOLD_JSON)


def test_what_json_does_not_carry_is_lost_and_nothing_else() -> None:
    process = attrs.evolve(HOLD.holder.process, start_time=None)
    assert hold_from_json(HOLD_JSON) == attrs.evolve(
        HOLD,
        inode=Inode(66306, 1234),
        holder=Holder("build", process),
        ends=(Connection(0), Exit(4711), Time(NOON + timedelta(hours=1)), Unmount()),
    )


def test_what_is_not_known_is_null_and_may_be_left_out() -> None:
    unknown = attrs.evolve(HOLD, holder=Holder("build", Process(None, 0)))
    written = hold_to_json(unknown)
    assert written["holder"] == {
        "name": "build",
        "pid": None,
        "comm": None,
        "exe": None,
        "uid": 0,
        "user": None,
        "own_uid": None,
        "container": None,
    }
    written["holder"] = {"name": "build", "uid": 0}
    assert hold_from_json(written).holder == unknown.holder


@given(HOLDS)
def test_every_hold_comes_back_over_the_wire(hold: Hold) -> None:
    assert hold_from_json(json.loads(encode(hold_to_json(hold))[:-1])) == hold


@given(EVENT)
def test_every_event_comes_back_over_the_wire(event: Event) -> None:
    assert event_from_json(json.loads(encode(event_to_json(event))[:-1])) == event


def test_every_event_that_exists_has_a_shape() -> None:
    assert set(EVENTS.values()) == set(Event.__subclasses__())


def test_a_refusal_has_both_sides() -> None:
    refusal = Refused(NOON, Operation.RMDIR, "/cache/a", Inode(66306, 1234), Process(5, 0, "rm"), (HOLD,))
    assert event_to_json(refusal) == {
        "event": "refused",
        "at": "2026-11-22T13:02:15Z",
        "operation": "rmdir",
        "path": "/cache/a",
        "dev": 66306,
        "inode": 1234,
        "requester": {"pid": 5, "comm": "rm", "exe": None, "uid": 0, "user": None, "own_uid": None, "container": None},
        "holds": [HOLD_JSON],
        "enforced": True,
        "count": 1,
        "until": None,
    }


def test_a_name_that_is_not_utf_8_is_its_bytes() -> None:
    name = os.fsdecode(b"/caf\xe9")
    written = hold_to_json(attrs.evolve(HOLD, path=name))
    assert written["path"] == {"bytes": base64.b64encode(b"/caf\xe9").decode()}
    assert os.fsencode(hold_from_json(written).path) == b"/caf\xe9"


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (NOON, "2026-11-22T13:02:15Z"),
        (NOON.replace(microsecond=1200), "2026-11-22T13:02:15.001200Z"),
        (datetime(2026, 11, 22, 14, 2, 15, tzinfo=timezone(timedelta(hours=1))), "2026-11-22T13:02:15Z"),
    ],
)
def test_times_are_rfc_3339_in_utc(time: datetime, text: str) -> None:
    written = hold_to_json(attrs.evolve(HOLD, since=time))
    assert written["since"] == text
    assert hold_from_json(written).since == time


def test_a_time_without_a_zone_is_not_written() -> None:
    with pytest.raises(ValueError, match="without a time zone"):
        hold_to_json(attrs.evolve(HOLD, since=datetime(2026, 11, 22)))


@pytest.mark.parametrize("text", ["2026-11-22T13:02:15.5+01:00", "2026-11-22 12:02:15.500000z"])
def test_other_forms_of_rfc_3339_are_read(text: str) -> None:
    assert hold_from_json(HOLD_JSON | {"since": text}).since == datetime(2026, 11, 22, 12, 2, 15, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        ({"id": 7}, "id", "is not a string"),
        ({"path": {"bytes": "é"}}, "path", "is not base64"),
        ({"path": {"bytes": "AA", "more": 1}}, "path", "is not a string"),
        ({"dev": True}, "dev", "is not an integer"),
        ({"dev": 1.0}, "dev", "is not an integer"),
        ({"dev": "1"}, "dev", "is not an integer"),
        ({"inode": None}, "inode", "is not an integer"),
        ({"flags": "NO_REMOVE"}, "flags", "is not an array"),
        ({"flags": ["NO_REMOVE", 2]}, "flags[1]", "is not a string"),
        ({"holder": "build"}, "holder", "is not an object"),
        ({"holder": []}, "holder", "is not an object"),
        ({"holder": {"name": "build"}}, "holder.uid", "is missing"),
        ({"holder": {"name": "build", "uid": 0, "pid": "1"}}, "holder.pid", "is not an integer"),
        ({"since": 1_700_000_000}, "since", "is not a time as in RFC 3339"),
        ({"since": "2026-11-22"}, "since", "is not a time as in RFC 3339"),
        ({"since": "2026-11-22T13:02:15"}, "since", "is not a time as in RFC 3339"),
        ({"since": "2026-13-22T13:02:15Z"}, "since", "is not a time as in RFC 3339"),
        ({"since": "0001-01-01T00:00:00+23:59"}, "since", "is not a time as in RFC 3339"),
        ({"ends": {"unmount": 1}}, "ends", "is not an array"),
        ({"ends": ["unmount"]}, "ends[0]", "is not an object"),
        ({"ends": [{"pid": 1}]}, "ends[0].kind", "is missing"),
        ({"ends": [{"kind": "time", "at": "noon"}]}, "ends[0].at", "is not a time as in RFC 3339"),
    ],
)
def test_another_shape_is_refused_with_the_name_of_the_field(change: dict[str, Any], field: str, why: str) -> None:
    with pytest.raises(BadShape) as caught:
        hold_from_json(HOLD_JSON | change)
    assert (caught.value.field, caught.value.why) == (field, why)
    assert str(caught.value) == f"{field} {why}"


@pytest.mark.parametrize("end", [{"kind": "some day"}, {"kind": "process"}, {"kind": "time", "pid": 1}])
def test_an_end_that_there_is_not_is_refused(end: dict[str, Any]) -> None:
    with pytest.raises(
        BadShape, match=r"ends\[0\] is not one of connection, process, time, unmount, state file, close"
    ):
        hold_from_json(HOLD_JSON | {"ends": [end]})


@pytest.mark.parametrize("field", HOLD_JSON)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(BadShape) as caught:
        hold_from_json({name: value for name, value in HOLD_JSON.items() if name != field})
    assert (caught.value.field, caught.value.why) == (field, "is missing")


def test_fields_of_a_newer_server_are_passed_over_unless_it_is_strict() -> None:
    newer = HOLD_JSON | {"holder": HOLD_JSON["holder"] | {"starsign": "virgo"}}
    assert hold_from_json(newer) == hold_from_json(HOLD_JSON)
    with pytest.raises(BadShape) as caught:
        from_json(newer, Hold, strict=True)
    assert caught.value.field == "holder.starsign"


def test_an_unknown_flag_is_said_to_be_one() -> None:
    with pytest.raises(UnknownFlag, match="NO_RENAME"):
        hold_from_json(HOLD_JSON | {"flags": ["NO_RENAME"]})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"event": "rained"}, ""),
        ({"event": None}, ""),
        ({"event": ["refused"]}, ""),
        ({"operation": "shred"}, "operation"),
        ({"dev": "1"}, "inode.dev"),
        ({"inode": None}, "inode.ino"),
        ({"requester": {"pid": 1}}, "requester.uid"),
        ({"holds": [HOLD_JSON, 1]}, "holds[1]"),
        ({"holds": [HOLD_JSON | {"id": 1}]}, "holds[0].id"),
    ],
)
def test_what_is_no_event_is_refused(change: dict[str, Any], field: str) -> None:
    refusal = Refused(NOON, Operation.RMDIR, "/cache/a", Inode(66306, 1234), Process(5, 0, "rm"), (HOLD,))
    with pytest.raises(BadShape) as caught:
        event_from_json(event_to_json(refusal) | change)
    assert caught.value.field == field


def many(count: int) -> tuple[Hold, ...]:
    return tuple(attrs.evolve(HOLD, id=f"h{number}", flags=Flags.NO_REMOVE) for number in range(count))


def test_a_document_says_its_version_and_all_holds() -> None:
    assert json.loads(holds_document(())) == {"version": 1, "holds": []}
    assert json.loads(holds_document((HOLD,))) == {"version": 1, "holds": [HOLD_JSON]}


def test_a_document_that_is_too_long_is_cut_and_says_how_many_more_there_are() -> None:
    holds = many(1000)
    document = holds_document(holds)
    read = json.loads(document)
    shown = len(read["holds"])
    assert MAX_XATTR - 400 < len(document) <= MAX_XATTR
    assert read["holds"] == [hold_to_json(hold) for hold in holds[:shown]]
    assert read["more"] == 1000 - shown


def test_a_document_keeps_to_every_limit_and_wastes_no_more_than_one_hold() -> None:
    holds = many(12)
    whole = holds_document(holds)
    assert "more" not in json.loads(whole)
    largest = max(len(encode(hold_to_json(hold))) for hold in holds)
    for limit in range(60, len(whole) + 60):
        document = holds_document(holds, limit)
        read = json.loads(document)
        assert len(document) <= limit
        assert len(read["holds"]) + read.get("more", 0) == 12
        assert len(document) + largest + 20 > min(limit, len(whole))
    assert holds_document(holds, len(whole) + 20) == whole


def test_one_hold_that_is_too_long_is_counted() -> None:
    endless = attrs.evolve(HOLD, path="/" + "\x01" * 20_000)
    assert json.loads(holds_document((endless,))) == {"version": 1, "holds": [], "more": 1}


def test_refusals_have_a_document_too() -> None:
    refusal = Refused(NOON, Operation.UNLINK, "/cache/a", Inode(66306, 1234), Process(5, 0, "rm"), (HOLD,))
    assert json.loads(refusals_document([refusal])) == {"version": 1, "refusals": [event_to_json(refusal)]}
    assert json.loads(refusals_document([refusal] * 1000))["more"] > 0
