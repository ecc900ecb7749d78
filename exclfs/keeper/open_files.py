"""Files that are open, as the holds that they are (--hold-open).

The rule that this module owns: opening a file places a hold on it and closing it ends the hold, without a word from
the program. It is against other processes: what the opener does itself is never refused. A file whose opener has died
is held by nobody who could be named, and so not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exclfs.holds.errors import NotPermitted
from exclfs.holds.flags import Flags
from exclfs.holds.hold import Hold
from exclfs.holds.holder import Holder
from exclfs.holds.lifetime import Close
from exclfs.host.names import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from exclfs.holds.hold import Inode
    from exclfs.holds.holder import Process
    from exclfs.keeper.words import Mirror


PREFIX: Final = "open-"
"""What the id of such a hold begins with."""


def openings(
    inode: Inode,
    path: str,
    mirror: Mirror,
    describe: Callable[..., Process],
    is_alive: Callable[[Process], bool],
) -> tuple[Hold, ...]:
    """One hold for each living process that has the inode open, since it opened it first.

    Raises:
        Gone: nobody knows the inode any more.
    """
    first = {(opener.pid, opener.start_time): opener for opener in mirror.openers(inode)}
    holds = []
    for opener in reversed(first.values()):
        process = describe(opener.pid, uid=opener.uid)
        # A child may have inherited it of one that has died, which may not even have been waited for.
        if process.start_time != opener.start_time or not is_alive(process):
            continue
        name = printable(process.comm) if process.comm else f"pid {opener.pid}"
        holds.append(
            Hold(
                id=f"{PREFIX}{opener.pid}-{inode.ino}",
                inode=inode,
                path=path,
                flags=Flags.NO_REMOVE,
                holder=Holder(name, process),
                reason=f"opened by pid {opener.pid} ({name})",
                since=opener.since,
                ends=(Close(),),
            )
        )
    return tuple(holds)


def check_releasable(id: str) -> None:
    """Accepts the id of a hold that was placed.

    Raises:
        NotPermitted: it is a file that is open; `why` says what ends that.
    """
    if id.startswith(PREFIX):
        raise NotPermitted(f"{id} is a file that is open: it cannot be released, and ends when the file is closed")


def opened_by(hold: Hold, process: Process) -> bool:
    """Whether this process has opened that file itself."""
    opener = hold.holder.process
    return (opener.pid, opener.start_time) == (process.pid, process.start_time)
