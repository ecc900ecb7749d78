"""The primitive values of JSON, read strictly: nothing is converted in silence.

The rules that this module owns:

- A number where a string belongs, or a string where an array belongs, is an error that names the field.
- A time is RFC 3339 in UTC, with microseconds where there are any: 2026-11-22T13:02:15Z.
- A string that is not UTF-8 (a file name, a comm: any bytes, as os.fsdecode() gives them) is {"bytes": base64}.
- A field that may be null may be left out.
"""

from __future__ import annotations

import base64
import math
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import AttributeValidationNote, ForbiddenExtraKeysError, IterableValidationNote

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class BadShape(ValueError):
    """JSON of another shape than was expected; `field` names the place, as in objects[0].fd, and `why` says more."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field or 'the value'} {why}")
        self.field = field
        self.why = why


def make_converter(*, strict: bool) -> cattrs.Converter:
    """A converter that knows the primitive values, arrays, dictionaries and attrs classes.

    Args:
        strict: refuse fields that are not known.
    """
    converter = cattrs.Converter(forbid_extra_keys=strict, unstruct_collection_overrides={tuple: list})
    converter.register_structure_hook(str, read_string)
    converter.register_unstructure_hook(str, _write_string)
    converter.register_structure_hook(int, _read_int)
    converter.register_structure_hook(float, _read_number)
    converter.register_structure_hook(bool, _read_bool)
    converter.register_structure_hook(datetime, _read_time)
    converter.register_unstructure_hook(datetime, _write_time)

    # cattrs would take a string for a tuple of its letters and anything with an `in` for an object, and would go on
    # after the first error: a stranger's million of them must not keep a server busy.
    def array_reader(shape: Any) -> Callable[[object, Any], Any]:
        item = get_args(shape)[0]
        read = converter.get_structure_hook(item)

        def read_item(index: int, value: object) -> Any:
            try:
                return read(value, item)
            except Exception as error:
                error.add_note(IterableValidationNote(f"@ index {index}", index, item))
                raise

        def read_array(value: object, _: Any) -> tuple[Any, ...]:
            if not isinstance(value, list):
                raise TypeError("is not an array")
            return tuple(read_item(index, each) for index, each in enumerate(value))

        return read_array

    def object_reader(shape: Any) -> Callable[[object, Any], Any]:
        read_fields = converter.gen_structure_attrs_fromdict(shape)

        def read_object(value: object, _: Any) -> Any:
            if not isinstance(value, dict):
                raise TypeError("is not an object")
            return read_fields(value, shape)

        return read_object

    def dictionary_reader(shape: Any) -> Callable[[object, Any], Any]:
        read_items = converter.gen_structure_mapping(shape)

        def read_dictionary(value: object, _: Any) -> Any:
            if not isinstance(value, dict):
                raise TypeError("is not an object")
            return read_items(value, shape)

        return read_dictionary

    converter.register_structure_hook_factory(_is_a(tuple), array_reader)
    converter.register_structure_hook_factory(_is_a(dict), dictionary_reader)
    converter.register_structure_hook_factory(attrs.has, object_reader)
    return converter


def structure(converter: cattrs.Converter, json: object, shape: type[T]) -> T:
    """The value of type `shape` that has this JSON.

    Raises:
        BadShape: the JSON is of another shape.
        Exception: what a hook raised because the rules know no such value, as it was raised.
    """
    try:
        return converter.structure(json, shape)
    except Exception as error:
        field, cause = _first_cause(error)
        if isinstance(cause, KeyError):
            raise BadShape(field, "is missing") from error
        if isinstance(cause, ForbiddenExtraKeysError):
            raise BadShape(_join(field, min(cause.extra_fields)), "is not known") from error
        if isinstance(cause, (ValueError, TypeError)):
            raise BadShape(field, str(cause)) from error
        raise cause from None


def _is_a(origin: type) -> Callable[[Any], bool]:
    return lambda shape: bool(get_origin(shape) == origin)


def read_string(value: object, _: Any = str) -> str:
    """The string of this JSON, bytes that are not UTF-8 as surrogates.

    Raises:
        ValueError, TypeError: it is none.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.keys() == {"bytes"} and isinstance(value["bytes"], str):
        try:
            return base64.b64decode(value["bytes"], validate=True).decode(errors="surrogateescape")
        except ValueError:
            raise ValueError("is not base64") from None
    raise TypeError("is not a string")


def _write_string(value: str) -> str | dict[str, str]:
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"bytes": base64.b64encode(value.encode(errors="surrogateescape")).decode()}
    return value


def _read_int(value: object, _: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError("is not an integer")


def _read_number(value: object, _: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)
            if math.isfinite(number):
                return number
        raise ValueError("is too large a number")
    raise TypeError("is not a number")


def _read_bool(value: object, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError("is neither true nor false")


def _read_time(value: object, _: Any) -> datetime:
    if isinstance(value, str) and _RFC_3339.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise ValueError("is not a time as in RFC 3339")


def _write_time(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError("a time without a time zone is no time")
    return value.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


def _first_cause(error: BaseException) -> tuple[str, BaseException]:
    """The first thing that was wrong, out of the groups that cattrs makes, and the field that it was wrong with."""
    field = ""
    while True:
        for note in reversed(getattr(error, "__notes__", ())):  # the outermost was added last
            if isinstance(note, AttributeValidationNote):
                field = _join(field, note.name)
            elif isinstance(note, IterableValidationNote):
                field += f"[{note.index}]"
        if not isinstance(error, BaseExceptionGroup):
            return field, error
        error = error.exceptions[0]


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
