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
    from contextlib import AbstractContextManager

    from exclfs.client.calls import Path
    from exclfs.client.errors import (
        BadAnswer,
        ClientError,
        Disconnected,
        NoAnswer,
        NoServer,
        NotAMount,
        WrongServer,
    )
    from exclfs.client.sync_client import Client
    from exclfs.holds.errors import (
        BadHold,
        BadObject,
        Gone,
        Held,
        HoldError,
        NoSuchHold,
        NotPermitted,
        UnknownFlag,
    )
    from exclfs.holds.flags import Flags
    from exclfs.holds.hold import Hold
    from exclfs.holds.holder import Holder
    from exclfs.wire.messages import WhyReply

__all__ = [
    "BadAnswer",
    "BadHold",
    "BadObject",
    "Client",
    "ClientError",
    "Disconnected",
    "Flags",
    "Gone",
    "Held",
    "Hold",
    "HoldError",
    "Holder",
    "NoAnswer",
    "NoServer",
    "NoSuchHold",
    "NotAMount",
    "NotPermitted",
    "UnknownFlag",
    "WrongServer",
    "__version__",
    "connect",
    "hold",
    "holds",
    "inuse",
    "release",
    "why",
]

_HOMES: Final = {
    "exclfs.client.errors": (
        "BadAnswer",
        "ClientError",
        "Disconnected",
        "NoAnswer",
        "NoServer",
        "NotAMount",
        "WrongServer",
    ),
    "exclfs.client.sync_client": ("Client",),
    "exclfs.holds.errors": (
        "BadHold",
        "BadObject",
        "Gone",
        "Held",
        "HoldError",
        "NoSuchHold",
        "NotPermitted",
        "UnknownFlag",
    ),
    "exclfs.holds.flags": ("Flags",),
    "exclfs.holds.hold": ("Hold",),
    "exclfs.holds.holder": ("Holder",),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def hold(
    path: Path,
    *,
    holder: str | None = None,
    reason: str = "",
    claim: bool = True,
    flags: Flags | None = None,
    timeout: float | None = 30.0,
) -> AbstractContextManager[Hold]:
    """Holds `path` for as long as the `with` block runs, and gives the Hold.

    It has a connection of its own, and ends with it: when the block is left, and when this process dies. Nothing is
    held before the block is entered.

    Args:
        path: what to hold; a symlink is held itself.
        holder: who holds; by default the name of the running program.
        reason: why, for whoever is refused.
        claim: whether it is exclusive: EXCL_INUSE beside NO_REMOVE.
        flags: exactly these, instead.
        timeout: seconds that the server may take to answer; None waits for ever.

    Raises:
        Held: a claim is taken; its `hold` says by whom.
        Gone: the path was removed meanwhile.
        NotPermitted, BadHold: see there.
        NotAMount, NoServer: the path is in no exclfs mount, or in one whose server is gone.
        OSError: the path cannot be reached.
    """
    from exclfs.client import sync_client

    return sync_client.hold(path, holder=holder, reason=reason, claim=claim, flags=flags, timeout=timeout)


def connect(path: Path, *, timeout: float | None = 30.0) -> Client:
    """Connects to the server of the mount that `path` is in, for several calls and for holds that live as long.

    Raises:
        NotAMount, NoServer: the path is in no exclfs mount, or in one whose server is gone.
        OSError: the path cannot be reached.
    """
    from exclfs.client import sync_client

    return sync_client.connect(path, timeout=timeout)


def holds(path: Path, *, holder: str | None = None) -> tuple[Hold, ...]:
    """Every hold on `path`, oldest first; of one holder, if one is named.

    Raises:
        NotAMount, NoServer, OSError: as connect().
    """
    with connect(path) as client:
        return client.holds(path, holder=holder)


def inuse(path: Path) -> bool:
    """Whether there is any hold on `path`. It may be another answer a moment later: to remove it, try, and see EBUSY.

    Raises:
        NotAMount, NoServer, OSError: as connect().
    """
    return bool(holds(path))


def why(path: Path) -> WhyReply:
    """Why a removal of `path` is refused: `blocked`, and the `causes`, each with its sentence and its hold.

    Raises:
        NotAMount, NoServer, OSError: as connect().
    """
    with connect(path) as client:
        return client.why(path)


def release(path: Path, *, break_it: bool = False) -> tuple[Hold, ...]:
    """Releases every hold of the caller on `path`, and returns them.

    Args:
        path: what to let go of.
        break_it: somebody else's too; root, the mount's owner and the owner of the directory may do that.

    Raises:
        NotPermitted: they are not the caller's.
        NotAMount, NoServer, OSError: as connect().
    """
    with connect(path) as client:
        return client.release(path=path, break_it=break_it)
