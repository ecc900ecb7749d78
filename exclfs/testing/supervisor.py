"""Watches the system calls of one program and all that it starts, and decides what becomes of each.

The rule that this module owns: a call that no watch selects goes on at once; one that a watch selects waits for that
watch alone, and then meets those that were placed later. A call that has gone is nobody's any more. When the supervisor
ends, whoever still asks is killed or gets ENOSYS: nobody hangs.
"""

from __future__ import annotations

import errno
import heapq
import os
import select
import signal
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from attrs import define

from exclfs.testing.trail import Fate, Trail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exclfs.testing.calls import Call, CallReader
    from exclfs.testing.seccomp import Listener, Notification
    from exclfs.testing.syscalls import SystemCall

_END: Final = 1 << 32
"""What is added to the eventfd to have the thread end."""


@define(eq=False)
class Standing:
    """A call that stands before the kernel."""

    id: int
    call: Call
    number: int
    """Of its first entry in the trail; 0: it has none yet."""
    passed: int = 0
    """How many watches it has met."""


class Watch(ABC):
    """What a supervisor asks about each call: a gate or a fault. All is called with the supervisor's lock held."""

    @abstractmethod
    def selects(self, call: Call) -> bool:
        """Whether this call is meant. Asked once for each call that gets so far."""

    @abstractmethod
    def meet(self, standing: Standing) -> Verdict:
        """What becomes of a call that it selects."""


@define
class Verdict:
    """What a watch says."""

    fate: Fate
    """WENT_ON: the next watch is asked. STOPPED: the watch keeps it. ANSWERED: with `errno`. DELAYED: for `seconds`."""
    errno: int | None = None
    seconds: float = 0.0


class Supervisor:
    """The supervisor of one program; a thread once it is started.

    Args:
        program: what the program is called in the trail.
        calls: the calls that the filter stops, by number.
        reader: reads what they are about.
        trail: where everything is written down.
    """

    def __init__(self, program: str, calls: Mapping[int, SystemCall], reader: CallReader, trail: Trail) -> None:
        self.program: Final = program
        self.trail: Final = trail
        self.changed: Final = threading.Condition(threading.RLock())
        """The lock of all that is here; notified when somebody comes, goes, or the program has ended."""
        self.ended = False
        """Nobody is left who could be stopped."""
        self.elsewhere = 0
        """How many calls were about nothing in the mount, or could not be read."""
        self._calls = calls
        self._reader = reader
        self._watches: list[Watch] = []
        self._delayed: list[tuple[float, int, Standing, Watch]] = []
        self._killing = False
        self._listener: Listener | None = None
        self._wake = self._pidfd = -1
        self._reap: Callable[[], object] = lambda: None
        self._thread: threading.Thread | None = None

    # --- its life -----------------------------------------------------------------------------------------------

    def start(self, listener: Listener, pid: int, reap: Callable[[], object]) -> None:
        """Begins to watch.

        Args:
            listener: becomes its own.
            pid: of the program, a child of this process.
            reap: waits for it when it has exited. Before Linux 6.11 a filter ends only when its last process has been
                waited for, and then alone is the listener at its end.
        """
        self._listener = listener
        self._pidfd, self._reap = os.pidfd_open(pid), reap
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"supervisor of {self.program}", daemon=True)
        self._thread.start()

    def end(self, timeout: float) -> None:
        """Kills whoever asks from now on, waits until nobody is left, and closes the listener in any case."""
        if self._thread is None:
            return
        with self.changed:
            self._killing = True
            delayed, self._delayed = self._delayed, []
            for _, _, standing, _ in delayed:
                self._kill(standing.id, standing.call.pid)
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout)
        os.eventfd_write(self._wake, _END)
        self._thread.join()
        self._thread = None
        os.close(self._wake)
        os.close(self._pidfd)
        assert self._listener is not None
        self._listener.close()

    def _run(self) -> None:
        """Until nobody has the filter any more, or it is ended."""
        assert self._listener is not None
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        try:
            while self._once(self._listener, ready := dict(poll.poll(self._until_next()))):
                if self._pidfd in ready:
                    poll.unregister(self._pidfd)
                    self._reap()
        except BaseException:
            self._listener.close()
            raise
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def _once(self, listener: Listener, ready: dict[int, int]) -> bool:
        """Does what there is to do; False: nobody is left, or it is to end."""
        if self._wake in ready and os.eventfd_read(self._wake) >= _END:
            return False
        events = ready.get(listener.fileno(), 0)
        if events & select.POLLIN:
            notification = listener.receive()
            if notification is not None:
                self._arrived(notification)
        elif events:
            return False
        self._release_delayed()
        return True

    # --- calls --------------------------------------------------------------------------------------------------

    def _arrived(self, notification: Notification) -> None:
        assert self._listener is not None
        if self._killing:
            self._kill(notification.id, notification.pid)
            return
        call = self._reader.read(notification, self._calls[notification.number], self._listener)
        if call is None:
            self.elsewhere += 1
            self._listener.let_go(notification.id)
            return
        with self.changed:
            self._judge(Standing(notification.id, call, 0))

    def _judge(self, standing: Standing) -> None:
        """Asks the watches that it has not met; if none keeps it, it goes on."""
        assert self._listener is not None
        while standing.passed < len(self._watches):
            watch = self._watches[standing.passed]
            standing.passed += 1
            if not watch.selects(standing.call):
                continue
            verdict = watch.meet(standing)
            if verdict.fate is Fate.WENT_ON:
                continue
            self.write(standing, verdict.fate, watch, verdict.errno)
            if verdict.fate is Fate.ANSWERED:
                self._listener.answer(standing.id, verdict.errno or 0)
            elif verdict.fate is Fate.DELAYED:
                heapq.heappush(self._delayed, (time.monotonic() + verdict.seconds, standing.number, standing, watch))
                os.eventfd_write(self._wake, 1)
            self.changed.notify_all()
            return
        # It is written down first: what it leads to comes after it.
        self.write(standing, Fate.LET_GO if standing.number else Fate.WENT_ON, None)
        self._listener.let_go(standing.id)

    def release(self, standing: Standing, error: int | None, watch: Watch) -> bool:
        """Lets go of one that a watch has kept, to the watches after it; or answers it. False: it has gone."""
        with self.changed:
            if not self.stands(standing):
                self.write(standing, Fate.GONE, watch)
                return False
            if error is None:
                self._judge(standing)
                return True
            assert self._listener is not None
            self.write(standing, Fate.ANSWERED, watch, error)
            return self._listener.answer(standing.id, error)

    def stands(self, standing: Standing) -> bool:
        """Whether it is still there: not killed, and not interrupted."""
        return not self.ended and self._listener is not None and self._listener.stands(standing.id)

    def write(self, standing: Standing, fate: Fate, watch: Watch | None, error: int | None = None) -> None:
        """One line of the trail."""
        call = standing.call
        entry = self.trail.add(
            operation_number=standing.number or None,
            program=self.program,
            pid=call.pid,
            comm=call.comm,
            operation=call.operation,
            path=call.path,
            second_path=call.second_path,
            fate=fate,
            gate=None if watch is None else str(watch),
            errno=error,
        )
        standing.number = standing.number or entry.number

    # --- watches ------------------------------------------------------------------------------------------------

    def place(self, watch: Watch) -> None:
        """One more watch, which is asked last."""
        with self.changed:
            self._watches.append(watch)

    def take_away(self, watch: Watch) -> None:
        """The watch is asked no more. What it keeps is its own to release, before."""
        with self.changed:
            self._watches[self._watches.index(watch)] = _Gone()

    def hasten(self, watch: Watch) -> None:
        """What this watch has delayed goes on now."""
        with self.changed:
            self._delayed = [(0.0 if by is watch else at, number, one, by) for at, number, one, by in self._delayed]
            heapq.heapify(self._delayed)
            if self._delayed:
                os.eventfd_write(self._wake, 1)

    # --- time, and the end --------------------------------------------------------------------------------------

    def _until_next(self) -> int | None:
        """Milliseconds until a delay is over, rounded up; None: there is none."""
        with self.changed:
            if not self._delayed:
                return None
            return max(0, int((self._delayed[0][0] - time.monotonic()) * 1000) + 1)

    def _release_delayed(self) -> None:
        with self.changed:
            while self._delayed and self._delayed[0][0] <= time.monotonic():
                standing = heapq.heappop(self._delayed)[2]
                if self.stands(standing):
                    self._judge(standing)

    def _kill(self, id: int, pid: int) -> None:
        """Kills the process of a call that stands, and of nobody else: the pid is its own as long as it stands."""
        assert self._listener is not None
        with suppress(OSError):
            process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if self._listener.stands(id):
                    os.kill(pid, signal.SIGKILL)
            finally:
                os.close(process)
        self._listener.answer(id, errno.ENOSYS)


class _Gone(Watch):
    """In the place of a watch that has been taken away, so that the others keep their numbers."""

    def selects(self, _: Call) -> bool:
        return False

    def meet(self, _: Standing) -> Verdict:
        raise AssertionError
