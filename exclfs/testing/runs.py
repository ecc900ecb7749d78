"""One run of real processes in one schedule: who is let go when, and what came of it.

The rule that this module owns: nobody is chosen while somebody runs. Each thread either stands before an operation, or
sleeps in the kernel, or is gone; that is decided by the states of all threads, read twice with nobody having been
switched in between, those of the mount's server among them. Then one is let go.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Final

from attrs import define, frozen

from exclfs.gating import Operation
from exclfs.testing import tasks
from exclfs.testing.actors import Running
from exclfs.testing.schedules import Choice, Point, place
from exclfs.testing.seccomp import filter_of
from exclfs.testing.syscalls import FORKS, SLEEPS, names_here, those_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from exclfs.testing.actors import Actor, Ended
    from exclfs.testing.calls import Call, CallReader
    from exclfs.testing.schedules import Schedule
    from exclfs.testing.seccomp import Notification
    from exclfs.testing.tasks import Task

SLEEP: Final = "sleep"
"""The kind of operation of one that is about to sleep for a time."""
MOST_STEPS: Final = 10_000
"""How many operations a run may have."""
_ASK_AGAIN: Final = 1
"""Milliseconds after which the states of threads are read again, while somebody runs."""

_MACHINE: Final = os.uname().machine
_FORKS: Final = FORKS.get(_MACHINE, frozenset())
_SLEEPS: Final = SLEEPS.get(_MACHINE, {})
_LOCKS: Final = {"x86_64": {73, 72}, "aarch64": {32, 25}}.get(_MACHINE, set())
"""flock and fcntl."""
_WITHOUT_END: Final = {"x86_64": {0, 61, 247}, "aarch64": {63, 260, 95}}.get(_MACHINE, set()) | _LOCKS
"""read, wait4, waitid: calls that wait for somebody, for as long as it takes; and those of locks."""


@frozen(kw_only=True)
class Step:
    """One operation that was let go."""

    task: str
    """As in the seed: a is the first actor, a1 a thread or child of it."""
    actor: str
    """What the actor is called."""
    pid: int
    comm: str
    operation: str
    path: str
    """Relative to the tree of the scenario; of a sleep ""."""
    second_path: str | None
    time: int
    """CLOCK_MONOTONIC, in nanoseconds, when it was let go."""
    preempts: str | None
    """The task that could have gone on instead."""
    slept: bool
    """It fell asleep in the kernel, for a lock or a like thing, and others had to go first."""


class Deadlock(Exception):
    """Nobody can go on: all that are left sleep, and wait for each other."""


class Endless(Exception):
    """It goes on and on: too many operations, or somebody who neither does an operation nor ends."""


class NotAsPlanned(Exception):
    """The schedule wants somebody to go on who does not stand there.

    `step` is which, `sleeps` whether that one sleeps in the kernel.
    """

    def __init__(self, step: int, task: str, sleeps: bool) -> None:
        super().__init__(f"at step {step} {task} cannot go on: it {'sleeps' if sleeps else 'is not there'}")
        self.step = step
        self.sleeps = sleeps


@define(eq=False)
class _Standing:
    """A thread that stands before an operation."""

    actor: Running
    notification: Notification
    operation: str
    call: Call | None


class Run:
    """One run.

    Args:
        actors: who takes part, with the names that they have.
        tree: where they work.
        reader: reads calls, for the mount.
        prefix: the path of the tree relative to the mount's root, with a slash at its end; "" is the root.
        operations: what is a step; the rest goes on at once.
        server: the pid of the mount's server; None: nobody serves it.
        timeout: seconds after which somebody who neither does an operation nor ends is given up.
    """

    def __init__(
        self,
        actors: Sequence[tuple[str, Actor]],
        tree: Path,
        reader: CallReader,
        *,
        prefix: str,
        operations: Collection[Operation],
        server: int | None,
        timeout: float,
    ) -> None:
        self.choices: Final[list[Choice]] = []
        self.steps: Final[list[Step]] = []
        self.ended: Final[dict[str, Ended]] = {}
        self._reader = reader
        self._prefix = prefix
        self._operations = operations
        self._server = server
        self._timeout = timeout
        self._calls = those_of(frozenset(operations))
        self._standing: dict[int, _Standing] = {}
        self._names: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._asleep: dict[int, Task] = {}
        self._current: str | None = None
        self._actors: list[Running] = []
        self._poll = select.poll()
        self._whose: dict[int, Running] = {}
        """Whose a descriptor is that is polled: a listener or a pidfd."""
        instructions = filter_of(self._calls, _SLEEPS)
        try:
            for name, actor in actors:
                others = [running.listener.fileno() for running in self._actors]
                self._actors.append(running := Running(actor, name, tree, instructions, others))
                for descriptor in (running.listener.fileno(), running.pidfd):
                    self._poll.register(descriptor, select.POLLIN)
                    self._whose[descriptor] = running
        except BaseException:
            self.close()
            raise

    def go(self, schedule: Schedule) -> None:
        """Runs it to its end.

        Raises:
            Deadlock, Endless, NotAsPlanned: see there.
            OSError: a program could not be started.
        """
        self._settle()
        while self._standing:
            self._step(schedule)
            if len(self.steps) >= MOST_STEPS:
                raise Endless(f"there have been {MOST_STEPS} operations, and no end: {self._doing()}")
        self.ended.update({actor.name: actor.how() for actor in self._actors})

    def close(self) -> None:
        """Kills whoever is left."""
        for actor in self._actors:
            actor.end()
        self._actors.clear()

    # --- choosing -----------------------------------------------------------------------------------------------

    def _step(self, schedule: Schedule) -> None:
        by_name = {self._name(pid): pid for pid in self._in_order()}
        yielding = frozenset(name for name, pid in by_name.items() if self._standing[pid].operation == SLEEP)
        point = Point(tuple(sorted(by_name, key=place)), self._current, yielding)
        chosen = schedule.choose(len(self.choices), point)
        if chosen is None:
            wanted = dict(schedule.switches)[len(self.choices)]
            sleeps = any(self._names.get(pid) == wanted for pid in self._asleep)
            raise NotAsPlanned(len(self.choices), wanted, sleeps)
        pid = by_name[chosen]
        standing = self._standing.pop(pid)
        preempted = self._current if point.preempts(chosen) else None
        self._current = chosen
        standing.actor.listener.let_go(standing.notification.id)
        now = time.monotonic_ns()
        self._settle()
        sleeping = self._asleep.get(pid)
        slept = sleeping is not None and sleeping.call == standing.notification.number and bool(self._standing)
        self.choices.append(Choice(point, chosen, standing.operation, slept))
        call = standing.call
        self.steps.append(
            Step(
                task=chosen,
                actor=standing.actor.name,
                pid=pid,
                comm=call.comm if call else "",
                operation=standing.operation,
                path=self._shown(call.path) if call else "",
                second_path=self._shown(call.second_path) if call and call.second_path is not None else None,
                time=now,
                preempts=preempted,
                slept=slept,
            )
        )

    def _in_order(self) -> list[int]:
        """Who stands: first those of the first actor, each in the order in which they were started."""
        index = {actor.name: number for number, actor in enumerate(self._actors)}
        return sorted(self._standing, key=lambda pid: (index[self._standing[pid].actor.name], pid))

    def _name(self, pid: int) -> str:
        """What a thread is called: the first of an actor that stands a, the others a1, a2, …"""
        if pid not in self._names:
            actor = self._standing[pid].actor
            count = self._counts.get(actor.name, 0)
            self._counts[actor.name] = count + 1
            self._names[pid] = "abcdefghijklmnopqrstuvwxyz"[self._actors.index(actor)] + (str(count) if count else "")
        return self._names[pid]

    def _shown(self, path: str) -> str:
        return "." if path + "/" == self._prefix else path.removeprefix(self._prefix)

    # --- waiting until nobody runs ------------------------------------------------------------------------------

    def _settle(self) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            # Who was let go last is likely to come back soon: there is no need to look at everybody before that.
            while self._take(0 if self._has_come_back() else _ASK_AGAIN):
                pass
            if self._nobody_runs() and not self._forget_the_gone():
                if self._standing or all(actor.ended for actor in self._actors):
                    return
                self._check_deadlock()
            if time.monotonic() > deadline:
                raise Endless(f"nothing has happened for {self._timeout:g} s: {self._doing()}")
            self._take(_ASK_AGAIN)

    def _has_come_back(self) -> bool:
        return any(self._names.get(pid) == self._current for pid in self._standing)

    def _take(self, milliseconds: int) -> bool:
        """Takes what has come; whether anything had."""
        if not self._whose:
            return False
        ready = self._poll.poll(milliseconds)
        for descriptor, events in ready:
            actor = self._whose[descriptor]
            if descriptor == actor.pidfd:
                self._forget(descriptor)
                actor.reap()
            elif events & select.POLLIN:
                notification = actor.listener.receive()
                if notification is not None:
                    self._arrived(actor, notification)
            else:
                self._forget(descriptor)
                actor.watched = False
        return bool(ready)

    def _forget(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._whose[descriptor]

    def _arrived(self, actor: Running, notification: Notification) -> None:
        if notification.pid not in actor.seen:
            actor.seen.add(tasks.process_of(notification.pid))
        if notification.number in _SLEEPS:
            self._standing[notification.pid] = _Standing(actor, notification, SLEEP, None)
            return
        call = self._reader.read(notification, self._calls[notification.number], actor.listener)
        if call is None or not self._is_step(call):
            actor.listener.let_go(notification.id)
            return
        self._standing[notification.pid] = _Standing(actor, notification, call.operation, call)

    def _is_step(self, call: Call) -> bool:
        """Whether others could make a difference: what is read of an open file's attributes is nobody's race."""
        if call.operation not in self._operations or not _within(call, self._prefix):
            return False
        return not (call.open_already and call.operation in (Operation.GETATTR, Operation.STATFS))

    def _nobody_runs(self) -> bool:
        """Whether everybody stands, sleeps or is gone, for certain."""
        first = self._look()
        if first is None:
            return False
        if self._take(0):
            return False
        second = self._look()
        if second is None or first != second:
            return False
        self._asleep = {task.pid: task for task in second if task.pid not in self._standing and task.state not in "ZX"}
        for pid in [pid for pid in self._names if pid not in {task.pid for task in second}]:
            del self._names[pid]
        return True

    def _forget_the_gone(self) -> bool:
        """Whether somebody who stood has been killed there."""
        gone = [pid for pid, one in self._standing.items() if not one.actor.listener.stands(one.notification.id)]
        for pid in gone:
            del self._standing[pid]
        return bool(gone)

    def _look(self) -> list[Task] | None:
        """All threads, if none of them runs."""
        found: list[Task] = []
        for actor in self._actors:
            processes = actor.processes() if actor.watched or actor.status is None else []
            alive = False
            for task in tasks.all_of(processes):
                alive = alive or task.state not in "ZX"
                if task.pid not in self._standing and not _rests(task):
                    return None
                found.append(task)
            if not alive and not actor.ended:
                return None  # what has exited is about to be told
            actor.seen.intersection_update({task.process for task in found} | {actor.pid})
        if self._server is not None:
            for task in tasks.all_of([self._server], calls=False):
                if task.state not in "SZXTt":
                    return None
                found.append(task)
        return found

    # --- when nobody can ----------------------------------------------------------------------------------------

    def _check_deadlock(self) -> None:
        """Nobody stands, and not all have ended. If all that sleep do so until another does something:

        Raises:
            Deadlock: it is told who waits where.
        """
        calls = {task.call for task in self._asleep.values() if not self._is_server(task)}
        if calls & _LOCKS and calls <= _WITHOUT_END:
            raise Deadlock(f"nobody can go on: {self._doing()}")

    def _is_server(self, task: Task) -> bool:
        return task.process == self._server

    def _doing(self) -> str:
        """What everybody does who is left."""
        told = []
        for actor in self._actors:
            for task in tasks.all_of(actor.processes()):
                if task.pid in self._standing:
                    told.append(f"{actor.name} (pid {task.pid}) stands before {self._standing[task.pid].operation}")
                elif task.state not in "ZX":
                    where = names_here().get(task.call, f"system call {task.call}") if task.call is not None else ""
                    function = tasks.place(task)
                    sleeps = f"sleeps in {where or 'the kernel'}{f' ({function})' if function else ''}"
                    told.append(f"{actor.name} (pid {task.pid}) {sleeps if task.state in 'SD' else 'runs'}")
        return "; ".join(told) or "nobody is left"


def _rests(task: Task) -> bool:
    """Whether a thread that does not stand waits for somebody else, or is gone.

    One that sleeps for a time goes on by itself. One in uninterruptible sleep is in the middle of something that ends
    by itself as well: nobody who stands has a lock of the kernel's filesystem layer. In vfork it waits for its child.
    """
    if task.state in "ZXTt":
        return True
    if task.state == "D":
        return task.call in _FORKS
    return task.state == "S" and task.call not in _SLEEPS


def _within(call: Call, prefix: str) -> bool:
    return any(path is not None and (path + "/").startswith(prefix) for path in (call.path, call.second_path))
