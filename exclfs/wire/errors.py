"""The errors of the socket: one table of their Varlink names and what raises them, read in both directions.

An error's parameters are attributes of the exception, under the same names; the exception is made of them again at the
other end, so that a client raises what the server raised.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen

from exclfs.holds import errors
from exclfs.holds.hold import Hold
from exclfs.wire.framing import JsonObject, ProtocolError
from exclfs.wire.gate_messages import BadGate, NoSuchGate
from exclfs.wire.primitives import BadShape
from exclfs.wire.shapes import from_json, to_json


class VarlinkError(Exception):
    """A call that is not one of the interface: the errors of org.varlink.service."""


class InterfaceNotFound(VarlinkError):
    """The server has no such interface."""

    def __init__(self, interface: str) -> None:
        super().__init__(f"there is no interface {interface}")
        self.interface = interface


class MethodNotFound(VarlinkError):
    """The interface has no such method."""

    def __init__(self, method: str) -> None:
        super().__init__(f"there is no method {method}")
        self.method = method


class MethodNotImplemented(VarlinkError):
    """The interface has this method, but the server does not do it."""

    def __init__(self, method: str) -> None:
        super().__init__(f"the server does not implement {method}")
        self.method = method


class InvalidParameter(VarlinkError):
    """A parameter is missing, unknown or of the wrong type; `parameter` names it, as in objects[0].fd."""

    def __init__(self, parameter: str) -> None:
        super().__init__(f"invalid parameter: {parameter}")
        self.parameter = parameter


class ExpectedMore(VarlinkError):
    """The method answers with a stream, and the call did not say "more"."""

    def __init__(self) -> None:
        super().__init__('the method answers with a stream, and must be called with "more"')


class UnknownError(VarlinkError):
    """The server answered with an error that is not in the table: it is newer than this client."""

    def __init__(self, name: str, parameters: JsonObject) -> None:
        super().__init__(f"the server answered {name}: {parameters}")
        self.name = name
        self.parameters = parameters


@frozen
class Row:
    """One error: its name, the exception, and the types of its parameters."""

    name: str
    raised: type[Exception]
    parameters: dict[str, Any]


TABLE: Final = (
    Row("org.exclfs.Held", errors.Held, {"hold": Hold}),
    Row("org.exclfs.NoSuchHold", errors.NoSuchHold, {"id": str}),
    Row("org.exclfs.Gone", errors.Gone, {}),
    Row("org.exclfs.NotPermitted", errors.NotPermitted, {"why": str}),
    Row("org.exclfs.NotKept", errors.NotKept, {"why": str}),
    Row("org.exclfs.UnknownFlag", errors.UnknownFlag, {"name": str, "known": tuple[str, ...]}),
    Row("org.exclfs.BadHold", errors.BadHold, {"why": str}),
    Row("org.exclfs.BadObject", errors.BadObject, {"why": str}),
    Row("org.exclfs.ProtocolError", ProtocolError, {"why": str}),
    Row("org.exclfs.gates.NoSuchGate", NoSuchGate, {"gate": str}),
    Row("org.exclfs.gates.BadGate", BadGate, {"why": str}),
    Row("org.varlink.service.InterfaceNotFound", InterfaceNotFound, {"interface": str}),
    Row("org.varlink.service.MethodNotFound", MethodNotFound, {"method": str}),
    Row("org.varlink.service.MethodNotImplemented", MethodNotImplemented, {"method": str}),
    Row("org.varlink.service.InvalidParameter", InvalidParameter, {"parameter": str}),
    Row("org.varlink.service.ExpectedMore", ExpectedMore, {}),
)
"""The one table of errors."""


def error_to_json(error: Exception) -> JsonObject:
    """The reply that carries this error.

    Raises:
        TypeError: it is not in the table: nothing to tell a client, but a fault of the server, for its log.
    """
    for row in TABLE:
        if isinstance(error, row.raised):
            parameters = {name: to_json(getattr(error, name)) for name in row.parameters}
            return {"error": row.name, "parameters": parameters}
    raise TypeError(f"{type(error).__name__} is not an error of the interface") from error


def error_from_json(name: str, parameters: JsonObject) -> Exception:
    """The error of a reply, to be raised; UnknownError for one that is not in the table.

    Raises:
        ProtocolError: it is in the table, but its parameters are others.
    """
    for row in TABLE:
        if row.name == name:
            try:
                typed = {key: from_json(parameters.get(key), shape) for key, shape in row.parameters.items()}
            except (BadShape, errors.UnknownFlag) as error:
                raise ProtocolError(f"the error {name} has other parameters than it should: {error}") from error
            return row.raised(**typed)
    return UnknownError(name, parameters)
