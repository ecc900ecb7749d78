"""`exclfs hold`: holds paths while a command runs, until Ctrl-C, or until the mount ends."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exclfs.cli import HOLD_FAILED, advice, command_runner
from exclfs.cli.advice import Usage
from exclfs.cli.output import say_json, warn
from exclfs.client import sync_client
from exclfs.client.errors import ClientError, Disconnected
from exclfs.holds import flags as hold_flags
from exclfs.holds.errors import Held
from exclfs.wire.shapes import hold_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.client.sync_client import Client
    from exclfs.holds.hold import Hold


def hold(
    path: str,
    /,
    *more: Annotated[str, Parameter(name="PATH")],
    no_claim: bool = False,
    flag: Annotated[list[str] | None, Parameter(metavar="NAME")] = None,
    holder: Annotated[str | None, Parameter(metavar="NAME", allow_leading_hyphen=True)] = None,
    reason: Annotated[str, Parameter(metavar="TEXT", allow_leading_hyphen=True)] = "",
    until_unmount: bool = False,
    conflict_exit_code: Annotated[int | None, Parameter(name=["-E", "--conflict-exit-code"], metavar="CODE")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    command: Annotated[tuple[str, ...] | None, Parameter(parse=False)] = None,
) -> int:
    """Hold every PATH, all or none, while `-- CMD…` runs; without CMD until Ctrl-C.

    With CMD the exit code is CMD's own, 128+N if signal N ended it; 125 if exclfs failed, 126 if CMD cannot be run,
    127 if it is not found.

    Parameters
    ----------
    path
        What to hold; a symlink is held itself.
    more
        More of them, in the same mount.
    no_claim
        Hold without claiming: any number of others may hold it, too.
    flag
        Exactly this flag instead of EXCL_INUSE and NO_REMOVE; may be repeated.
    holder
        Who holds; by default the name of CMD, or yours.
    reason
        Why, for whoever is refused.
    until_unmount
        Do not stay: the hold ends when it is released, or with the mount.
    conflict_exit_code
        The exit code if another holds it, instead of 3, or of 125 with CMD.
    as_json
        Say as JSON what was placed.
    """
    flags = _flags(claim=not no_claim, names=flag)
    if command is not None and not command:
        raise Usage("the command after -- is missing", "hold")
    if conflict_exit_code is not None and not 0 <= conflict_exit_code <= 255:
        raise Usage(f"-E {conflict_exit_code}: an exit code is a number from 0 to 255", "hold")
    name = holder if holder is not None else _default_holder(command)
    with sync_client.connect(path) as client:
        try:
            placed = client.hold((path, *more), flags=flags, holder=name, reason=reason, until_unmount=until_unmount)
        except Held as error:
            return _kept_out(error, conflict_exit_code, command)
        if command is not None:
            if as_json:
                _tell(placed, as_json=True)
            return _run(client, placed, command)
        if until_unmount:
            _tell(placed, as_json=as_json)
        else:
            _stay(client, placed, as_json=as_json)
    return advice.OK


def _flags(*, claim: bool, names: list[str] | None) -> hold_flags.Flags:
    if names is None:
        return hold_flags.DEFAULT if claim else hold_flags.Flags.NO_REMOVE
    if not claim:
        raise Usage("--flag and --no-claim are two answers to one question; give one of them", "hold")
    return hold_flags.parse(names)


def _default_holder(command: tuple[str, ...] | None) -> str:
    if command:
        return os.fsencode(os.path.basename(command[0])).decode(errors="replace")
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def _kept_out(error: Held, code: int | None, command: tuple[str, ...] | None) -> int:
    status = advice.explain(error)
    if code is not None:
        return code
    return HOLD_FAILED if command is not None else status


def _tell(placed: tuple[Hold, ...], *, as_json: bool) -> None:
    if as_json:
        say_json(holds=[hold_to_json(one) for one in placed])
    else:
        for one in placed:
            print(one.id, flush=True)


def _run(client: Client, placed: tuple[Hold, ...], command: tuple[str, ...]) -> int:
    try:
        return command_runner.run(command)
    finally:
        try:
            client.end(placed)
        except ClientError as error:
            warn(f"the hold ended before {os.path.basename(command[0])} did: {error}")


def _stay(client: Client, placed: tuple[Hold, ...], *, as_json: bool) -> None:
    with contextlib.suppress(_Enough), _ended_by_signals():
        _tell(placed, as_json=as_json)  # whoever reads this may already send the signal
        client.wait_until_closed()
        raise Disconnected(client.mountpoint, "the mount has ended")
    client.end(placed)


class _Enough(Exception):
    """The user has said that the hold is to end."""


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    def enough(*_: object) -> None:
        raise _Enough

    before = {number: signal.signal(number, enough) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
