"""`exclfs hold`: holds paths while a command runs, until Ctrl-C, or until whatever end is named.

A hold with CMD is bound to the process of CMD, and not to this one, so that killing `exclfs` uncovers nothing.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from exclfs import durations
from exclfs.cli import HOLD_FAILED, advice, command_runner, targets
from exclfs.cli.advice import Usage, WaitedInVain
from exclfs.cli.output import say_json, say_now, shown, warn
from exclfs.cli.targets import duration
from exclfs.cli.watch import follow, following
from exclfs.client import discovery, sync_client
from exclfs.holds import flags as hold_flags
from exclfs.holds.errors import Held
from exclfs.wire.shapes import hold_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exclfs.client.discovery import Server
    from exclfs.client.sync_client import Client
    from exclfs.holds.hold import Hold

    Place = Callable[[Client, int | None], tuple[Hold, ...]]
    """Places what was asked for, on this connection, to end with the process of this id."""

FOR_EVER: Final = "forever"
"""The value of --wait where none is typed."""


def hold(
    *path: str,
    no_claim: bool = False,
    flag: Annotated[list[str] | None, Parameter(metavar="NAME")] = None,
    holder: Annotated[str | None, Parameter(metavar="NAME", allow_leading_hyphen=True)] = None,
    reason: Annotated[str, Parameter(metavar="TEXT", allow_leading_hyphen=True)] = "",
    ttl: Annotated[str | None, Parameter(metavar="DUR")] = None,
    pid: Annotated[int | None, Parameter(metavar="PID")] = None,
    until_unmount: bool = False,
    persistent: bool = False,
    wait: Annotated[str | None, Parameter(metavar="[=DUR]")] = None,
    listed: Annotated[str | None, Parameter(name="--from", metavar="FILE", allow_leading_hyphen=True)] = None,
    null: Annotated[bool, Parameter(name=["-0", "--null"])] = False,
    pattern: Annotated[list[str] | None, Parameter(name="--glob", metavar="PATTERN")] = None,
    conflict_exit_code: Annotated[int | None, Parameter(name=["-E", "--conflict-exit-code"], metavar="CODE")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    command: Annotated[tuple[str, ...] | None, Parameter(parse=False)] = None,
) -> int:
    """Hold every PATH, all or none, while `-- CMD…` runs; without CMD until Ctrl-C, or until the end that is named.

    With CMD the exit code is CMD's own, 128+N if signal N ended it; 125 if exclfs failed, 126 if CMD cannot be run,
    127 if it is not found. DUR is a time: 90, 90s, 5m, 2h, 1d or 1h30m.

    Parameters
    ----------
    path
        What to hold, all in one mount; a symlink is held itself.
    no_claim
        Hold without claiming: any number of others may hold it, too.
    flag
        Exactly this flag instead of EXCL_INUSE and NO_REMOVE; may be repeated. There are also EXCL_SUBTREE,
        NO_REMOVE_BELOW, PIN_PATH and KERNEL_FILE.
    holder
        Who holds; by default the name of CMD, or yours.
    reason
        Why, for whoever is refused.
    ttl
        Do not stay: the hold ends after this time, unless `exclfs renew` puts it off.
    pid
        Do not stay: the hold ends with this process.
    until_unmount
        Do not stay: the hold ends when it is released, or with the mount.
    persistent
        Do not stay: the hold ends when it is released; a restart of the server does not end it (`--state`).
    wait
        Queue for what is held by another, this long; without DUR for ever.
    listed
        Hold what this file names, too, one path a line; - is standard input.
    null
        In --from a NUL ends each path, as of find -print0.
    pattern
        Hold what matches, too; ** is any number of directories. May be repeated.
    conflict_exit_code
        The exit code if another holds it, instead of 3, or of 125 with CMD.
    as_json
        Say as JSON what was placed.
    """
    _check(command, pid, conflict_exit_code)
    if wait == FOR_EVER:
        _no_time_among(path)
    flags = _flags(claim=not no_claim, names=flag)
    lifetime = duration("--ttl", ttl, "hold") if ttl is not None else None
    timeout = _timeout(wait)
    paths = targets.named(path, listed=listed, null=null, patterns=pattern or (), command="hold")
    server = discovery.find(paths[0])

    def place(client: Client, ending: int | None) -> tuple[Hold, ...]:
        placed = client.hold(
            paths,
            flags=flags,
            holder=holder if holder is not None else _default_holder(command),
            reason=reason,
            timeout=timeout,
            pid=ending,
            ttl=lifetime,
            until_unmount=until_unmount,
            persistent=persistent,
        )
        for one in placed:
            if one.flags != flags:
                warn(f"hold {one.id} on {shown(one.path)} is no claim: another is, and the mount enforces none")
        return placed

    try:
        if command is not None:
            return _run(server, paths, place, command, as_json=as_json)
        if pid is not None or lifetime is not None or until_unmount or persistent:
            return _leave(server, place, pid=pid, as_json=as_json)
        return _stay(server, place, as_json=as_json)
    except Held as error:
        status = advice.explain(error if wait is None else WaitedInVain(error, wait))
        if conflict_exit_code is not None:
            return conflict_exit_code
        return HOLD_FAILED if command is not None else status


def _check(command: tuple[str, ...] | None, pid: int | None, conflict_exit_code: int | None) -> None:
    if command is not None and not command:
        raise Usage("the command after -- is missing", "hold")
    if command is not None and pid is not None:
        raise Usage("--pid and -- CMD are two answers to one question; give one of them", "hold")
    if conflict_exit_code is not None and not 0 <= conflict_exit_code <= 255:
        raise Usage(f"-E {conflict_exit_code}: an exit code is a number from 0 to 255", "hold")


def _no_time_among(paths: tuple[str, ...]) -> None:
    """Catches `--wait 5m`, which would hold a file of that name."""
    for path in paths:
        with contextlib.suppress(ValueError):
            durations.seconds(path)
            if not os.path.lexists(path):
                raise Usage(f"{path}: no such file; a time to wait is written --wait={path}", "hold")


def _flags(*, claim: bool, names: list[str] | None) -> hold_flags.Flags:
    if names is None:
        return hold_flags.DEFAULT if claim else hold_flags.Flags.NO_REMOVE
    if not claim:
        raise Usage("--flag and --no-claim are two answers to one question; give one of them", "hold")
    return hold_flags.parse(names)


def _timeout(wait: str | None) -> float | None:
    if wait == FOR_EVER:
        return None
    return duration("--wait", wait, "hold") if wait is not None else 0.0


def _default_holder(command: tuple[str, ...] | None) -> str:
    if command:
        return os.fsencode(os.path.basename(command[0])).decode(errors="replace")
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def _tell(placed: tuple[Hold, ...], *, as_json: bool) -> None:
    if as_json:
        say_json(holds=[hold_to_json(one) for one in placed])
    else:
        say_now("\n".join(one.id for one in placed))


def _leave(server: Server, place: Place, *, pid: int | None, as_json: bool) -> int:
    """The hold has an end of its own: it is placed, and that is all."""
    with sync_client.reach(server) as client:
        try:
            placed = place(client, pid)
        except ProcessLookupError:
            raise Usage(f"--pid {pid}: there is no such process", "hold") from None
    _tell(placed, as_json=as_json)
    return advice.OK


def _run(server: Server, paths: tuple[str, ...], place: Place, command: tuple[str, ...], *, as_json: bool) -> int:
    """The hold ends with the process of the command, which begins once it is placed."""
    about = paths[0] if len(paths) == 1 else None
    with (
        command_runner.waiting(command) as process,
        sync_client.reach(server) as client,
        client.events(about) as events,
    ):
        placed = place(client, process.pid)
        client.close()  # it is the process that holds; there may be many, and a user has only so many connections
        if as_json:
            _tell(placed, as_json=True)
        with following(events, placed):
            return process.run()


def _stay(server: Server, place: Place, *, as_json: bool) -> int:
    """The hold ends with this process, which stays until it is told to go, or until there is nothing to stay for."""
    with (
        sync_client.reach(server) as listener,
        listener.events(own=True) as events,
        sync_client.reach(server) as client,
    ):
        placed = place(client, None)
        with contextlib.suppress(_Enough), _ended_by_signals():
            _tell(placed, as_json=as_json)  # whoever reads this may already send the signal
            follow(events, placed)
            return advice.NO
        client.end(placed)
    return advice.OK


class _Enough(BaseException):
    """The user has said that the hold is to end. Raised wherever the signal comes, so nobody on the way may take it."""


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
