"""Holds and events as JSON: one shape for the socket, the xattrs, the log and --json (DESIGN section 9).

The rules that this module owns:

- A hold is {"id","path","dev","inode","flags","holder":{"name","pid","comm","exe","uid","user","own_uid","container"},
  "reason","since","ends"}. What is not known is null, never left out.
- An end is {"kind","pid","at"}, where pid is of a process and at of a time, and null otherwise.
- An event is {"event": its name, "at": when, …its fields}; an inode is "dev" and "inode" beside them.

What this JSON does not carry is lost on the way: the nodeid of the inode, the start time of a process, the number of
the connection, the deadline of a time.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
from attrs import frozen

from exclfs.holds import events
from exclfs.holds.events import Event, Refused
from exclfs.holds.flags import Flags, Operation, parse
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Close, Connection, End, Exit, StateFile, Time, Unmount
from exclfs.holds.mode import Mode, OpenFiles
from exclfs.wire.framing import JsonObject, dumps
from exclfs.wire.primitives import make_converter, read_string, structure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import cattrs

T = TypeVar("T")

VERSION: Final = 1
"""The version of the shapes, told where a document begins."""

MAX_XATTR: Final = 65536
"""The longest value of an xattr in bytes (XATTR_SIZE_MAX, xattr(7))."""

EVENTS: Final[dict[str, type[Event]]] = {event.name: event for event in events.EVENTS}
"""Every event, by its name."""

KINDS: Final[dict[type[End], str]] = {
    Connection: "connection",
    Exit: "process",
    Time: "time",
    Unmount: "unmount",
    StateFile: "state file",
    Close: "close",
}
"""What each end is called."""


@frozen(kw_only=True)
class ProcessRecord:
    """The JSON of a Process."""

    pid: int | None = None
    comm: str | None = None
    exe: str | None = None
    uid: int
    user: str | None = None
    own_uid: int | None = None
    container: str | None = None


@frozen(kw_only=True)
class HolderRecord:
    """The JSON of a Holder: its process, under its name."""

    name: str
    pid: int | None = None
    comm: str | None = None
    exe: str | None = None
    uid: int
    user: str | None = None
    own_uid: int | None = None
    container: str | None = None


@frozen(kw_only=True)
class EndRecord:
    """The JSON of an End."""

    kind: str
    pid: int | None = None
    at: datetime | None = None


@frozen(kw_only=True)
class HoldRecord:
    """The JSON of a Hold."""

    id: str
    path: str
    dev: int
    inode: int
    flags: Flags
    holder: Holder
    reason: str
    since: datetime
    ends: tuple[End, ...]


def to_json(value: Any) -> Any:
    """The JSON of anything that crosses the socket.

    Raises:
        ValueError: a time has no time zone, or a string has surrogates that os.fsdecode() does not make.
    """
    return _LENIENT.unstructure(value)


def from_json(json: object, shape: type[T], *, strict: bool = False) -> T:
    """The value of type `shape` that has this JSON.

    Args:
        json: what json.loads() gave.
        shape: the type that is expected.
        strict: refuse fields that are not known, as a server does with what it is asked. A client lets them pass: its
            server may be newer than itself.

    Raises:
        BadShape: the JSON is of another shape.
        HoldError: it is of that shape, but the rules know no such value (UnknownFlag, BadObject).
    """
    return structure(_STRICT if strict else _LENIENT, json, shape)


def hold_to_json(hold: Hold) -> JsonObject:
    """The JSON of a hold."""
    return _object(to_json(hold))


def hold_from_json(json: object) -> Hold:
    """The hold of this JSON.

    Raises:
        BadShape, UnknownFlag: it is not the JSON of a hold.
    """
    return from_json(json, Hold)


def event_to_json(event: Event) -> JsonObject:
    """The JSON of an event."""
    return _object(to_json(event))


def event_from_json(json: object) -> Event:
    """The event of this JSON.

    Raises:
        BadShape, UnknownFlag: it is not the JSON of an event.
    """
    return from_json(json, Event)


def holds_document(holds: Sequence[Hold], limit: int = MAX_XATTR) -> bytes:
    """{"version": 1, "holds": […]}: as many, from the first, as go into `limit` bytes; "more" says how many did not."""
    return _document("holds", holds, limit)


def refusals_document(refusals: Sequence[Refused], limit: int = MAX_XATTR) -> bytes:
    """{"version": 1, "refusals": […]}: as many, from the first, as go into `limit` bytes; "more" is the rest."""
    return _document("refusals", refusals, limit)


def _document(name: str, values: Sequence[object], limit: int) -> bytes:
    # What is around the items is counted as if none of them fitted, and each of them with a comma.
    cut = {"version": VERSION, name: [], "more": len(values)}
    room = limit - len(dumps(cut))
    items: list[object] = []
    for value in values:
        item = to_json(value)
        room -= len(dumps(item)) + 1
        if room < 0:
            return dumps(cut | {name: items, "more": len(values) - len(items)})
        items.append(item)
    return dumps({"version": VERSION, name: items})


def _teach(converter: cattrs.Converter) -> cattrs.Converter:
    """Adds to the primitive values those of the rules."""
    for words in Operation, Mode, OpenFiles:
        converter.register_structure_hook(words, _read_word)
        converter.register_unstructure_hook(words, lambda word: word.value)
    converter.register_structure_hook(Flags, lambda names, _: parse(converter.structure(names, tuple[str, ...])))
    converter.register_unstructure_hook(Flags, lambda flags: list(flags.names))
    converter.register_structure_hook(End, lambda json, _: _end(converter.structure(json, EndRecord)))
    for end in KINDS:
        converter.register_unstructure_hook(end, lambda end: converter.unstructure(_end_record(end)))
    converter.register_structure_hook(Process, lambda json, _: _process(converter.structure(json, ProcessRecord)))
    converter.register_unstructure_hook(Process, lambda process: converter.unstructure(_process_record(process)))
    converter.register_structure_hook(Holder, lambda json, _: _holder(converter.structure(json, HolderRecord)))
    converter.register_unstructure_hook(Holder, lambda holder: converter.unstructure(_holder_record(holder)))
    converter.register_structure_hook(Hold, lambda json, _: _hold(converter.structure(json, HoldRecord)))
    converter.register_unstructure_hook(Hold, lambda hold: converter.unstructure(_hold_record(hold)))
    _teach_events(converter)
    return converter


def _teach_events(converter: cattrs.Converter) -> None:
    readers = {name: converter.gen_structure_attrs_fromdict(event) for name, event in EVENTS.items()}

    def read_event(json: object, shape: type[Event]) -> Event:
        if not isinstance(json, dict):
            raise TypeError("is not an object")
        fields = dict(json)
        name = fields.pop("event", None)
        if not isinstance(name, str) or name not in readers or not issubclass(EVENTS[name], shape):
            raise ValueError(f"is not an event that belongs here: {name!r}")
        if "dev" in fields:
            fields["inode"] = {"dev": fields.pop("dev"), "ino": fields.get("inode")}
        event: Event = readers[name](fields, EVENTS[name])
        return event

    def write_event(event: Event) -> JsonObject:
        json: JsonObject = {"event": event.name}
        for field in attrs.fields(type(event)):
            value = getattr(event, field.name)
            if isinstance(value, Inode):
                json |= {"dev": value.dev, "inode": value.ino}
            else:
                json[field.name] = converter.unstructure(value)
        return json

    converter.register_structure_hook(Event, read_event)
    converter.register_unstructure_hook(Event, write_event)


def _read_word(name: object, words: type[enum.StrEnum]) -> enum.StrEnum:
    try:
        return words(read_string(name))
    except ValueError:
        raise ValueError(f"is not one of {', '.join(words)}") from None


def _end(record: EndRecord) -> End:
    match record:
        case EndRecord(kind="process", pid=int(pid)):
            return Exit(pid)
        case EndRecord(kind="time", at=datetime() as at):
            return Time(at)
        case EndRecord(kind="connection"):
            return Connection(0)
        case EndRecord(kind="unmount"):
            return Unmount()
        case EndRecord(kind="state file"):
            return StateFile()
        case EndRecord(kind="close"):
            return Close()
    raise ValueError(f"is not one of {', '.join(KINDS.values())}, with the pid or the time that belongs to it")


def _end_record(end: End) -> EndRecord:
    return EndRecord(
        kind=KINDS[type(end)],
        pid=end.pid if isinstance(end, Exit) else None,
        at=end.at if isinstance(end, Time) else None,
    )


def _process(record: ProcessRecord | HolderRecord) -> Process:
    return Process(
        pid=record.pid,
        uid=record.uid,
        comm=record.comm,
        exe=record.exe,
        user=record.user,
        container=record.container,
        own_uid=record.own_uid,
    )


def _process_record(process: Process) -> ProcessRecord:
    return ProcessRecord(
        pid=process.pid,
        comm=process.comm,
        exe=process.exe,
        uid=process.uid,
        user=process.user,
        own_uid=process.own_uid,
        container=process.container,
    )


def _holder(record: HolderRecord) -> Holder:
    return Holder(record.name, _process(record))


def _holder_record(holder: Holder) -> HolderRecord:
    return HolderRecord(name=holder.name, **attrs.asdict(_process_record(holder.process)))


def _hold(record: HoldRecord) -> Hold:
    return Hold(
        id=record.id,
        inode=Inode(record.dev, record.inode),
        path=record.path,
        flags=record.flags,
        holder=record.holder,
        reason=record.reason,
        since=record.since,
        ends=record.ends,
    )


def _hold_record(hold: Hold) -> HoldRecord:
    return HoldRecord(
        id=hold.id,
        path=hold.path,
        dev=hold.inode.dev,
        inode=hold.inode.ino,
        flags=hold.flags,
        holder=hold.holder,
        reason=hold.reason,
        since=hold.since,
        ends=hold.ends,
    )


def _object(json: Any) -> JsonObject:
    assert isinstance(json, dict)
    return json


_STRICT: Final = _teach(make_converter(strict=True))
_LENIENT: Final = _teach(make_converter(strict=False))
