"""exclfs: a passthrough filesystem on which what is in use stays while it is in use, and EBUSY comes with a name.

    import exclfs

    with exclfs.hold("/mnt/cache/objects/4f", reason="being served"):
        ...  # nobody can remove, rename or replace it, root included

The functions here talk to the server of the mount that a path is in. Importing this package is cheap: it loads neither
pyfuse3 nor trio, and the rest when it is first used. On trio, use `exclfs.client.trio_client`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

# The package of the rules has the name of the function below. Once it has been imported, importing from it does not
# bind the name here again, so that `exclfs.holds(…)` always is the function.
from exclfs import holds as _rules  # noqa: F401
from exclfs._version import __version__

if TYPE_CHECKING:
    from exclfs.client.calls import Path
    from exclfs.client.errors import (
        BadAnswer,
        ClientError,
        Disconnected,
        EventsLost,
        Listening,
        NoAnswer,
        NoServer,
        NotAMount,
        WrongServer,
    )
    from exclfs.client.functions import events, hold, inuse, release
    from exclfs.client.sync_client import Client, Events, connect
    from exclfs.diagnosis.asking import why
    from exclfs.diagnosis.attempts import Attempt
    from exclfs.diagnosis.findings import Diagnosis, Unread
    from exclfs.holds.errors import (
        BadHold,
        BadObject,
        Gone,
        Held,
        HoldError,
        NoSuchHold,
        NotKept,
        NotPermitted,
        UnknownFlag,
    )
    from exclfs.holds.events import (
        Broken,
        Event,
        Expired,
        Locked,
        LockFailed,
        ModeChanged,
        Orphaned,
        Reaped,
        Refused,
        UnlockBad,
        Unlocked,
    )
    from exclfs.holds.flags import Flags, Operation
    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Holder, Process
    from exclfs.holds.lifetime import Close, Connection, Exit, StateFile, Time, Unmount
    from exclfs.holds.mode import Mode, OpenFiles
    from exclfs.wire.causes import Cause
    from exclfs.wire.messages import Status, WhyReply

__all__ = [
    "Attempt",
    "BadAnswer",
    "BadHold",
    "BadObject",
    "Broken",
    "Cause",
    "Client",
    "ClientError",
    "Close",
    "Connection",
    "Diagnosis",
    "Disconnected",
    "Event",
    "Events",
    "EventsLost",
    "Exit",
    "Expired",
    "Flags",
    "Gone",
    "Held",
    "Hold",
    "HoldError",
    "Holder",
    "Inode",
    "Listening",
    "LockFailed",
    "Locked",
    "Mode",
    "ModeChanged",
    "NoAnswer",
    "NoServer",
    "NoSuchHold",
    "NotAMount",
    "NotKept",
    "NotPermitted",
    "OpenFiles",
    "Operation",
    "Orphaned",
    "Process",
    "Reaped",
    "Refused",
    "StateFile",
    "Status",
    "Time",
    "UnknownFlag",
    "UnlockBad",
    "Unlocked",
    "Unmount",
    "Unread",
    "WhyReply",
    "WrongServer",
    "__version__",
    "connect",
    "events",
    "hold",
    "holds",
    "inuse",
    "release",
    "why",
]

_HOMES: Final = {
    "exclfs.client.errors": (
        "BadAnswer ClientError Disconnected EventsLost Listening NoAnswer NoServer NotAMount WrongServer"
    ),
    "exclfs.client.functions": "events hold inuse release",
    "exclfs.client.sync_client": "Client Events connect",
    "exclfs.diagnosis.asking": "why",
    "exclfs.diagnosis.attempts": "Attempt",
    "exclfs.diagnosis.findings": "Diagnosis Unread",
    "exclfs.holds.errors": "BadHold BadObject Gone Held HoldError NoSuchHold NotKept NotPermitted UnknownFlag",
    "exclfs.holds.events": (
        "Broken Event Expired LockFailed Locked ModeChanged Orphaned Reaped Refused UnlockBad Unlocked"
    ),
    "exclfs.holds.flags": "Flags Operation",
    "exclfs.holds.hold": "Hold Inode",
    "exclfs.holds.holder": "Holder Process",
    "exclfs.holds.lifetime": "Close Connection Exit StateFile Time Unmount",
    "exclfs.holds.mode": "Mode OpenFiles",
    "exclfs.wire.causes": "Cause",
    "exclfs.wire.messages": "Status WhyReply",
}
"""Where each name is, to be loaded when it is first used."""


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names.split():
            value: object = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def holds(path: Path, *, holder: str | None = None) -> tuple[Hold, ...]:
    """Every hold that covers `path`, oldest first.

    Args:
        path: an object in a mount; what covers it from above counts, too.
        holder: only the holds of whoever has this name.

    Raises:
        NotAMount, NoServer: the path is in no exclfs mount, or in one whose server is gone.
        ClientError: the server did not answer, or not as it should.
        OSError: the path cannot be reached.
    """
    from exclfs.client.sync_client import connect

    with connect(path) as client:
        return client.holds(path, holder=holder)
