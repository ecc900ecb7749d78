"""A model of holds that reach below their directory, of removals below it, and of directories that are moved there.

What is modelled, and where it is for real:

- the tree lock, its generation, and what directories remember of what covers them: exclfs/mirror/tree.c
- a removal of a name, and a rename that carries a directory to another parent: exclfs/mirror/removals.c
- a hold with NO_REMOVE_BELOW, and a verdict that looks at the directories above: exclfs/keeper

- a path that the control socket looks up, which says anew where a directory is: exclfs/mirror/paths.c

The stripes are left out: removals_and_holds.py has them, and they order what concerns one inode.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from attrs import define, field, frozen
from interleavings import Process, Shared, Step, Violation
from removals_and_holds import Stripe

WORKERS, THREAD = 0, 1
"""The slot that the workers share, and that of the questions' thread."""
ROOT: Final = 0
"""The number of the root; the other directories have the numbers from 1."""


@frozen
class Rules:
    """What the sources keep to. The tests take one away at a time."""

    sharing: bool = True
    """A removal shares the tree from the test of what covers its name to the end of the system call."""
    moving_alone: bool = True
    """While a hold reaches below, a directory is carried to another parent with the tree taken alone."""
    generations: bool = True
    """PROCEED is good for the generation of the tree that was asked about, and for no other."""
    moves_are_counted: bool = True
    """A directory that has another parent is another generation of the tree."""
    holds_are_counted: bool = True
    """A hold that begins to reach below, or ends, is another generation of the tree."""
    looks_are_ordered: bool = True
    """While somebody looks a name up and has it remembered where it leads, no directory is moved."""


@frozen
class Hold:
    """NO_REMOVE_BELOW on a directory."""

    holder: str
    directory: int


@frozen
class Remembered:
    """What a directory remembers of what covers it."""

    generation: int
    covered: bool


@define
class Directory(Shared):
    """A directory of the backing tree, and what the mirror has of it."""

    parent: int | None
    known_parent: int | None = None
    held: bool = False
    """Its word: NO_REMOVE_BELOW is set."""
    remembered: Remembered | None = None

    def __attrs_post_init__(self) -> None:
        self.known_parent = self.parent


@define
class World(Shared):
    """Everything that holders, removers and movers share."""

    rules: Rules
    directories: list[Directory]
    slots: list[Stripe]
    """One for the workers, which may share it, and one for the questions' thread."""
    moving: Stripe = field(factory=Stripe)
    """The lock that who moves a directory takes alone, and who looks a path up shares."""
    gate_is_taken: bool = False
    changing: int = 0
    below: int = 0
    generation: int = 1
    registry: frozenset[Hold] = frozenset()
    standing: frozenset[Hold] = frozenset()
    """The holds whose trylock has returned and whose unlock has not been called."""
    loop_is_busy: bool = False
    thread_is_busy: bool = False

    def at_the_end(self) -> None:
        """Nothing is left of what has ended."""
        if self.below or self.changing or self.gate_is_taken or any(slot.sharing or slot.taken for slot in self.slots):
            raise Violation("something is left of what has ended")

    def loop_is_free(self) -> bool:
        return not self.loop_is_busy

    def thread_is_free(self) -> bool:
        return not self.thread_is_busy

    def gate_is_free(self) -> bool:
        return not self.gate_is_taken

    def holding(self, directory: int) -> str | None:
        """Who holds the names in this directory, in truth; None if nobody does."""
        at: int | None = directory
        while at is not None:
            for hold in self.standing:
                if hold.directory == at:
                    return hold.holder
            at = self.directories[at].parent
        return None


def world(rules: Rules, parents: tuple[int, ...]) -> World:
    """The root, and directories with these parents, before anything happens."""
    directories = [Directory(None), *(Directory(parent) for parent in parents)]
    return World(rules, directories, [Stripe(), Stripe()])


# --- the tree lock (tree.c) -------------------------------------------------------------------------------------------


def share_tree(world: World, slot: int) -> Generator[Step, None, None]:
    """tree_share()."""
    if not world.rules.sharing:
        return
    yield "looks whether anybody waits to change the tree"
    if world.changing:
        yield "goes through the gate", world.gate_is_free
    yield "shares its slot", world.slots[slot].can_be_shared
    world.slots[slot].sharing += 1


def release_tree(world: World, slot: int) -> None:
    """tree_release()."""
    if world.rules.sharing:
        world.slots[slot].sharing -= 1


def lock_tree(world: World, *, wait: bool) -> Generator[Step, None, bool]:
    """tree_lock(): the gate, and all slots."""
    if not wait:
        if world.gate_is_taken or not all(slot.can_be_taken() for slot in world.slots):
            return False
        world.gate_is_taken = True
        for slot in world.slots:
            slot.taken = True
        return True
    world.changing += 1
    yield "takes the gate", world.gate_is_free
    world.gate_is_taken = True
    for slot in world.slots:
        yield "takes a slot", slot.can_be_taken
        slot.taken = True
    world.changing -= 1
    return True


def unlock_tree(world: World) -> None:
    """tree_unlock()."""
    for slot in world.slots:
        slot.taken = False
    world.gate_is_taken = False


def covers(world: World, directory: int) -> Generator[Step, None, bool]:
    """tree_covers(): whether a hold reaches the names in this directory, as the mirror knows the tree."""
    yield "looks whether any hold reaches below"
    if not world.below:
        return False
    generation = world.generation
    at: int | None = directory
    covered = False
    while at is not None:
        yield "looks at a directory above"
        known = world.directories[at].remembered
        remembers = known is not None and known.generation == generation
        covered = known.covered if known is not None and remembers else world.directories[at].held
        if covered or remembers:
            break
        at = world.directories[at].known_parent
    world.directories[directory].remembered = Remembered(generation, covered)
    return covered


# --- holders ----------------------------------------------------------------------------------------------------------


def holder(world: World, me: Hold) -> Process:
    """Places a hold, and lets it go."""
    directory = world.directories[me.directory]
    yield "calls trylock", world.loop_is_free
    world.registry |= {me}
    yield "tries to set the word", world.loop_is_free
    world.loop_is_busy = True
    if not (yield from lock_tree(world, wait=False)):
        world.loop_is_busy = False
        yield from lock_tree(world, wait=True)
    directory.held = True
    world.below += 1
    world.generation += world.rules.holds_are_counted
    unlock_tree(world)
    world.loop_is_busy = False
    yield "hears that it holds", world.loop_is_free
    world.standing |= {me}

    yield "calls unlock", world.loop_is_free
    world.standing -= {me}
    world.loop_is_busy = True
    world.registry -= {me}
    yield "lowers the word"
    directory.held = False
    yield "counts the holds that reach below down"
    world.below -= 1
    yield "counts the generation up"
    world.generation += world.rules.holds_are_counted
    world.loop_is_busy = False
    return "held"


# --- removers and movers ----------------------------------------------------------------------------------------------


@frozen
class Removal:
    """A name that goes from a directory: of a file; or of directory `moving`, which goes to directory `to`."""

    directory: int
    moving: int | None = None
    to: int | None = None


def remover(world: World, removal: Removal) -> Process:
    """Asks for a removal until it is done or refused."""
    asked_about = yield from serve(world, removal, WORKERS, None)
    while asked_about is not None:
        yield "is given a verdict", world.loop_is_free
        world.loop_is_busy = True
        refused = yield from verdict(world, removal.directory)
        world.loop_is_busy = False
        if refused:
            return "EBUSY"
        yield "has the verdict heard", world.thread_is_free
        world.thread_is_busy = True
        asked_about = yield from serve(world, removal, THREAD, asked_about)
        world.thread_is_busy = False
    return "removed"


def looker(world: World, number: int) -> Process:
    """Looks the name of a directory up, by a path, and has the mirror remember where it is: step_down()."""
    if world.rules.looks_are_ordered:
        yield "shares the lock for moves", world.moving.can_be_shared
        world.moving.sharing += 1
    yield "looks the name up"
    parent = world.directories[number].parent
    yield "has it remembered"
    yield from remember(world, number, parent)
    if world.rules.looks_are_ordered:
        world.moving.sharing -= 1
    return "seen"


def verdict(world: World, directory: int) -> Generator[Step, None, bool]:
    """Keeper.verdict(): whether the registry has a hold on a directory above. The tree is not locked meanwhile."""
    above: tuple[int, ...] = ()
    at: int | None = directory if world.registry else None
    while at is not None:
        above = (*above, at)
        yield "looks up the next directory above"
        at = world.directories[at].known_parent
    return any(hold.directory in above for hold in world.registry)


def serve(world: World, removal: Removal, slot: int, proceed: int | None) -> Generator[Step, None, int | None]:
    """remove_name() or op_rename(): removes, or asks; then it gives the generation of the tree that is asked about."""
    alone = False
    yield from share_tree(world, slot)
    if removal.moving is not None and world.rules.moving_alone and world.below:
        release_tree(world, slot)
        alone = yield from lock_tree(world, wait=True)

    yield "reads the generation of the tree"
    tested = world.generation
    covered = yield from covers(world, removal.directory)
    asks = covered and not (proceed is not None and (proceed == tested or not world.rules.generations))
    if not asks:
        if removal.moving is not None:
            world.moving.wanted += 1
            yield "takes the lock for moves", world.moving.can_be_taken
            world.moving.wanted -= 1
            world.moving.taken = True
        yield "makes the system call"
        if holder := world.holding(removal.directory):
            raise Violation(f"a name is removed below what {holder} holds")
        if removal.moving is not None:
            yield from move(world, removal)
            world.moving.taken = False

    if alone:
        unlock_tree(world)
    else:
        release_tree(world, slot)
    return tested if asks else None


def move(world: World, removal: Removal) -> Generator[Step, None, None]:
    """renameat2(2), which was just called, and what renamed() does then."""
    assert removal.moving is not None
    world.directories[removal.moving].parent = removal.to
    yield "has the new parent remembered"
    yield from remember(world, removal.moving, removal.to)


def remember(world: World, number: int, parent: int | None) -> Generator[Step, None, None]:
    """inode_moved()."""
    if world.directories[number].known_parent == parent:
        return
    world.directories[number].known_parent = parent
    yield "counts the generation up, if any hold reaches below"
    if world.below:
        world.generation += world.rules.moves_are_counted
