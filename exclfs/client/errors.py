"""What can go wrong between a program and the server of a mount. What the rules refuse is in exclfs.holds.errors."""

from __future__ import annotations


class ClientError(Exception):
    """The base of everything that keeps a call from reaching the server, or its answer from coming back."""


class NotAMount(ClientError):
    """`path` is in no exclfs mount."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is not in an exclfs mount")
        self.path = path


class NoServer(ClientError):
    """`mountpoint` is an exclfs mount and its server cannot be reached; `why` says why."""

    def __init__(self, mountpoint: str, why: str) -> None:
        super().__init__(f"no server answers for {mountpoint}: {why}")
        self.mountpoint = mountpoint
        self.why = why


class WrongServer(NoServer):
    """Who listens on the socket is not who mounted: `uid` is its user, `owner` the user of the mount."""

    def __init__(self, mountpoint: str, *, uid: int, owner: int) -> None:
        super().__init__(mountpoint, f"its socket is served by uid {uid}, but the mount is uid {owner}'s")
        self.uid = uid
        self.owner = owner


class Disconnected(ClientError):
    """The connection has ended, and with it the holds that were bound to it; `why` says how."""

    def __init__(self, mountpoint: str, why: str) -> None:
        super().__init__(f"the connection to the server of {mountpoint} has ended: {why}")
        self.mountpoint = mountpoint
        self.why = why


class NoAnswer(Disconnected):
    """The server did not answer in time; the connection was closed, since its answer may come later."""

    def __init__(self, mountpoint: str, seconds: float) -> None:
        super().__init__(mountpoint, f"no answer within {seconds:g} s")
        self.seconds = seconds


class BadAnswer(ClientError):
    """The server answered what this client does not understand."""

    def __init__(self, mountpoint: str, why: str) -> None:
        super().__init__(f"the server of {mountpoint} answered what is not understood: {why}")
        self.mountpoint = mountpoint
        self.why = why


class EventsLost(Exception):
    """A stream of events was read too slowly: `number` of them are no longer known. The stream goes on after them."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{number} events were lost: they were read too slowly")
        self.number = number


class Listening(RuntimeError):
    """The connection to the server of `mountpoint` carries a stream of events, and no other call until that closes it.

    A mistake of the program: see the events() of a client, with own=True.
    """

    def __init__(self, mountpoint: str) -> None:
        super().__init__(f"this connection to the server of {mountpoint} carries a stream of events; connect() again")
        self.mountpoint = mountpoint
