"""The server of one mount: the one place that builds everything and runs it in one nursery. Read this first.

What it will need is opened before it mounts (imports, log, tree), so that a mount that exists is one that works.
From then on the mirror's threads serve the kernel, and this process's only Python thread runs trio: pyfuse3 answers
the mirror's questions, the control socket answers people. It ends when the mount does, or at SIGTERM and SIGINT,
which take the mount away first.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import itertools
import json
import os
import resource
import signal
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import trio

from exclfs.diagnosis import answering, holding
from exclfs.fuse import session
from exclfs.fuse.operations import Policy
from exclfs.fuse.xattrs import Xattrs
from exclfs.holds.errors import NotKept
from exclfs.holds.lifetime import Connection
from exclfs.holds.mode import Mode, OpenFiles
from exclfs.holds.registry import Registry
from exclfs.host import idle, mounts, places, processes
from exclfs.keeper import Keeper
from exclfs.keeper.clock import boottime
from exclfs.mirror import ROOT, Mirror, channel, fuse_handle
from exclfs.mirror.latencies import percentile
from exclfs.options import AlreadyMounted, LogFormat, MountFailed, MountOptions
from exclfs.services.control_server import ControlServer
from exclfs.services.event_log import EventLog, open_log
from exclfs.services.gates import Gates
from exclfs.services.listener import open_control_socket
from exclfs.services.objects import Objects
from exclfs.services.reaper import Reaper
from exclfs.services.state_database import StateFileError
from exclfs.services.state_file import StateFile
from exclfs.wire.messages import RefusedRequester, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from exclfs.host.mounts import Mount
    from exclfs.services.listener import ControlSocket

    Ready = Callable[[dict[str, Any]], None]

ENDING: Final = (signal.SIGTERM, signal.SIGINT)
"""The signals that end a server as its unmounting does."""
FAILED: Final = 6
"""Exit code: the mount failed."""
MOST_DESCRIPTORS: Final = 4096
"""Of the inode table; more would not make it faster."""
LEAST_THREADS: Final = 4
LAST_USERS: Final = 1.0
"""Seconds that those who still use a mount have when it is taken away, before they get ENOTCONN."""
_NOT_REQUESTS: Final = frozenset({"asked", "asked_again", "timed_out", "inodes", "descriptors", "passthrough"})


def run(settled: MountOptions, *, ready: Ready, foreground: bool, parent: int | None = None) -> int:
    """Mounts, serves until the mount ends, and returns the exit code.

    Args:
        settled: options that exclfs.options.check has passed.
        ready: called once, when the mount serves, with what there is to say of it.
        foreground: whether stderr may be the log.
        parent: the process that started this one, if the mount is to end when it does, however it does.

    Raises:
        MountFailed: it did not come to serve; nothing is left mounted.
    """
    with ExitStack() as stack:
        # Until `serve` listens for it, a signal has to wait: it would leave a mount behind that nobody serves.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        stack.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, ENDING)
        try:
            server = _build(settled, stack, foreground=foreground, parent=parent)
        except OSError as error:
            raise MountFailed(_worded(error)) from error
        except (channel.MountRefused, AlreadyMounted, StateFileError) as error:
            raise MountFailed(str(error)) from error
        try:
            trio.run(server.serve, ready)
        except StateFileError as error:
            raise MountFailed(str(error)) from error
    return 0


def _build(settled: MountOptions, stack: ExitStack, *, foreground: bool, parent: int | None) -> _Server:
    """Opens everything, mounts last, and leaves to `stack` how each is closed."""
    channel.hide_from_other_processes()
    parent_pidfd = None if parent is None else _pidfd_of_parent(parent)
    if parent_pidfd is not None:
        stack.callback(os.close, parent_pidfd)
    most_open = _raise_descriptor_limit()
    budget = min(most_open // 4, MOST_DESCRIPTORS)
    log = open_log(settled.log, foreground=foreground, form=LogFormat(settled.log_format))
    stack.callback(log.close)
    source = os.open(settled.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, source)
    questions = session.Channel()
    stack.callback(questions.close)
    latency = _latency_device(settled.idle_poll)
    if latency is not None:
        stack.callback(os.close, latency)
    device = _mount(settled)
    stack.callback(os.close, device)
    try:
        mirror = Mirror(
            source=source,
            device=device,
            channel=questions.mirror_end,
            entry_timeout=settled.entry_timeout,
            attr_timeout=settled.attr_timeout,
            negative_timeout=settled.negative_timeout,
            decision_timeout=settled.decision_timeout,
            threads=settled.threads or _threads(),
            descriptors=budget,
            passthrough=settled.passthrough and os.geteuid() == 0,
            ask_always=settled.ask_always,
            privileged=os.geteuid() == 0,
            hold_open=OpenFiles(settled.hold_open),
            opens=max((most_open - 2 * budget) // 2, 1),
            gates=settled.gates,
            mounted=_mount_at(settled.mountpoint).st_dev,
            cpu_latency=-1 if latency is None else latency,
        )
        stack.callback(mirror.stop)
        state = _open_state(settled, mirror)
        if state is not None:
            stack.callback(state.close)
        control = open_control_socket(_mount_at(settled.mountpoint).st_dev)
    except BaseException:
        channel.detach(settled.mountpoint)
        raise
    log.start()
    return _Server(settled, log, mirror, questions, control, state, parent_pidfd, idle_polls=latency is not None)


def _pidfd_of_parent(pid: int) -> int:
    """A pidfd of the process that started this one."""
    pidfd = os.pidfd_open(pid)
    if os.getppid() != pid:  # it has gone, and the number may be somebody else's
        os.close(pidfd)
        raise ProcessLookupError(errno.ESRCH, "whoever started the server has gone")
    return pidfd


def _open_state(settled: MountOptions, mirror: Mirror) -> StateFile | None:
    if settled.state is None:
        return None
    return StateFile.open(settled.state, mirror.identity(mirror.identify(ROOT)), mirror.identity, settled.mountpoint)


def _mount(settled: MountOptions) -> int:
    """Mounts; of two servers that want the same mountpoint at the same time one does, and the other is told."""
    covered = os.open(settled.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(covered, fcntl.LOCK_EX)
        mount = mounts.at(settled.mountpoint)
        if mount is not None and mount.fstype == mounts.FSTYPE:
            raise AlreadyMounted(settled.mountpoint, os.fsdecode(mount.source))
        return channel.mount(
            settled.fsname or settled.source,
            settled.mountpoint,
            flags=settled.kernel_flags,
            allow_other=settled.allow_other,
        )
    finally:
        os.close(covered)


class _Server:
    """Everything that one mount is made of, and its life."""

    def __init__(
        self,
        settled: MountOptions,
        log: EventLog,
        mirror: Mirror,
        questions: session.Channel,
        control: ControlSocket,
        state: StateFile | None,
        parent: int | None,
        *,
        idle_polls: bool,
    ) -> None:
        self._began = datetime.now(UTC)
        self._began_after = boottime()
        self._settled = settled
        self._log = log
        self._mirror = mirror
        self._questions = questions
        self._control = control
        self._state = state
        self._parent = parent
        self._idle_polls = idle_polls
        numbers = itertools.count(1 if state is None else state.next_number())
        self._keeper = Keeper(
            Registry(lambda: f"h{next(numbers)}"),
            mirror,
            mountpoint=settled.mountpoint,
            owner=os.geteuid(),
            limits=settled.limits,
            holders_group=settled.holders,
            mode=Mode(settled.mode),
            open_files=OpenFiles(settled.hold_open),
            store=state,
        )
        self._keeper.subscribe(log.record)
        self._reaper = Reaper(self._keeper)
        self._gates = Gates(
            mirror.sightings, wanted=settled.gates, passthrough=lambda: bool(mirror.counters()["passthrough"])
        )

    async def serve(self, ready: Ready) -> None:
        """Serves until the mount ends or a signal ends it. Whatever happens, no mount stays behind."""
        try:
            with (
                trio.open_signal_receiver(*ENDING) as signals,
                self._questions.open(self._policy()),
            ):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
                if self._state is not None:
                    # Before the first request: what was held when the last server ended can never be removed.
                    await self._state.restore(self._keeper, self._mirror, self._reaper)
                self._start_mirror()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(session.serve)
                    nursery.start_soon(self._reaper.run)
                    nursery.start_soon(self._gates.run)
                    # From a thread: this one must not wait for its own mount.
                    await trio.to_thread.run_sync(os.stat, self._settled.mountpoint)
                    nursery.start_soon(self._control_server().serve, self._control.listener)
                    ready({"ready": True, "pid": os.getpid(), "socket": self._control.path, "log": self._log.where})
                    await self._until_the_end(signals)
                    session.end()
                    nursery.cancel_scope.cancel()
        finally:
            self._gates.close()  # who stands at one would keep the mount in use
            with trio.CancelScope(shield=True):
                await self._control.close()
                await self._take_away()
                await self._forget_what_the_unmount_ends()
                self._reaper.close()

    def _start_mirror(self) -> None:
        try:
            self._mirror.start()
        except OSError as error:
            raise MountFailed(f"the threads that would serve cannot begin: {error.strerror}") from error

    async def _until_the_end(self, signals: AsyncIterator[int]) -> None:
        async with trio.open_nursery() as nursery:

            async def until_a_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            async def until_the_parent_ends(pidfd: int) -> None:
                await trio.lowlevel.wait_readable(pidfd)
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_a_signal)
            if self._parent is not None:
                nursery.start_soon(until_the_parent_ends, self._parent)
            await trio.lowlevel.wait_readable(self._mirror.finished)
            nursery.cancel_scope.cancel()

    async def _take_away(self) -> None:
        """Unmounts if that has not happened, and gives whoever is at work in the mount a moment to come to an end."""
        with trio.move_on_after(0):
            await trio.lowlevel.wait_readable(self._mirror.finished)
            return
        with suppress(OSError):
            await trio.to_thread.run_sync(channel.detach, self._settled.mountpoint)
        with trio.move_on_after(LAST_USERS):
            await trio.lowlevel.wait_readable(self._mirror.finished)

    async def _forget_what_the_unmount_ends(self) -> None:
        if self._state is not None:
            with suppress(NotKept):  # it is in the log; at the next mount these holds are back
                await self._state.forget_unmounted()

    def _policy(self) -> Policy:
        return Policy(
            keeper=self._keeper,
            xattrs=Xattrs(
                keeper=self._keeper,
                explain=answering.answer,
                socket=self._control.path,
                root=places.root(_mount_at(self._settled.mountpoint)),
                mountpoint=self._settled.mountpoint,
            ),
            mirror=self._mirror,
            mountpoint=self._settled.mountpoint,
            describe=processes.describe,
        )

    def _control_server(self) -> ControlServer:
        mount = _mount_at(self._settled.mountpoint)
        objects = Objects(
            mirror=self._mirror,
            fuse_handle=fuse_handle,
            mountpoint=self._settled.mountpoint,
            st_dev=mount.st_dev,
            mount_id=mount.id,
        )
        return ControlServer(
            keeper=self._keeper,
            objects=objects,
            status=self._status,
            why=holding.why,
            watch=self._reaper.watch,
            settle=self._reaper.settle,
            gates=self._gates,
        )

    def _status(self) -> Status:
        counters = self._mirror.counters()
        requests = {kind: number for kind, number in counters.items() if kind not in _NOT_REQUESTS}
        latencies = self._mirror.latencies()
        holds, refusals = self._keeper.registry.all(), self._keeper.record.refusals
        return Status(
            source=self._settled.source,
            mountpoint=self._settled.mountpoint,
            pid=os.getpid(),
            uid=os.geteuid(),
            since=self._began,
            uptime=boottime() - self._began_after,
            log=self._log.where,
            passthrough=bool(counters["passthrough"]),
            idle_poll=self._idle_polls,
            ask_always=self._settled.ask_always,
            mode=self._keeper.mode,
            hold_open=self._keeper.open_files,
            state=self._settled.state,
            holds=len(holds),
            holders=dict(Counter(hold.holder.name for hold in holds)),
            oldest_hold=min(holds, key=lambda hold: hold.since, default=None),
            refusals=self._keeper.counts["refused"],
            would_have_refused=self._keeper.counts["would_refuse"],
            refusals_by_operation={operation.value: count for operation, count in refusals.by_operation.items()},
            refusals_by_requester=tuple(
                RefusedRequester(comm=one.comm, uid=one.uid, user=one.user, refusals=count)
                for one, count in refusals.by_requester.most_common()
            ),
            refusals_by_others=refusals.by_others,
            last_refusals=refusals.last,
            requests=requests,
            answered_without_a_decision=sum(requests.values()) - counters["asked"] + counters["asked_again"],
            verdicts=sum(latencies),
            verdicts_timed_out=counters["timed_out"],
            verdicts_p50_us=percentile(latencies, 50),
            verdicts_p99_us=percentile(latencies, 99),
            inodes=counters["inodes"],
            descriptors=counters["descriptors"],
            descriptor_budget=self._mirror.descriptor_budget,
            connections=sum(isinstance(end, Connection) for end in self._keeper.present),
            waiting=self._keeper.waiting,
        )


def _worded(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _raise_descriptor_limit() -> int:
    """Takes as many descriptors as there are to be had; gives their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _threads() -> int:
    return max(LEAST_THREADS, 2 * len(os.sched_getaffinity(0)))


def _latency_device(wanted: bool | None) -> int | None:
    """What keeps processors from halting; without a wish (None) only where that is worth it, and may fail."""
    if wanted is False or (wanted is None and not idle.is_worth_polling()):
        return None
    try:
        return idle.open_latency_device()
    except OSError:
        if wanted:
            raise
        return None


def _mount_at(mountpoint: str) -> Mount:
    """Our mount as mountinfo has it: without asking the server, which is us."""
    mount = mounts.at(mountpoint)
    if mount is None:
        raise FileNotFoundError(errno.ENOENT, "the mount is not there any more", mountpoint)
    return mount


def _leave_stderr() -> None:
    """From now on there is the log; stderr was for those who waited for the mount."""
    if os.environ.get("EXCLFS_KEEP_STDERR"):
        return  # a sanitizer's report has no other way out
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stderr.fileno())
    os.close(nothing)


def main() -> int:
    """What `exclfs mount` starts: serves the mount that its argument describes, and tells --ready-fd how it went.

    With --parent the mount ends when that process does, which has to be the one that started this.
    """
    parser = argparse.ArgumentParser(prog="exclfs.mount")
    parser.add_argument("options")
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--parent", type=int)
    arguments = parser.parse_args()
    wanted = json.loads(arguments.options)
    settled = MountOptions(**{**wanted, "kernel_flags": tuple(wanted["kernel_flags"])})
    os.set_inheritable(arguments.ready_fd, False)
    with open(arguments.ready_fd, "w", encoding="utf-8") as told:

        def tell(document: dict[str, Any]) -> None:
            json.dump(document, told)
            told.write("\n")
            told.close()  # whoever waits sees the end, too
            _leave_stderr()

        try:
            return run(settled, ready=tell, foreground=False, parent=arguments.parent)
        except MountFailed as error:
            if told.closed:
                raise
            tell({"error": error.why, "exit": FAILED})
            return FAILED


if __name__ == "__main__":
    sys.exit(main())
