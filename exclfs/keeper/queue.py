"""The queue: who waits for a claim that is taken.

The rule that this module owns: first come, first served. Who waits is given its holds, all of them at once, in the
moment in which the last one in the way ends, before anybody else is heard; who came later for one of the same inodes
waits behind. A trylock does not wait and is not kept waiting: it takes what is free.

What the end of a hold costs does not depend on what others wait for: nobody is looked at whom another hold keeps out.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from exclfs.holds.errors import Held, HoldError

if TYPE_CHECKING:
    from collections.abc import Callable

    from exclfs.holds.hold import Hold, Inode


@define(eq=False)
class Waiter:
    """One call that waits."""

    inodes: frozenset[Inode]
    """Those that it wants to hold."""
    place: Callable[[], tuple[Hold, ...]]
    """Places all of its holds or raises Held."""
    kept_out: Held | None = None
    """By the hold in the way; None if it waits behind somebody, or is to be looked at."""
    failed: HoldError | None = None
    """What it was told when it was its turn, instead of holds."""
    placed: tuple[Hold, ...] = ()
    served: trio.Event = field(factory=trio.Event)


class Queue:
    """The calls that wait on one mount, the first first.

    Args:
        give_back: ends holds that were placed for a call that nobody waits for any more.
    """

    def __init__(self, give_back: Callable[[tuple[Hold, ...]], None]) -> None:
        self._give_back = give_back
        self._waiters: dict[Waiter, None] = {}
        self._serving = False
        self._again = False

    def __len__(self) -> int:
        """How many calls wait."""
        return len(self._waiters)

    async def wait(self, waiter: Waiter, timeout: float) -> tuple[Hold, ...]:  # noqa: ASYNC109 - the caller's word
        """Waits for up to so many seconds; not at all if it is its turn and nothing is in the way.

        Raises:
            Held: the time is over; the error has the hold that is in the way.
            HoldError: it could not be placed when it was its turn.
        """
        self._waiters[waiter] = None
        try:
            self._serve()
            with trio.move_on_after(timeout):
                await waiter.served.wait()
            if not waiter.served.is_set():
                raise self._in_the_way_of(waiter)
            await trio.lowlevel.checkpoint_if_cancelled()  # in the moment in which it was served
        except BaseException:
            self._give_back(waiter.placed)
            raise
        finally:
            if waiter in self._waiters:
                del self._waiters[waiter]
                self._serve()  # whoever waited behind it, for something that is free
        if waiter.failed is not None:
            raise waiter.failed
        return waiter.placed

    def _in_the_way_of(self, waiter: Waiter) -> Held:
        while waiter.kept_out is None:
            earlier = takewhile(lambda other, until=waiter: other is not until, self._waiters)  # type: ignore[misc]
            waiter = next(other for other in earlier if not other.inodes.isdisjoint(waiter.inodes))
        return waiter.kept_out

    def serve(self, ended: Hold | None = None) -> None:
        """Gives whoever can have them their holds.

        Args:
            ended: a hold that is in nobody's way any more; None if that may be said of any.
        """
        anybody = False
        for waiter in self._waiters:
            if waiter.kept_out is not None and (ended is None or waiter.kept_out.hold.id == ended.id):
                waiter.kept_out = None
                anybody = True
        if anybody:
            self._serve()

    def _serve(self) -> None:
        self._again = True
        if self._serving:
            return  # placing for one has ended a dead holder's hold: the others are looked at once more
        self._serving = True
        try:
            while self._again:
                self._again = False
                self._serve_in_order()
        finally:
            self._serving = False

    def _serve_in_order(self) -> None:
        waited_for: set[Inode] = set()
        for waiter in tuple(self._waiters):
            if waiter.kept_out is None and waited_for.isdisjoint(waiter.inodes) and self._has_been_served(waiter):
                continue
            waited_for |= waiter.inodes

    def _has_been_served(self, waiter: Waiter) -> bool:
        try:
            waiter.placed = waiter.place()
        except Held as error:
            waiter.kept_out = error
            return False
        except HoldError as error:
            waiter.failed = error
        del self._waiters[waiter]
        waiter.served.set()
        return True
