"""The gates of a mount: which stand, who placed them, who stands at them, and what happens meanwhile.

The rules that this module owns. The mirror stops every request of an operation that some gate is for; whether one was
meant is decided here, and the others go on at once. A request passes the gates that mean it one after another, in the
order in which they were placed. A gate belongs to a connection and ends with it, and whoever stands there goes on: no
request is ever left to wait for somebody who has gone.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from exclfs.gating import TELLING, Occurrences, Operation, When
from exclfs.host.lineage import comm, lineage
from exclfs.mirror.sightings import GIVING, OPCODES, Stage
from exclfs.wire.gate_messages import BadGate, HappenedRecord, NoSuchGate, StateReply, StoppedRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from exclfs.gating import Selection
    from exclfs.holds.lifetime import Connection
    from exclfs.mirror.sightings import Sighting, Sightings

MOST_HAPPENED: Final = 200
"""How much of what happened is kept for each gate."""

_OF_DATA: Final = frozenset({Operation.READ, Operation.WRITE})
_SIDES: Final = {Stage.BEFORE: When.BEFORE, Stage.AFTER: When.AFTER}


@frozen
class Fault:
    """What happens to those that come to a gate that stops nobody."""

    answer: int | None = None
    """They fail with this errno."""
    delay: float = 0.0
    """They go on after so many seconds."""


@define(eq=False)
class _Passage:
    """A request on its way through the gates that mean it."""

    sighting: Sighting
    stopped: StoppedRecord
    ahead: deque[_Gate]
    hurried: trio.Event = field(factory=trio.Event)
    """It is not to be delayed any longer."""


@define(eq=False)
class _Gate:
    name: str
    selection: Selection
    connection: Connection
    fault: Fault | None
    occurrences: Occurrences
    open: bool = False
    reached: int = 0
    here: dict[int, _Passage] = field(factory=dict)
    """Who stands here or is delayed, by the number of the sighting, the first to come first."""
    untold: deque[_Passage] = field(factory=deque)
    news: trio.Event = field(factory=trio.Event)
    happened: deque[HappenedRecord] = field(factory=lambda: deque(maxlen=MOST_HAPPENED))
    missed: int = 0

    def next_untold(self) -> StoppedRecord | None:
        while self.untold:
            passage = self.untold.popleft()
            if passage.sighting.number in self.here:
                return passage.stopped
        return None

    def note(self, happened: HappenedRecord) -> None:
        self.missed += len(self.happened) == MOST_HAPPENED
        self.happened.append(happened)


class Gates:
    """The gates of one mount.

    Args:
        sightings: those of the mirror.
        wanted: whether the mount has gates at all.
        passthrough: tells whether the kernel reads and writes by itself.
    """

    def __init__(self, sightings: Sightings, *, wanted: bool, passthrough: Callable[[], bool]) -> None:
        self._sightings = sightings
        self._passthrough = passthrough
        self._wanted = wanted
        self._gates: dict[str, _Gate] = {}
        self._numbers = itertools.count(1)
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Hears of requests until it is cancelled."""
        async with trio.open_nursery() as self._nursery:
            while True:
                await trio.lowlevel.wait_readable(self._sightings.news)
                self._take()

    def place(self, selection: Selection, connection: Connection, fault: Fault | None = None) -> str:
        """Places a gate for a connection, and gives its name; from now on it stands.

        Raises:
            BadGate: the mount has none; or nobody could ever come to it; or what is done already would be answered
                otherwise and cannot be.
        """
        if not self._wanted:
            raise BadGate("the mount was not started with -o gates")
        if unknown := sorted(selection.operations - OPCODES.keys()):
            raise BadGate(f"{', '.join(unknown)} never comes to the mount: the kernel does it by itself")
        if selection.operations & _OF_DATA and self._passthrough():
            raise BadGate(
                "the kernel reads and writes by itself on a mount with passthrough: start it with nopassthrough"
            )
        if fault is not None and fault.answer is not None:
            self._check_answer(fault.answer, selection.when, selection.operations)
        self._take()  # what comes before it does not concern it
        gate = _Gate(f"g{next(self._numbers)}", selection, connection, fault, Occurrences(selection))
        self._gates[gate.name] = gate
        self._watch()
        return gate.name

    async def wait(self, name: str, seconds: float) -> StoppedRecord | None:
        """The next that stands at a gate and was not told of; None if nobody comes in time, or the gate is taken away.

        Raises:
            NoSuchGate: there is none.
        """
        gate = self._gate(name)
        self._take()
        with trio.move_on_after(seconds):
            while (stopped := gate.next_untold()) is None and name in self._gates:
                if gate.news.is_set():
                    gate.news = trio.Event()
                await gate.news.wait()
            return stopped
        return gate.next_untold()

    def state(self, name: str) -> StateReply:
        """How it is with a gate.

        Raises:
            NoSuchGate: there is none.
        """
        gate = self._gate(name)
        self._take()
        return StateReply(
            reached=gate.reached,
            waiting=tuple(passage.stopped for passage in gate.here.values()),
            happened=tuple(gate.happened),
            missed=gate.missed,
        )

    def open(self, name: str) -> None:
        """Lets go of all that wait at a gate and all that come.

        Raises:
            NoSuchGate: there is none.
        """
        gate = self._gate(name)
        gate.open = True
        self._empty(gate)

    def let_go(self, name: str, number: int | None, answer: int | None) -> StoppedRecord | None:
        """Lets one go on, or fail with an errno: the first or the one with this number. None: nobody is there.

        Raises:
            NoSuchGate: there is none.
            BadGate: what is done already cannot be answered so.
        """
        gate = self._gate(name)
        self._take()
        number = next(iter(gate.here), None) if number is None else number
        passage = gate.here.get(number) if number is not None else None
        if passage is None or number is None:
            return None
        if answer is None:
            del gate.here[number]
            self._go_on(passage)
        else:
            self._check_answer(answer, gate.selection.when, {passage.sighting.operation})
            del gate.here[number]
            self._sightings.let_go(number, answer)
        return passage.stopped

    def remove(self, name: str) -> StateReply:
        """Takes a gate away, and gives how it was. Whoever stands there goes on.

        Raises:
            NoSuchGate: there is none.
        """
        state = self.state(name)
        gate = self._gates.pop(name)
        self._watch()
        self._empty(gate)
        gate.news.set()
        return state

    def end(self, connection: Connection) -> None:
        """A connection has ended, and with it its gates."""
        for gate in [gate for gate in self._gates.values() if gate.connection is connection]:
            self.remove(gate.name)

    def close(self) -> None:
        """Lets everybody go; from now on nothing stops any more."""
        self._gates.clear()
        self._sightings.open()

    def _gate(self, name: str) -> _Gate:
        if name not in self._gates:
            raise NoSuchGate(name)
        return self._gates[name]

    def _watch(self) -> None:
        selections = [gate.selection for gate in self._gates.values()]
        sides: dict[When, set[Operation]] = {When.BEFORE: set(), When.AFTER: set()}
        for selection in selections:
            sides[selection.when] |= selection.operations
        self._sightings.watch(
            before=sides[When.BEFORE], after=sides[When.AFTER], told=TELLING if selections else frozenset()
        )

    def _take(self) -> None:
        sightings, dropped = self._sightings.take()
        for gate in self._gates.values():
            gate.missed += dropped
        for sighting in sightings:
            if sighting.stage is Stage.DONE:
                self._done(sighting)
            else:
                self._meet(sighting, _SIDES[sighting.stage])

    def _done(self, sighting: Sighting) -> None:
        happened = HappenedRecord(
            operation=sighting.operation,
            path=sighting.path,
            second_path=sighting.second_path,
            pid=sighting.pid,
            comm=comm(sighting.pid),
            errno=sighting.errno,
        )
        for gate in self._gates.values():
            gate.here.pop(sighting.number, None)  # it was killed there
            gate.note(happened)

    def _meet(self, sighting: Sighting, when: When) -> None:
        """A request has stopped: it stands at the first gate that means it, if there is one."""
        stopped = StoppedRecord(
            number=sighting.number,
            operation=sighting.operation,
            path=sighting.path,
            second_path=sighting.second_path,
            pid=sighting.pid,
            comm=comm(sighting.pid),
            when=when,
        )
        paths = (sighting.path, sighting.second_path)
        meant = deque(
            gate
            for gate in self._gates.values()
            if gate.selection.matches(sighting.operation, when, paths, lambda: lineage(sighting.pid))
            and gate.occurrences.next_is_meant()
        )
        self._go_on(_Passage(sighting, stopped, meant))

    def _go_on(self, passage: _Passage) -> None:
        """To the next gate on its way that is not open, or on."""
        number = passage.sighting.number
        while passage.ahead:
            gate = passage.ahead.popleft()
            if gate.name not in self._gates:
                continue
            gate.reached += 1
            if gate.open:
                continue
            if gate.fault is not None and gate.fault.answer is not None:
                self._sightings.let_go(number, gate.fault.answer)
                return
            gate.here[number] = passage
            if gate.fault is not None:
                self._nursery.start_soon(self._delay, gate, passage, gate.fault.delay)
            else:
                gate.untold.append(passage)
                gate.news.set()
            return
        self._sightings.let_go(number)

    async def _delay(self, gate: _Gate, passage: _Passage, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await passage.hurried.wait()
            return
        if gate.here.pop(passage.sighting.number, None) is not None:
            self._go_on(passage)

    def _empty(self, gate: _Gate) -> None:
        passages = list(gate.here.values())
        gate.here.clear()
        for passage in passages:
            passage.hurried.set()
            passage.hurried = trio.Event()
            self._go_on(passage)

    def _check_answer(self, answer: int, when: When, operations: frozenset[Operation] | set[Operation]) -> None:
        if not 0 < answer < 512:
            raise BadGate(f"{answer} is no errno that a program could be told")
        if when is When.AFTER and (giving := sorted(operations & GIVING)):
            raise BadGate(
                f"{', '.join(giving)} cannot fail after it was done: the kernel has been given what it will give back; "
                "place the gate before it"
            )
