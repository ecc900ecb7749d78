"""The one table from an error to what is said about it and the exit code.

Every line names the thing, the reason, and what to type next. The exit codes are those of DESIGN section 9:

0 ok · 1 the answer is no · 2 usage, or an argument that names nothing · 3 held by another · 4 not an exclfs mount or no
server · 5 not permitted · 6 mount failed · 70 a fault of exclfs itself
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from exclfs import options
from exclfs.cli.output import shown, when, who
from exclfs.client import errors as client
from exclfs.holds import errors as holds

if TYPE_CHECKING:
    from collections.abc import Callable

OK: Final = 0
NO: Final = 1
USAGE: Final = 2
HELD: Final = 3
NO_SERVER: Final = 4
NOT_PERMITTED: Final = 5
MOUNT_FAILED: Final = 6
FAULT: Final = 70
"""EX_SOFTWARE of sysexits.h."""


class Usage(Exception):
    """The command line is not one that exclfs understands; `command` is the subcommand, "" for none."""

    def __init__(self, why: str, command: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.command = command


class Busy(Exception):
    """The mount cannot be unmounted: files are open in it, or processes work in it."""

    def __init__(self, mountpoint: str) -> None:
        super().__init__(f"{mountpoint} is busy")
        self.mountpoint = mountpoint


class StillHeld(Exception):
    """The mount is not unmounted: living processes hold something in it. The holds are listed before this."""

    def __init__(self, mountpoint: str, count: int) -> None:
        super().__init__(f"{mountpoint} has {count} holds")
        self.mountpoint = mountpoint
        self.count = count


class UnmountFailed(Exception):
    """The mount cannot be unmounted; `why` is what the system said."""

    def __init__(self, mountpoint: str, why: str) -> None:
        super().__init__(f"{mountpoint}: {why}")
        self.mountpoint = mountpoint
        self.why = why


class WaitedInVain(Exception):
    """What was waited for, as long as was wanted, is still held; `held` says by whom, `wait` is the time as typed."""

    def __init__(self, held: holds.Held, wait: str) -> None:
        super().__init__(f"{held} after {wait}")
        self.held = held
        self.wait = wait


class SeveralMounts(Exception):
    """The id of a hold is one in several mounts."""

    def __init__(self, id: str, mountpoints: tuple[str, ...]) -> None:
        super().__init__(f"{id} is a hold in {len(mountpoints)} mounts")
        self.id = id
        self.mountpoints = mountpoints


@frozen
class Advice:
    """What is said about an error, on one line, and the exit code."""

    line: str
    status: int


@frozen
class _Rule:
    of: type[BaseException]
    status: int
    line: Callable[[Any], str]


def _held(error: holds.Held) -> str:
    hold = error.hold
    reason = f": {hold.reason}" if hold.reason else ""
    return (
        f"{hold.path} is held by {who(hold)} since {when(hold.since)}{reason}"
        f" — hold {hold.id}; `exclfs release {hold.id}` ends it if it is yours, with --break if you may"
    )


def _unknown_option(error: options.UnknownOption) -> str:
    nearest = f"; did you mean {error.suggestion}?" if error.suggestion else ""
    return f"-o {error.name}: there is no such option{nearest} (`exclfs mount --help` lists them)"


def _usage(error: Usage) -> str:
    command = f"exclfs {error.command}".rstrip()
    return f"{error.why} (`{command} --help` shows how)"


def _os_error(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    if error.filename is None:
        return reason
    return f"{os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename}: {reason}"


def _gone_server(error: OSError) -> str:
    return f"{_os_error(error)}; the server of this mount has ended: `exclfs umount MNT` clears it away"


_NOTHING_THERE: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_SERVER_GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})

RULES: Final = (
    _Rule(Usage, USAGE, _usage),
    _Rule(holds.Held, HELD, _held),
    _Rule(
        WaitedInVain,
        HELD,
        lambda error: f"waited for {error.wait}{'' if error.wait[-1].isalpha() else 's'} in vain: {_held(error.held)}",
    ),
    _Rule(holds.NoSuchHold, NO, lambda error: f"there is no hold {error.id}; `exclfs holds` lists those there are"),
    _Rule(holds.Gone, USAGE, lambda error: f"{error}: there is nothing left to hold"),
    _Rule(holds.NotPermitted, NOT_PERMITTED, lambda error: error.why),
    _Rule(holds.NotKept, NO_SERVER, lambda error: f"{error.why}; nothing was placed"),
    _Rule(holds.UnknownFlag, USAGE, str),
    _Rule(holds.BadHold, USAGE, lambda error: error.why),
    _Rule(holds.BadObject, NO_SERVER, lambda error: error.why),
    _Rule(
        client.NotAMount,
        NO_SERVER,
        lambda error: (
            f"{error.path} is not in an exclfs mount; `exclfs mount SRC MNT` makes one,"
            " `exclfs holds` lists those there are"
        ),
    ),
    _Rule(
        client.WrongServer,
        NO_SERVER,
        lambda error: f"{error}; this is not the server that mounted it, and nothing was asked of it",
    ),
    _Rule(
        client.NoServer,
        NO_SERVER,
        lambda error: f"{error}; `exclfs umount {error.mountpoint}` clears away a mount whose server has ended",
    ),
    _Rule(
        client.NoAnswer, NO_SERVER, lambda error: f"{error}; `exclfs status {error.mountpoint}` tells whether it lives"
    ),
    _Rule(client.Disconnected, NO_SERVER, lambda error: f"{error}; the holds that were bound to it have ended"),
    _Rule(client.BadAnswer, NO_SERVER, lambda error: f"{error}; is it of another version of exclfs?"),
    _Rule(client.EventsLost, NO_SERVER, lambda error: f"{error}; start again to see what happens from now on"),
    _Rule(options.UnknownOption, USAGE, _unknown_option),
    _Rule(options.BadOption, USAGE, lambda error: f"-o {error.option}: {error.why}"),
    _Rule(options.SourceUnusable, MOUNT_FAILED, lambda error: f"SRC {error.path}: {error.why}; nothing was mounted"),
    _Rule(
        options.MountpointUnusable, MOUNT_FAILED, lambda error: f"MNT {error.path}: {error.why}; nothing was mounted"
    ),
    _Rule(
        options.Nested,
        MOUNT_FAILED,
        lambda error: (
            f"{error.inner} is inside {error.outer}, so the mount would contain itself;"
            " to cover a tree in place give it as both SRC and MNT"
        ),
    ),
    _Rule(
        options.AlreadyMounted,
        MOUNT_FAILED,
        lambda error: (
            f"{error.mountpoint} is an exclfs mount already, of {error.source};"
            f" `exclfs umount {error.mountpoint}` ends it"
        ),
    ),
    _Rule(options.NotAllowed, NOT_PERMITTED, lambda error: f"{error.why}; nothing was mounted"),
    _Rule(options.MountFailed, MOUNT_FAILED, lambda error: f"{error.why}; nothing was mounted"),
    _Rule(
        StillHeld,
        HELD,
        lambda error: (
            f"{error.mountpoint} is in use: {error.count} {'hold' if error.count == 1 else 'holds'}"
            " of living processes, listed above; end them, or unmount all the same with --force"
        ),
    ),
    _Rule(
        Busy,
        HELD,
        lambda error: (
            f"{error.mountpoint} is busy: files are open in it or processes work in it;"
            f" `fuser -vm {error.mountpoint}` shows them, `umount -l {error.mountpoint}` lets go of it once they end"
        ),
    ),
    _Rule(UnmountFailed, NO_SERVER, lambda error: f"{error.mountpoint} cannot be unmounted: {error.why}"),
    _Rule(
        SeveralMounts,
        USAGE,
        lambda error: f"{error.id} is a hold in each of {', '.join(error.mountpoints)}; release it by its path",
    ),
    _Rule(PermissionError, NOT_PERMITTED, _os_error),
    *(_Rule(kind, USAGE, _os_error) for kind in _NOTHING_THERE),
)
"""The first rule whose class fits is the one."""


def advise(error: BaseException) -> Advice:
    """What to say about an error, and the exit code. Never 1 for what is not an answer."""
    for rule in RULES:
        if isinstance(error, rule.of):
            return Advice(_one_line(rule.line(error)), rule.status)
    if isinstance(error, OSError):
        if error.errno in _SERVER_GONE:
            return Advice(_one_line(_gone_server(error)), NO_SERVER)
        named_nothing = error.errno in {errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
        return Advice(_one_line(_os_error(error)), USAGE if named_nothing else NO_SERVER)
    return Advice(_one_line(_fault(error)), FAULT)


def _fault(error: BaseException) -> str:
    at, where = error.__traceback__, ""
    while at is not None:
        where = f" at {PurePath(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}"
        at = at.tb_next
    return f"this is a fault of exclfs: {type(error).__name__}: {error}{where}"


def _one_line(text: str) -> str:
    return shown(" ".join(text.split()))


def explain(error: BaseException) -> int:
    """Says on standard error what is wrong, and returns the exit code."""
    advice = advise(error)
    print(f"exclfs: {advice.line}", file=sys.stderr)
    return advice.status
