"""The text of the interfaces and the classes that speak them say the same, as another Varlink parser reads the text."""

from __future__ import annotations

import types
from datetime import datetime
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
import pytest
import varlink
from varlink import scanner

from exclfs._version import __version__
from exclfs.holds.events import EVENTS, Event, Refused
from exclfs.holds.flags import Flags, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import End, Unmount
from exclfs.holds.mode import Mode, OpenFiles
from exclfs.wire import gate_messages, messages
from exclfs.wire.description import INTERFACES, describe, info
from exclfs.wire.envelope import read_call
from exclfs.wire.errors import TABLE, InterfaceNotFound
from exclfs.wire.shapes import EndRecord, HolderRecord, HoldRecord, ProcessRecord, event_from_json, event_to_json

RECORDS: dict[str, type] = {
    "Object": messages.Object,
    "Holder": HolderRecord,
    "End": EndRecord,
    "HoldRecord": HoldRecord,
    "Lifetime": messages.Lifetime,
    "Cause": messages.Cause,
    "Requester": ProcessRecord,
    "RefusedRequester": messages.RefusedRequester,
    "MountStatus": messages.Status,
}
"""The attrs class of every type of org.exclfs, but Refusal and Event, which are events."""

GATE_RECORDS: dict[str, type] = {
    "Selection": gate_messages.SelectionRecord,
    "Stopped": gate_messages.StoppedRecord,
    "Happened": gate_messages.HappenedRecord,
}
"""The same of org.exclfs.gates."""

METHODS = messages.METHODS | gate_messages.GATE_METHODS

NAMES: dict[Any, str] = {
    str: "string",
    int: "int",
    float: "float",
    bool: "bool",
    datetime: "string",
    Operation: "string",
    Mode: "string",
    OpenFiles: "string",
    End: "End",
    Flags: "[]string",
    Hold: "HoldRecord",
    Holder: "Holder",
    Process: "Requester",
    Refused: "Refusal",
    Event: "Event",
    messages.Object: "Object",
    messages.Lifetime: "Lifetime",
    messages.Cause: "Cause",
    messages.RefusedRequester: "RefusedRequester",
    messages.Status: "MountStatus",
    **{shape: name for name, shape in GATE_RECORDS.items()},
}
"""How a Python type is called in the text."""


def in_python(hint: Any) -> str:
    """The Varlink type that this annotation is sent as."""
    if hint in NAMES:
        return NAMES[hint]
    if get_origin(hint) in (Union, types.UnionType):
        (present,) = [each for each in get_args(hint) if each is not type(None)]
        return f"?{in_python(present)}"
    if get_origin(hint) is tuple:
        item, rest = get_args(hint)
        assert rest is ...
        return f"[]{in_python(item)}"
    if get_origin(hint) is dict:
        key, value = get_args(hint)
        assert key is str
        return f"[string]{in_python(value)}"
    raise AssertionError(f"{hint} has no name in the text")


def in_text(parsed: Any) -> str:
    """A type as the other parser has understood it."""
    match parsed:
        case scanner._Maybe():
            return f"?{in_text(parsed.element_type)}"
        case scanner._Array():
            return f"[]{in_text(parsed.element_type)}"
        case scanner._Dict():
            return f"[string]{in_text(parsed.element_type)}"
        case scanner._CustomType():
            return str(parsed.name)
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case str():
            return "string"
    raise AssertionError(f"{parsed} is not used in the text")


def fields_in_python(shape: type) -> dict[str, str]:
    hints = get_type_hints(shape)
    return {field.name: in_python(hints[field.name]) for field in attrs.fields(shape)}


def fields_in_text(struct: Any) -> dict[str, str]:
    return {name: in_text(parsed) for name, parsed in struct.fields.items()}


def members(interface: str, kind: type) -> dict[str, Any]:
    parsed = varlink.Interface(describe(interface).description)
    assert parsed.name == interface
    return {name: member for name, member in parsed.members.items() if isinstance(member, kind)}


@pytest.mark.parametrize(("interface", "records"), [("org.exclfs", RECORDS), ("org.exclfs.gates", GATE_RECORDS)])
def test_every_type_has_the_fields_of_its_class_in_its_order(interface: str, records: dict[str, type]) -> None:
    parsed = members(interface, scanner._Alias)
    for event in {"Refusal", "Event"} & set(parsed):
        del parsed[event]
    assert {name: list(fields_in_text(alias.type).items()) for name, alias in parsed.items()} == {
        name: list(fields_in_python(shape).items()) for name, shape in records.items()
    }


def test_a_refusal_has_the_fields_of_the_event() -> None:
    assert fields_in_text(members("org.exclfs", scanner._Alias)["Refusal"].type) == fields_of_event(Refused)


def test_an_event_has_every_field_of_every_event() -> None:
    common, others = {"event": "string", "at": "string"}, {}
    for event in EVENTS:
        fields = {name: kind for name, kind in fields_of_event(event).items() if name not in common}
        others |= {name: f"?{kind.removeprefix('?')}" for name, kind in fields.items()}
    assert fields_in_text(members("org.exclfs", scanner._Alias)["Event"].type) == common | others


def fields_of_event(event: type[Event]) -> dict[str, str]:
    hints = get_type_hints(event)
    fields = {"event": "string"}
    for field in attrs.fields(event):
        fields |= (
            {"dev": "int", "inode": "int"} if field.name == "inode" else {field.name: in_python(hints[field.name])}
        )
    return fields


def test_what_may_be_null_may_be_left_out_and_nothing_else() -> None:
    for shape in [*RECORDS.values(), *GATE_RECORDS.values(), *METHODS.values()]:
        nullable = {name for name, kind in fields_in_python(shape).items() if kind.startswith("?")}
        optional = {field.name for field in attrs.fields(shape) if field.default is not attrs.NOTHING}
        assert optional - {"version"} == nullable


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_method_has_the_parameters_and_the_reply_of_its_classes(interface: str) -> None:
    text = {
        f"{interface}.{name}": (fields_in_text(method.in_type), fields_in_text(method.out_type))
        for name, method in members(interface, scanner._Method).items()
    }
    assert text == {
        name: (fields_in_python(call), fields_in_python(call.reply))
        for name, call in METHODS.items()
        if name.rpartition(".")[0] == interface
    }


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_error_has_the_parameters_of_the_table(interface: str) -> None:
    text = {
        f"{interface}.{name}": fields_in_text(error.type) for name, error in members(interface, scanner._Error).items()
    }
    assert text == {
        row.name: {name: in_python(kind) for name, kind in row.parameters.items()}
        for row in TABLE
        if row.name.rpartition(".")[0] == interface
    }


@pytest.mark.parametrize("interface", INTERFACES)
def test_no_name_is_used_twice(interface: str) -> None:
    """Types, methods and errors share one space of names: of two that are the same parsers keep only the last."""
    text = describe(interface).description
    names = [
        line.split()[1].partition("(")[0]
        for line in text.splitlines()
        if line.startswith(("type ", "method ", "error "))
    ]
    assert sorted(names) == sorted(varlink.Interface(text).members)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_type_that_is_named_is_there(interface: str) -> None:
    parsed = varlink.Interface(describe(interface).description).members
    seen: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, scanner._CustomType):
            seen.add(node.name)
        for inner in [getattr(node, name, None) for name in ("type", "in_type", "out_type", "element_type")]:
            if inner is not None:
                visit(inner)
        for inner in getattr(node, "fields", {}).values():
            visit(inner)

    for member in parsed.values():
        visit(member)
    assert seen == {name for name, member in parsed.items() if isinstance(member, scanner._Alias)}


def test_info_names_the_product_and_every_interface() -> None:
    answer = info()
    assert (answer.vendor, answer.product, answer.version) == ("exclfs", "exclfs", __version__)
    assert answer.interfaces == ("org.varlink.service", "org.exclfs", "org.exclfs.gates")
    assert {method.rpartition(".")[0] for method in METHODS} == set(answer.interfaces)


def test_an_interface_that_is_not_there_is_not_described() -> None:
    for name in ("org.example", "", "../holds/errors.py\0", "org.exclfs.varlink"):
        with pytest.raises(InterfaceNotFound):
            describe(name)


def test_another_implementation_accepts_our_calls_and_replies() -> None:
    """The client of the varlink package filters what it sends and gets by the text: nothing of ours falls through."""
    interface = varlink.Interface(describe("org.exclfs").description)
    parameters = {
        "objects": [{"fd": 0, "path": None}],
        "flags": ["NO_REMOVE"],
        "holder": "build",
        "reason": "",
        "lifetime": {"ttl": 1.5, "persistent": True},
    }
    method = interface.get_method("Hold")
    sent = interface.filter_params("Hold", method.in_type, False, parameters, {})
    assert read_call({"method": "org.exclfs.Hold", "parameters": sent}).typed() == messages.HoldCall(
        objects=(messages.Object(fd=0),),
        flags=Flags.NO_REMOVE,
        holder="build",
        reason="",
        lifetime=messages.Lifetime(ttl=1.5, persistent=True),
    )
    refusal = Refused(
        datetime.fromisoformat("2026-11-22T13:02:15Z"),
        Operation.RMDIR,
        "/a",
        hold_of_nobody().inode,
        Process(1, 0),
        (hold_of_nobody(),),
    )
    written = event_to_json(refusal)
    for name in "Refusal", "Event":
        kept = interface.filter_params(name, interface.members[name].type, False, written, {})
        assert event_from_json(kept) == event_from_json(written)


def hold_of_nobody() -> Hold:

    since = datetime.fromisoformat("2026-11-22T13:02:15Z")
    return Hold(
        "h1", Inode(1, 2), "/a", Flags.NO_REMOVE, Holder("nobody", Process(None, 65534)), "", since, (Unmount(),)
    )
