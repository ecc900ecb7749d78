"""Every public name is documented, here and on the page; and the two clients have the same names."""

from __future__ import annotations

import enum
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

import exclfs
from exclfs.client import errors as client_errors
from exclfs.client import trio_client
from exclfs.holds import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs/reference/python.md"
PAIRS = [
    *((getattr(exclfs, name), getattr(trio_client, name)) for name in trio_client.__all__ if name[0].islower()),
    (exclfs.Client, trio_client.AsyncClient),
    (exclfs.Events, trio_client.AsyncEvents),
]


def public(module: Any) -> Iterator[tuple[str, Any]]:
    for name in module.__all__:
        if not name.startswith("_"):
            yield name, getattr(module, name)


def members(kind: type) -> dict[str, Any]:
    """What the class itself has to offer: methods, properties, and no plain values."""
    return {
        name: member
        for name, member in vars(kind).items()
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
    }


def everything() -> Iterator[tuple[str, Any]]:
    for module in exclfs, trio_client:
        yield module.__name__, module
        for name, value in public(module):
            yield name, value
            if inspect.isclass(value):
                yield from ((f"{name}.{member}", here) for member, here in members(value).items())


def parameters(value: Any) -> list[inspect.Parameter]:
    return [one for one in inspect.signature(value).parameters.values() if one.name not in ("self", "other")]


@pytest.mark.parametrize(
    ("name", "value"), list(everything()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_it_has_a_docstring_of_its_own(name: str, value: Any) -> None:
    # Not inspect.getdoc(): that of a base class says nothing of this one.
    said = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert said, f"{name} has no docstring"


@pytest.mark.parametrize(
    ("name", "value"), list(everything()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_argument_is_annotated_and_told_about(name: str, value: Any) -> None:
    if not inspect.isfunction(value):
        return
    told = value.__doc__ or ""
    refers_to_another = re.search(r": see [\w.]+\(\)", told)
    for parameter in parameters(value):
        assert parameter.annotation is not parameter.empty
        assert refers_to_another or re.search(rf"\b{parameter.name}\b", told), f"{name}({parameter.name}=)"
    assert inspect.signature(value).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize(("blocking", "on_trio"), PAIRS, ids=lambda value: value.__name__)
def test_both_clients_have_the_same(blocking: Any, on_trio: Any) -> None:
    if not inspect.isclass(blocking):
        assert parameters(blocking) == parameters(on_trio)
        return
    assert members(blocking).keys() == members(on_trio).keys()
    for name, member in members(blocking).items():
        if not isinstance(member, property):
            assert parameters(member) == parameters(members(on_trio)[name]), name


def test_every_error_is_public() -> None:
    for module in errors, client_errors:
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                assert name in exclfs.__all__


def test_the_page_names_them_all() -> None:
    code = " ".join(re.findall(r"```.*?```|`[^`]+`", PAGE.read_text(), re.DOTALL))
    words = set(re.findall(r"\w+", code))
    for name, value in everything():
        assert set(name.split(".")) <= words, name
        named: set[str] = set()
        if inspect.isfunction(value):
            named = {parameter.name for parameter in parameters(value)}
        elif inspect.isclass(value) and issubclass(value, enum.Enum):
            named = set(value.__members__)
        elif inspect.isclass(value) and attrs.has(value):
            named = {field.name for field in attrs.fields(value)}
        elif inspect.isclass(value) and issubclass(value, Exception) and "__init__" in vars(value):
            named = {parameter.name for parameter in parameters(value)}
        assert named <= words, f"{name}: {named - words}"
