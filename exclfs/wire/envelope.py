"""The messages that carry calls and replies: the method, and what is around its parameters (varlink.org, Protocol)."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from attrs import frozen

from exclfs.holds.errors import UnknownFlag
from exclfs.wire.errors import ExpectedMore, InterfaceNotFound, InvalidParameter, MethodNotFound, error_from_json
from exclfs.wire.framing import JsonObject, ProtocolError
from exclfs.wire.gate_messages import GATE_METHODS
from exclfs.wire.messages import METHODS, Call
from exclfs.wire.primitives import BadShape
from exclfs.wire.shapes import from_json, to_json

Reply = TypeVar("Reply")

_METHODS: Final = METHODS | GATE_METHODS
_INTERFACES: Final = {method.rpartition(".")[0] for method in _METHODS}


@frozen
class Incoming:
    """A call as it came, before its method and parameters are looked at."""

    method: str
    parameters: dict[str, Any] | None = None
    more: bool | None = None
    """The caller takes several replies. All methods but Events have one."""
    oneway: bool | None = None
    """The caller wants no reply at all, not even an error."""
    upgrade: bool | None = None
    """The caller wants to speak another protocol after this call. No method here has one."""

    def typed(self) -> Call[Any]:
        """The call of this method with these parameters.

        Raises:
            InterfaceNotFound, MethodNotFound: there is no such method.
            InvalidParameter: a parameter is missing, unknown or of the wrong type, or `upgrade` is asked for, or a
                stream that nobody is to be sent.
            ExpectedMore: the method answers with a stream, and only one reply is wanted.
            UnknownFlag, BadObject, BadHold: the parameters are of the right type, but name what does not exist.
        """
        interface, _, _ = self.method.rpartition(".")
        if interface not in _INTERFACES:
            raise InterfaceNotFound(interface)
        if self.method not in _METHODS:
            raise MethodNotFound(self.method)
        if self.upgrade:
            raise InvalidParameter("upgrade")
        if _METHODS[self.method].streams:
            if self.oneway:
                raise InvalidParameter("oneway")
            if not self.more:
                raise ExpectedMore
        try:
            return from_json(self.parameters or {}, _METHODS[self.method], strict=True)
        except BadShape as error:
            raise InvalidParameter(error.field) from error


def write_call(call: Call[Any], *, oneway: bool = False, more: bool = False) -> JsonObject:
    """The message that makes this call.

    Args:
        call: the call.
        oneway: no reply is wanted.
        more: a stream of replies is wanted (EventsCall).

    Raises:
        ValueError: a string has surrogates that os.fsdecode() does not make.
    """
    message: JsonObject = {"method": call.method, "parameters": to_json(call)}
    return message | ({"oneway": True} if oneway else {}) | ({"more": True} if more else {})


def read_call(message: JsonObject) -> Incoming:
    """What this message calls.

    Raises:
        ProtocolError: it is not a call.
    """
    try:
        return from_json(message, Incoming, strict=True)
    except BadShape as error:
        raise ProtocolError(f"a message is not a call: {error}") from error


def write_reply(reply: object, *, continues: bool = False) -> JsonObject:
    """The message that carries this reply. (error_to_json() in exclfs.wire.errors makes that of an error.)

    Args:
        reply: the reply.
        continues: it is one of a stream, and not the last.
    """
    message: JsonObject = {"parameters": to_json(reply)}
    return message | {"continues": True} if continues else message


def read_reply(message: JsonObject, call: Call[Reply]) -> Reply:
    """The reply to this call.

    Raises:
        HoldError, VarlinkError: the error that the server answered with.
        ProtocolError: the message is not a reply, or not one to this call.
    """
    parameters = message.get("parameters") or {}
    name = message.get("error")
    if not isinstance(parameters, dict) or not isinstance(name, str | None):
        raise ProtocolError("a message is not a reply")
    if name is not None:
        raise error_from_json(name, parameters)
    try:
        reply: Reply = from_json(parameters, call.reply)
    except (BadShape, UnknownFlag) as error:
        raise ProtocolError(f"the reply to {call.method} is not as it should be: {error}") from error
    return reply
