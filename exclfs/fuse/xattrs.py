"""The virtual xattrs: what is told of an inode by getxattr(2), and the one that places and releases a hold.

They are computed when they are asked for, never stored and never listed, so that cp -a, rsync -X and tar carry none
of them. Each answers under `user.exclfs.` and under `system.exclfs.`: Linux forbids user.* on symlinks, devices,
FIFOs and unreadable files (xattr(7)), while it leaves system.* to the filesystem. Both are authorised here.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field

from exclfs.holds import flags as hold_flags
from exclfs.holds.discretion import as_seen_by
from exclfs.holds.errors import BadHold, NoSuchHold
from exclfs.holds.holder import Holder
from exclfs.holds.lifetime import Unmount
from exclfs.holds.mode import Mode
from exclfs.host import requesters
from exclfs.host.names import printable
from exclfs.wire.shapes import MAX_XATTR, holds_document, refusals_document

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exclfs.holds.events import Refused
    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Credentials, Process
    from exclfs.host.mounts import Mount
    from exclfs.host.places import Place
    from exclfs.keeper import Keeper

PREFIXES: Final = (b"user.exclfs.", b"system.exclfs.")
MAX_VALUE: Final = 4096
"""The longest value of exclfs.hold, in bytes."""
LOOKERS: Final = 2
"""How many threads look at mount namespaces at a time."""
PATIENCE: Final = 1.0
"""Seconds that they have for it."""
_KEYS: Final = frozenset({"holder", "reason", "flags", "claim"})


@define
class Xattrs:
    """What the xattrs of one mount answer.

    Args:
        keeper: the holds.
        explain: what there is to say of a path, in sentences (exclfs.diagnosis.answering.answer).
        socket: the path of the control socket.
        root: what is mounted, as a place.
        mountpoint: where; absolute.
    """

    keeper: Keeper
    explain: Callable[..., str]
    socket: str
    root: Place
    mountpoint: str
    _lookers: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(LOOKERS))

    async def get(self, name: bytes, inode: Inode, path: str, uid: int, pid: int) -> bytes | None:
        """The value of an xattr as this user may see it; None if there is none of this name.

        Args:
            name: with its prefix.
            inode: whose.
            path: its path, absolute in the mount.
            uid: as whom it is asked for.
            pid: by which process or thread; 0 if that cannot be seen.
        """
        match _bare(name):
            case b"holders":
                return holds_document(as_seen_by(uid, self.keeper.covering(inode)))
            case b"flags":
                return ",".join(self.keeper.registry.flags(inode).names).encode()
            case b"why":
                return (await self._why(inode, path, pid)).encode(errors="backslashreplace")[:MAX_XATTR]
            case b"refusals":
                return refusals_document(as_seen_by(uid, self._refusals(inode)))
            case b"hold":
                placed = _placed_by_xattr(self.keeper.registry.on(inode))
                return holds_document(as_seen_by(uid, tuple(placed))) if placed else None
            case b"socket":
                return self.socket.encode(errors="surrogateescape")
        return None

    async def _why(self, inode: Inode, path: str, pid: int) -> str:
        mounted = await self._mounted_on(path, pid)
        return self.explain(
            path,
            self.keeper.covering(inode),
            inode,
            enforced=self.keeper.mode is Mode.ENFORCE,
            mounted=mounted,
            refusals=self._refusals(inode),
        )

    async def _mounted_on(self, path: str, pid: int) -> Sequence[Mount]:
        """What is mounted there in the requester's mount namespace, as far as that can be found out in a moment."""
        place = self.root / os.fsencode(path)[len(os.fsencode(self.mountpoint)) :].strip(b"/")
        with trio.move_on_after(PATIENCE):
            return await trio.to_thread.run_sync(
                requesters.mounted_on, pid, place, abandon_on_cancel=True, limiter=self._lookers
            )
        return ()

    def _refusals(self, inode: Inode) -> tuple[Refused, ...]:
        return tuple(refusal for refusal in self.keeper.refusals if refusal.inode == inode)

    async def set_hold(
        self, value: bytes, inode: Inode, path: str, requester: Process, credentials: Credentials
    ) -> None:
        """Places a hold that ends at unmount or when the xattr is removed.

        Args:
            value: the holder's name; or a JSON object with holder, reason, flags (a list of names) and claim.
            inode: what is held.
            path: its path.
            requester: who sets the xattr.
            credentials: as whom.

        Raises:
            BadHold, UnknownFlag: the value is not that.
            Held, Gone, NotPermitted: as Keeper.trylock.
        """
        wish = _read(value)
        await self.keeper.trylock(
            [(inode, path)],
            flags=_flags(wish),
            holder=Holder(wish.get("holder", _name_of(requester)), requester),
            reason=wish.get("reason", ""),
            ends=(Unmount(),),
            requester=requester,
            credentials=credentials,
        )

    async def remove_hold(self, inode: Inode, requester: Process) -> None:
        """Releases the holds on this inode that the requester placed until unmount; root releases everybody's.

        Raises:
            NoSuchHold: there is none.
            NotPermitted: there are some, and none is the requester's.
        """
        placed = _placed_by_xattr(self.keeper.registry.on(inode))
        if not placed:
            raise NoSuchHold("hold")
        own = [hold for hold in placed if hold.holder.process.uid == requester.uid]
        await self.keeper.unlock([hold.id for hold in own or placed], requester=requester, break_it=not own)


def is_hold(name: bytes) -> bool:
    """Whether this is the xattr that can be set and removed."""
    return _bare(name) == b"hold"


def _bare(name: bytes) -> bytes:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return b""


def _placed_by_xattr(holds: Sequence[Hold]) -> list[Hold]:
    return [hold for hold in holds if Unmount() in hold.ends]


def _read(value: bytes) -> dict[str, Any]:
    if len(value) > MAX_VALUE:
        raise BadHold(f"the value is {len(value)} bytes long; at most {MAX_VALUE} are allowed")
    try:
        text = value.decode().rstrip("\0\n")
    except UnicodeDecodeError:
        raise BadHold("the value is not UTF-8") from None
    if not text.lstrip().startswith("{"):
        return {"holder": text}
    try:
        wish = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadHold(f"the value is not JSON: {error}") from None
    unknown = wish.keys() - _KEYS
    if unknown:
        raise BadHold(f"there is no key {min(unknown)!r}; the keys are {', '.join(sorted(_KEYS))}")
    for key, kind in (("holder", str), ("reason", str), ("flags", list), ("claim", bool)):
        if key in wish and not isinstance(wish[key], kind):
            raise BadHold(f"{key!r} is not of the type that it has to be: {kind.__name__}")
    return dict(wish)


def _name_of(requester: Process) -> str:
    """The holder's name if it says none. A comm may hold anything (prctl(2), PR_SET_NAME); a name may not."""
    return printable(requester.comm) if requester.comm else f"uid {requester.uid}"


def _flags(wish: dict[str, Any]) -> hold_flags.Flags:
    if "flags" not in wish:
        return hold_flags.DEFAULT if wish.get("claim", True) else hold_flags.Flags.NO_REMOVE
    if "claim" in wish:
        raise BadHold("'flags' and 'claim' exclude each other")
    if not all(isinstance(name, str) for name in wish["flags"]):
        raise BadHold("'flags' is not a list of names")
    return hold_flags.parse(wish["flags"])
