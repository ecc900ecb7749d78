"""What is to end a hold, as a client asks for it in a Lifetime.

The rule that this module owns: a process is named by a descriptor of it, which the client passes along or which is
opened here at once. A bare number counts only from a client that means the same process by it: one in the pid namespace
of this server.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import field, frozen

from exclfs.holds.errors import BadHold
from exclfs.holds.lifetime import StateFile, Unmount

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from exclfs.holds.holder import Process
    from exclfs.holds.lifetime import Connection, End, Exit
    from exclfs.keeper import Keeper
    from exclfs.services.connections import Peer
    from exclfs.services.descriptors import Passed
    from exclfs.wire.messages import Lifetime


@frozen
class Lifetimes:
    """Makes ends of what the clients of one mount ask for."""

    keeper: Keeper
    watch: Callable[[int, int], tuple[Exit, Process]]
    """Watches the process of a pidfd for this uid (Reaper.watch). Raises BadHold, NotPermitted."""
    settle: Callable[[Exit], None]
    """Says that the holds are placed, or not, for which it is watched (Reaper.settle)."""
    _depth: int = field(factory=lambda: _namespaces(os.getpid()))

    def ends(
        self, lifetime: Lifetime, requester: Process, peer: Peer, connection: Connection, passed: Passed
    ) -> tuple[tuple[End, ...], Process]:
        """What ends the hold, and which process holds: the one that it ends with, or else the requester.

        Args:
            lifetime: as in the call.
            requester: who calls.
            peer: its end of the connection.
            connection: what ends the hold if nothing else is named.
            passed: what came with the call.

        Raises:
            BadHold: there is no such end.
            NotPermitted: not for this client.
        """
        ends: list[End] = []
        holder = requester
        if lifetime.connection:
            ends.append(connection)
        if lifetime.pidfd is not None:
            ended_by, holder = self._passed(lifetime.pidfd, requester, passed)
            ends.append(ended_by)
        if lifetime.pid is not None:
            ended_by, holder = self._numbered(lifetime.pid, requester, peer, passed.after)
            ends.append(ended_by)
        if lifetime.ttl is not None:
            ends.append(self.keeper.until(lifetime.ttl, requester))
        if lifetime.unmount:
            ends.append(Unmount())
        if lifetime.persistent:
            ends.append(StateFile())
        if not ends and lifetime.connection is None:
            ends.append(connection)
        return tuple(ends), holder

    def _passed(self, index: int, requester: Process, passed: Passed) -> tuple[Exit, Process]:
        if index >= len(passed):
            raise BadHold(f"there is no descriptor {index}: {len(passed)} came with the call")
        watched = self._watched(passed[index], requester, passed.after)
        passed.owner.is_harmless(passed[index])
        return watched

    def _numbered(self, pid: int, requester: Process, peer: Peer, after: ExitStack) -> tuple[Exit, Process]:
        if not self._counts_as_we_do(peer):
            raise BadHold(
                f"process {pid} cannot be named by its number from another pid namespace; "
                "pass a pidfd of it along (pidfd_open(2)), and name its index as pidfd"
            )
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                raise BadHold(f"{pid} is a thread; name its process") from error
            raise BadHold(f"process {pid}: {error.strerror}") from error
        try:
            return self._watched(pidfd, requester, after)
        finally:
            os.close(pidfd)

    def _watched(self, pidfd: int, requester: Process, after: ExitStack) -> tuple[Exit, Process]:
        ended_by, process = self.watch(pidfd, requester.uid)
        after.callback(self.settle, ended_by)
        return ended_by, process

    def _counts_as_we_do(self, peer: Peer) -> bool:
        """Whether the client is in our pid namespace. What is visible to us is in ours or in one below it (NSpid)."""
        return peer.pid > 0 and _namespaces(peer.pid) == self._depth and peer.is_alive()


def _namespaces(pid: int) -> int:
    """In how many pid namespaces this process has a number, as far as /proc shows them (proc_pid_status(5), NSpid)."""
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"NSpid:"):
                return len(line.split()) - 1
    return 0
