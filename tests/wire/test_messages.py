"""Calls, replies and errors: there and back, and what is refused by its name."""

from __future__ import annotations

import json
import math
import os
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exclfs.holds.errors import (
    BadHold,
    BadObject,
    Gone,
    Held,
    HoldError,
    NoSuchHold,
    NotKept,
    NotPermitted,
    UnknownFlag,
)
from exclfs.holds.events import ModeChanged, Refused
from exclfs.holds.flags import DEFAULT, NOTHING, Flags, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, Exit, Unmount
from exclfs.holds.mode import Mode, OpenFiles
from exclfs.wire.envelope import read_call, read_reply, write_call, write_reply
from exclfs.wire.errors import (
    TABLE,
    ExpectedMore,
    InterfaceNotFound,
    InvalidParameter,
    MethodNotFound,
    MethodNotImplemented,
    UnknownError,
    error_to_json,
)
from exclfs.wire.framing import Decoder, ProtocolError, encode
from exclfs.wire.gate_messages import BadGate, NoSuchGate
from exclfs.wire.messages import (
    FOR_EVER,
    MAX_DESCRIPTORS,
    MAX_OBJECTS,
    METHODS,
    Call,
    Cause,
    EventsCall,
    EventsReply,
    GetInfoCall,
    GetInfoReply,
    GetInterfaceDescriptionCall,
    GetInterfaceDescriptionReply,
    HoldCall,
    HoldReply,
    HoldsCall,
    HoldsReply,
    Lifetime,
    ModeCall,
    ModeReply,
    Object,
    RefusedRequester,
    ReleaseCall,
    ReleaseReply,
    RenewCall,
    RenewReply,
    Status,
    StatusCall,
    StatusReply,
    WhyCall,
    WhyReply,
)
from exclfs.wire.shapes import hold_to_json

NOON = datetime(2026, 11, 22, 13, 2, 15, 250, tzinfo=UTC)
ODD = os.fsdecode(b"/caf\xe9/\xff")
HOLD = Hold(
    id="h7",
    inode=Inode(66306, 1234),
    path=ODD,
    flags=DEFAULT,
    holder=Holder("build", Process(4711, 1000, os.fsdecode(b"cc\xfe"), ODD, "ada", None)),
    reason="linking",
    since=NOON,
    ends=(Connection(0), Exit(4711), Unmount()),
)
STATUS = Status(
    source=ODD,
    mountpoint="/mnt",
    pid=1,
    uid=0,
    since=NOON,
    uptime=1.5,
    log="journal",
    passthrough=True,
    idle_poll=False,
    ask_always=False,
    mode=Mode.WARN,
    hold_open=OpenFiles.OWN,
    state=ODD,
    holds=1,
    holders={"build": 1},
    oldest_hold=HOLD,
    refusals=2,
    would_have_refused=3,
    refusals_by_operation={"unlink": 5},
    refusals_by_requester=(
        RefusedRequester(comm=os.fsdecode(b"r\xff"), uid=0, user="root", refusals=4),
        RefusedRequester(uid=7, refusals=1),
    ),
    refusals_by_others=0,
    last_refusals=(Refused(NOON, Operation.UNLINK, ODD, Inode(66306, 1234), Process(None, 0), (HOLD,)),),
    requests={"lookup": 12},
    answered_without_a_decision=10,
    verdicts=5,
    verdicts_timed_out=0,
    verdicts_p50_us=159,
    verdicts_p99_us=None,
    inodes=3,
    descriptors=4,
    descriptor_budget=4096,
    connections=1,
    waiting=2,
)
EXCHANGES: list[tuple[Call[Any], object]] = [
    (
        HoldCall(
            objects=(Object(fd=0), Object(path=ODD)),
            flags=DEFAULT,
            holder="build",
            reason="linking",
            lifetime=Lifetime(connection=True, pidfd=1, ttl=1.5, unmount=False, persistent=True),
            wait=0.5,
        ),
        HoldReply((HOLD, HOLD)),
    ),
    (
        HoldCall(objects=(), flags=DEFAULT, holder="b", reason="", lifetime=Lifetime(pid=7), wait=FOR_EVER),
        HoldReply(()),
    ),
    (ReleaseCall(ids=("h7", "h8"), break_it=True, reason="stuck"), ReleaseReply((HOLD,))),
    (ReleaseCall(object=Object(path="a/b"), break_it=False), ReleaseReply(())),
    (RenewCall(ids=("h7",), ttl=60), RenewReply((HOLD,))),
    (ModeCall(), ModeReply(Mode.ENFORCE)),
    (ModeCall(Mode.OFF), ModeReply(Mode.OFF)),
    (EventsCall(), EventsReply()),
    (
        EventsCall(Object(path="a"), own=True, since=NOON, follow=False),
        EventsReply(ModeChanged(NOON, Mode.ENFORCE, Mode.OFF, Process(1, 0))),
    ),
    (EventsCall(follow=True), EventsReply(missed=7)),
    (HoldsCall(), HoldsReply((HOLD,))),
    (HoldsCall(object=Object(fd=3), holder="build"), HoldsReply(())),
    (
        WhyCall(Object(path="")),
        WhyReply(
            ODD,
            True,
            (
                Cause("hold", "held by build", ("rmdir",), ("rename",), (), errno="EBUSY", hold=HOLD),
                Cause("hold", "x", (), (), ()),
            ),
        ),
    ),
    (StatusCall(), StatusReply(STATUS)),
    (GetInfoCall(), GetInfoReply("exclfs", "exclfs", "1", "https://example.org", ("org.exclfs",))),
    (GetInterfaceDescriptionCall("org.exclfs"), GetInterfaceDescriptionReply("interface org.exclfs")),
]
HOLD_PARAMETERS: dict[str, Any] = {
    "objects": [{"fd": 0}],
    "flags": ["NO_REMOVE"],
    "holder": "build",
    "reason": "",
}


def over_the_wire(message: dict[str, Any]) -> dict[str, Any]:
    (received,) = Decoder().feed(encode(message))
    return received


def call(method: str = "org.exclfs.Hold", **message: Any) -> Call[Any]:
    return read_call({"method": method} | message).typed()


@pytest.mark.parametrize(("call", "reply"), EXCHANGES)
def test_every_call_and_every_reply_comes_back(call: Call[Any], reply: object) -> None:
    incoming = read_call(over_the_wire(write_call(call, more=call.streams)))
    assert incoming.typed() == call
    assert [incoming.more, incoming.oneway, incoming.upgrade] == [call.streams or None, None, None]
    assert read_reply(over_the_wire(write_reply(reply)), call) == reply


def test_every_method_is_among_them() -> None:
    assert {type(call) for call, _ in EXCHANGES} == set(METHODS.values())
    assert all(isinstance(reply, call.reply) for call, reply in EXCHANGES)


@given(
    objects=st.lists(
        st.builds(Object, fd=st.integers(0, 252)) | st.builds(Object, path=st.text() | st.binary().map(os.fsdecode)),
        max_size=4,
    ).map(tuple),
    flags=st.sampled_from([NOTHING, DEFAULT, *Flags]),
    holder=st.text() | st.binary().map(os.fsdecode),
    reason=st.text(),
    lifetime=st.none()
    | st.builds(
        Lifetime,
        connection=st.none() | st.booleans(),
        pid=st.none() | st.integers(1, 2**31),
        ttl=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
    ),
    wait=st.none() | st.floats(0),
)
def test_any_hold_call_comes_back(**fields: Any) -> None:
    asked = HoldCall(**fields)
    assert read_call(over_the_wire(write_call(asked))).typed() == asked


def test_a_call_is_written_as_varlink_says() -> None:
    asked = HoldCall(objects=(Object(fd=0),), flags=DEFAULT, holder="b", reason="r", lifetime=Lifetime(unmount=True))
    assert write_call(asked) == {
        "method": "org.exclfs.Hold",
        "parameters": {
            "objects": [{"fd": 0, "path": None}],
            "flags": ["EXCL_INUSE", "NO_REMOVE"],
            "holder": "b",
            "reason": "r",
            "lifetime": {
                "connection": None,
                "pidfd": None,
                "pid": None,
                "ttl": None,
                "unmount": True,
                "persistent": None,
            },
            "wait": None,
        },
    }
    assert write_call(StatusCall(), oneway=True) == {"method": "org.exclfs.Status", "parameters": {}, "oneway": True}
    assert write_call(StatusCall(), more=True) == {"method": "org.exclfs.Status", "parameters": {}, "more": True}
    assert write_reply(StatusReply(STATUS), continues=True)["continues"] is True
    assert write_reply(EventsReply()) == {"parameters": {"event": None, "missed": 0}}


def test_to_wait_without_end_is_a_number_that_json_has() -> None:
    asked = HoldCall(objects=(), flags=DEFAULT, holder="b", reason="", wait=math.inf)
    assert asked.wait == FOR_EVER
    assert over_the_wire(write_call(asked))["parameters"]["wait"] == 1_000_000_000


def test_parameters_may_be_left_out_or_null_where_there_are_none() -> None:
    assert call("org.exclfs.Status") == call("org.exclfs.Status", parameters=None) == StatusCall()
    assert call("org.exclfs.Holds", parameters={"object": None}, more=True, oneway=None) == HoldsCall()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"objects": {"fd": 0}}, "objects"),
        ({"objects": ["/a"]}, "objects[0]"),
        ({"objects": [{"fd": 0}, {"fd": "0"}]}, "objects[1].fd"),
        ({"objects": [{"fd": True}]}, "objects[0].fd"),
        ({"objects": [{"fd": 0.0}]}, "objects[0].fd"),
        ({"objects": [{"path": {"bytes": "?"}}]}, "objects[0].path"),
        ({"objects": [{"fd": 0, "inode": 3}]}, "objects[0].inode"),
        ({"flags": "NO_REMOVE"}, "flags"),
        ({"flags": [None]}, "flags[0]"),
        ({"holder": None}, "holder"),
        ({"holder": ["build"]}, "holder"),
        ({"reason": 5}, "reason"),
        ({"lifetime": "unmount"}, "lifetime"),
        ({"lifetime": {"unmount": "yes"}}, "lifetime.unmount"),
        ({"lifetime": {"unmount": 1}}, "lifetime.unmount"),
        ({"lifetime": {"pid": 1.5}}, "lifetime.pid"),
        ({"lifetime": {"ttl": "1m"}}, "lifetime.ttl"),
        ({"lifetime": {"ttl": True}}, "lifetime.ttl"),
        ({"lifetime": {"ttl": 10**400}}, "lifetime.ttl"),
        ({"lifetime": {"until": "noon"}}, "lifetime.until"),
        ({"wait": "1"}, "wait"),
        ({"wait": math.inf}, "wait"),
        ({"ttl": 60}, "ttl"),
    ],
)
def test_a_parameter_of_the_wrong_type_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        call(parameters=HOLD_PARAMETERS | change)
    assert caught.value.parameter == named


@pytest.mark.parametrize("missing", HOLD_PARAMETERS)
def test_a_missing_parameter_is_named(missing: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        call(parameters={name: value for name, value in HOLD_PARAMETERS.items() if name != missing})
    assert caught.value.parameter == missing


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        ([{}], "an object is named by one of fd and path"),
        ([{"fd": 0, "path": "a"}], "an object is named by one of fd and path"),
        ([{"fd": -1}], "-1 is not the index of a descriptor"),
        ([{"fd": 0}] * (MAX_DESCRIPTORS + 1), "1025 descriptors in one call; at most 1024 are allowed"),
        ([{"path": ""}] * (MAX_OBJECTS + 1), "10001 objects in one call; at most 10000 are allowed"),
    ],
)
def test_objects_that_cannot_be(objects: list[Any], why: str) -> None:
    with pytest.raises(BadObject) as caught:
        call(parameters=HOLD_PARAMETERS | {"objects": objects})
    assert caught.value.why == why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"lifetime": {"pid": 1, "pidfd": 0}}, "the process is named by one of pidfd and pid"),
        ({"lifetime": {"pidfd": -1}}, "-1 is not the index of a descriptor"),
        ({"lifetime": {"pid": 0}}, "0 is not the id of a process"),
        ({"lifetime": {"ttl": 0}}, "a hold cannot end after 0 seconds"),
        ({"lifetime": {"ttl": -1.5}}, "a hold cannot end after -1.5 seconds"),
        ({"wait": -1}, "-1 seconds cannot be waited"),
    ],
)
def test_lifetimes_that_cannot_be(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BadHold) as caught:
        call(parameters=HOLD_PARAMETERS | change)
    assert caught.value.why == why


@pytest.mark.parametrize("parameters", [{}, {"ids": ["h1"], "object": {"fd": 0}}])
def test_a_release_names_one_thing(parameters: dict[str, Any]) -> None:
    with pytest.raises(BadObject, match="one of ids and object"):
        call("org.exclfs.Release", parameters=parameters)


@pytest.mark.parametrize(("method", "others"), [("Release", {}), ("Renew", {"ttl": 1})])
def test_of_very_many_ids_there_are_too_many(method: str, others: dict[str, Any]) -> None:
    ids = ["h1"] * MAX_OBJECTS
    call(f"org.exclfs.{method}", parameters={"ids": ids} | others)
    with pytest.raises(BadObject, match="10001 ids in one call; at most 10000 are allowed"):
        call(f"org.exclfs.{method}", parameters={"ids": [*ids, "h1"]} | others)


def test_a_hold_is_not_renewed_for_no_time() -> None:
    with pytest.raises(BadHold, match="a hold cannot end after 0 seconds"):
        call("org.exclfs.Renew", parameters={"ids": ["h1"], "ttl": 0})


def test_a_mode_that_there_is_not_is_named() -> None:
    with pytest.raises(InvalidParameter) as caught:
        call("org.exclfs.Mode", parameters={"mode": "panic"})
    assert caught.value.parameter == "mode"


def test_an_unknown_flag_is_named_with_those_there_are() -> None:
    with pytest.raises(UnknownFlag) as caught:
        call(parameters=HOLD_PARAMETERS | {"flags": ["NO_REMOVE", "NO_RENAME"]})
    assert caught.value.name == "NO_RENAME"


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("org.exclfs.Explode", MethodNotFound),
        ("org.exclfs.hold", MethodNotFound),
        ("org.example.Hold", InterfaceNotFound),
        ("Hold", InterfaceNotFound),
        ("", InterfaceNotFound),
    ],
)
def test_what_does_not_exist_is_said_to_be_missing(method: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        call(method, parameters={})


def test_a_stream_has_to_be_asked_for_and_read() -> None:
    with pytest.raises(ExpectedMore):
        call("org.exclfs.Events")
    with pytest.raises(InvalidParameter) as caught:
        call("org.exclfs.Events", more=True, oneway=True)
    assert caught.value.parameter == "oneway"


def test_an_upgrade_is_declined_politely() -> None:
    with pytest.raises(InvalidParameter) as caught:
        call("org.exclfs.Status", upgrade=True)
    assert caught.value.parameter == "upgrade"


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"method": 5},
        {"method": None},
        {"method": "org.exclfs.Status", "parameters": []},
        {"method": "org.exclfs.Status", "parameters": "x"},
        {"method": "org.exclfs.Status", "more": 1},
        {"method": "org.exclfs.Status", "oneway": "true"},
        {"method": "org.exclfs.Status", "jsonrpc": "2.0"},
    ],
)
def test_what_is_not_a_call_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="not a call"):
        read_call(message)


ERRORS: list[Exception] = [
    Held(HOLD),
    NoSuchHold("h9"),
    Gone(),
    NotPermitted("you are not the owner"),
    NotKept("the state file cannot be written: No space left on device"),
    UnknownFlag("X", ("A", "B")),
    BadHold("the reason is not UTF-8"),
    BadObject("it is a socket"),
    ProtocolError("a message is not JSON"),
    NoSuchGate("g1"),
    BadGate("nth counts from 1"),
    InterfaceNotFound("org.example"),
    MethodNotFound("org.exclfs.X"),
    MethodNotImplemented("org.exclfs.Y"),
    InvalidParameter("objects[0].fd"),
    ExpectedMore(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_client_raises_what_the_server_raised(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        read_reply(over_the_wire(error_to_json(error)), StatusCall())
    assert vars(caught.value) == vars(error)
    assert str(caught.value) == str(error)


def test_every_error_is_in_the_table_and_was_tried() -> None:
    assert [row.raised for row in TABLE] == [type(error) for error in ERRORS]
    assert set(HoldError.__subclasses__()) <= {row.raised for row in TABLE}


def test_an_error_names_its_hold() -> None:
    assert error_to_json(Held(HOLD)) == {"error": "org.exclfs.Held", "parameters": {"hold": hold_to_json(HOLD)}}
    assert error_to_json(Gone(HOLD.inode)) == {"error": "org.exclfs.Gone", "parameters": {}}


def test_a_fault_of_the_server_is_not_told_as_an_error_of_the_interface() -> None:
    with pytest.raises(TypeError, match="ZeroDivisionError is not an error of the interface"):
        error_to_json(ZeroDivisionError())


def test_an_error_that_this_client_does_not_know_is_passed_on() -> None:
    with pytest.raises(UnknownError, match=r"org\.exclfs\.Tired") as caught:
        read_reply({"error": "org.exclfs.Tired", "parameters": {"until": "noon"}}, StatusCall())
    assert caught.value.parameters == {"until": "noon"}


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"parameters": {}},
        {"parameters": []},
        {"parameters": "x"},
        {"error": 5},
        {"error": "org.exclfs.Held"},
        {"error": "org.exclfs.Held", "parameters": {"hold": {}}},
        {"error": "org.exclfs.NoSuchHold", "parameters": {"id": 7}},
        {"parameters": {"holds": [{}]}},
        {"parameters": {"holds": [hold_to_json(HOLD) | {"flags": ["NO_RENAME"]}]}},
    ],
)
def test_what_is_not_a_reply_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_reply(message, HoldsCall())


def test_a_reply_of_a_newer_server_is_read() -> None:
    message = write_reply(StatusReply(STATUS))
    message["parameters"]["status"]["mood"] = "calm"
    assert read_reply(json.loads(json.dumps(message)) | {"continues": False}, StatusCall()) == StatusReply(STATUS)


def test_a_refusal_in_the_status_is_a_refusal() -> None:
    message = write_reply(StatusReply(STATUS))
    message["parameters"]["status"]["last_refusals"][0]["event"] = "locked"
    with pytest.raises(ProtocolError, match=r"status\.last_refusals\[0\] is not an event that belongs here: 'locked'"):
        read_reply(message, StatusCall())


def test_status_tells_the_version_of_its_shape() -> None:
    assert attrs.asdict(STATUS)["version"] == 1
