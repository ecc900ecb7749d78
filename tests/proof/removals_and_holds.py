"""A model of removals and holds that meet on an inode, in the steps of the sources and in their order.

What is modelled, and where it is for real:

- a removal: `remove_name()` and `op_rename()` in exclfs/mirror/removals.c; `answer()` in questions.c
- the stripe, the word and its generation, the frozen word: exclfs/mirror/locks.c
- a hold and its end: `Keeper.trylock`, `Keeper.unlock` and `Keeper.verdict` in exclfs/keeper; `Words` in words.py, with
  `Words._pin` for a hold that pins the directories above

The server's loop is one thread: what it does in one turn is atomic to its other turns, and to nobody else. What the
kernel does above is left out (it lets only one removal at a time into a directory): the names lie in different ones.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from typing import Final

from attrs import define, evolve, frozen
from interleavings import Process, Shared, Step, Violation

CLAIM: Final = 1
NO_REMOVE: Final = 2
PINNED: Final = 4
"""In the word of a directory: a hold below pins it."""
ROUNDS: Final = 1
"""How often a question is asked again before its words are frozen. With 4, as in mirror.h, two holders would never get
a removal that far."""


@frozen
class Rules:
    """What the sources keep to. The tests take one away at a time."""

    stripes: bool = True
    """A removal shares the stripes of its inodes from the test of the words to the end of the system call."""
    generations: bool = True
    """PROCEED is good for the generations of the words that were asked about, and for no others."""
    links: bool = True
    """Who sets a word looks under the lock whether a link is left."""
    registry_first: bool = True
    """A hold is in the registry before its word is set."""
    lowering_gives_way: bool = True
    """Lowering a word never waits. Where a hold is about to add a bit to it, that hold sets it to what is wanted."""
    path_is_looked_up: bool = True
    """Once every directory above a pin has its bit, the way down is looked up again."""


@frozen
class Hold:
    """What one holder wants."""

    holder: str
    inode: int
    flags: int
    pinned: tuple[int, ...] = ()
    """The directories that it pins."""


@define
class Stripe(Shared):
    """A lock that many can share, and that prefers who wants it alone."""

    sharing: int = 0
    taken: bool = False
    wanted: int = 0
    """How many wait to take it alone. Meanwhile nobody else comes to share it."""

    def can_be_shared(self) -> bool:
        return not self.taken and not self.wanted

    def can_be_taken(self) -> bool:
        return not self.taken and not self.sharing


@define
class Inode(Shared):
    """What the backing tree and the mirror have of an inode."""

    links: int = 1
    stripe: int = 0
    parent: int | None = None
    """The directory that it is in; None for the root, and where it does not matter."""
    known_parent: int | None = None
    """The same, as the mirror remembers it."""
    word: int = 0
    generation: int = 0
    frozen: int = 0
    """How many questions keep bits from being added to the word."""
    being_set: bool = False
    """A helper thread of the keeper waits to set the word."""


@define
class World(Shared):
    """Everything that holders and removers share."""

    rules: Rules
    stripes: list[Stripe]
    inodes: list[Inode]
    registry: frozenset[Hold] = frozenset()
    standing: frozenset[Hold] = frozenset()
    """The holds whose trylock has returned and whose unlock has not been called: those that the theorem is about."""
    loop_is_busy: bool = False
    thread_is_busy: bool = False
    """The questions' thread: it carries out one PROCEED after the other."""

    def at_the_end(self) -> None:
        """Nothing is left of what has ended."""
        for inode in self.inodes:
            if inode.word or inode.frozen or inode.being_set:
                raise Violation("a word is left of holds that have ended")
        if any(stripe.sharing or stripe.taken or stripe.wanted for stripe in self.stripes):
            raise Violation("a lock is left")

    def loop_is_free(self) -> bool:
        return not self.loop_is_busy

    def thread_is_free(self) -> bool:
        return not self.thread_is_busy


def world(rules: Rules, *inodes: Inode) -> World:
    """A world with these inodes, before anything happens."""
    return World(rules, [Stripe() for _ in range(1 + max(inode.stripe for inode in inodes))], list(inodes))


def refusing(holds: frozenset[Hold], victims: tuple[int, ...]) -> tuple[Hold, ...]:
    """Registry.refusing(). Of what is pinned the models have no removals but moves."""
    return tuple(
        hold
        for hold in holds
        if (hold.inode in victims and hold.flags & NO_REMOVE) or any(number in hold.pinned for number in victims)
    )


def word_of(holds: frozenset[Hold], inode: int) -> int:
    """Registry.word()."""
    word = 0
    for hold in holds:
        word |= hold.flags if hold.inode == inode else 0
        word |= PINNED if inode in hold.pinned else 0
    return word


# --- holders ----------------------------------------------------------------------------------------------------------


def holder(world: World, me: Hold) -> Process:
    """Places a hold, and lets it go."""
    inode = world.inodes[me.inode]
    yield "calls trylock", world.loop_is_free
    was_there = inode.links > 0
    said = yield from trylock(world, me)
    if said == "held" and not (inode.links if me.flags & NO_REMOVE else was_there):
        raise Violation(f"{me.holder} is told that it holds what has gone")
    if said == "ESTALE" and inode.links:
        raise Violation(f"{me.holder} is told that what is there has gone")
    if said == "held":
        yield from stand(world, me)
    return said


def stand(world: World, me: Hold) -> Generator[Step, None, None]:
    """From the return of trylock to the end of unlock."""
    world.standing |= {me}
    yield "calls unlock", world.loop_is_free
    world.standing -= {me}
    world.loop_is_busy = True
    yield from leave(world, me)
    world.loop_is_busy = False


def trylock(world: World, me: Hold) -> Generator[Step, None, str]:
    """Keeper.trylock(): enters the registry, then sets the word."""
    if any(hold.inode == me.inode and hold.flags & me.flags & CLAIM for hold in world.registry):
        return "EBUSY"
    if world.rules.registry_first:
        world.registry |= {me}
    said = yield from raise_word(world, me.inode, me)
    world.registry |= {me}
    return "held" if said == "set" else (yield from give_up(world, me))


def give_up(world: World, me: Hold) -> Generator[Step, None, str]:
    """What Keeper.trylock() does where a word cannot be set."""
    yield "gives up", world.loop_is_free
    world.loop_is_busy = True
    yield from leave(world, me)
    world.loop_is_busy = False
    return "ESTALE"


def raise_word(world: World, number: int, me: Hold) -> Generator[Step, None, str]:
    """Words._raise(): tries to set the word; what it would have to wait for, a helper thread waits for."""
    inode = world.inodes[number]
    yield "tries to set a word", lambda: world.loop_is_free() and not inode.being_set
    word = word_of(world.registry | {me}, number)
    world.loop_is_busy = True
    said = yield from set_word(world, number, word, wait=False)
    if said == "would have to wait":
        inode.being_set = True
        world.loop_is_busy = False
        said = yield from set_word(world, number, word, wait=True)
        yield "hears from its helper", world.loop_is_free
        world.loop_is_busy = True
        inode.being_set = False
        yield from lower_word(world, number, at_most=word)
    world.loop_is_busy = False
    return said


def leave(world: World, me: Hold) -> Generator[Step, None, None]:
    """Keeper._leave(): out of the registry; then its words are lowered, in the same turn of the loop."""
    world.registry -= {me}
    for number in (me.inode, *me.pinned):
        yield from lower_word(world, number)


def lower_word(world: World, number: int, at_most: int = -1) -> Generator[Step, None, None]:
    """Words.lower(): clears what no hold wants any more."""
    inode = world.inodes[number]
    if inode.being_set:
        return  # it is lowered when that is done
    said = yield from set_word(world, number, word_of(world.registry, number) & at_most, wait=False)
    if said == "would have to wait" and not world.rules.lowering_gives_way:
        raise Violation("lowering a word would have to wait")


def set_word(world: World, number: int, word: int, *, wait: bool) -> Generator[Step, None, str]:
    """word_set() of locks.c. Adding bits needs the stripe; clearing them does not."""
    inode = world.inodes[number]
    stripe = world.stripes[inode.stripe]
    if inode.word | word == inode.word:
        yield "stores the word"
        inode.word = word
        yield "counts the generation up"
        inode.generation += 1
        return "set"
    while True:
        if wait:
            stripe.wanted += 1
            yield "takes the stripe alone", stripe.can_be_taken
            stripe.wanted -= 1
        elif not stripe.can_be_taken():
            return "would have to wait"
        if not inode.frozen:
            break
        if not wait:
            return "would have to wait"
        yield "waits for the word to thaw", lambda: not inode.frozen
    stripe.taken = True
    is_gone = world.rules.links and not inode.links
    yield "sets the word and gives the stripe back"
    stripe.taken = False
    if is_gone:
        return "gone"
    inode.word = word
    inode.generation += 1
    return "set"


# --- holds that pin a path --------------------------------------------------------------------------------------------


def pinner(world: World, me: Hold) -> Process:
    """Places a hold that pins the directories above it, and lets it go."""
    path = truly_above(world, me.inode)  # by which it is named
    yield "calls trylock", world.loop_is_free
    me = evolve(me, pinned=above(world, me.inode))
    world.registry |= {me}
    yield from raise_word(world, me.inode, me)
    while True:
        for number in me.pinned:
            yield from raise_word(world, number, me)
        if not world.rules.path_is_looked_up:
            break
        leads_there = yield from is_true(world, (me.inode, *path))
        yield "hears whether the path leads there", world.loop_is_free
        if not leads_there:
            return (yield from give_up(world, me))
        if path == me.pinned:
            break
        world.loop_is_busy = True
        before, me = me, evolve(me, pinned=path)
        world.registry = world.registry - {before} | {me}
        for number in before.pinned:
            yield from lower_word(world, number)
        world.loop_is_busy = False
    if me.pinned != truly_above(world, me.inode):
        raise Violation(f"{me.holder} is told that a path is pinned that is another")
    yield from stand(world, me)
    return "held"


def above(world: World, number: int) -> tuple[int, ...]:
    """tree_ancestors(): the directories above an inode, as the mirror remembers them."""
    parent = world.inodes[number].known_parent
    return () if parent is None else (parent, *above(world, parent))


def truly_above(world: World, number: int) -> tuple[int, ...]:
    """The directories above an inode, as they are."""
    parent = world.inodes[number].parent
    return () if parent is None else (parent, *truly_above(world, parent))


def is_true(world: World, path: tuple[int, ...]) -> Generator[Step, None, bool]:
    """path_way(): looks up every name of a path, which is here that of an inode and those above it, from the root."""
    for child, parent in reversed(tuple(pairwise(path))):
        yield "looks up a name above"
        if world.inodes[child].parent != parent:
            return False
    return True


# --- removers ---------------------------------------------------------------------------------------------------------


@frozen
class Removal:
    """A removal of names of one inode, or the two of a rename."""

    victims: tuple[int, ...]
    """The inodes whose names it meets."""
    goes: int = 1
    """How many of them, from the last, lose a link: 1 of unlink, rmdir and rename over, 0 of an exchange."""

    def happens(self, world: World) -> Generator[Step, None, None]:
        """The system call, which was just made."""
        for number in self.victims[len(self.victims) - self.goes :]:
            world.inodes[number].links -= 1
        yield from ()


@frozen
class Move:
    """A directory that gets another parent."""

    victims: tuple[int]
    to: int

    def happens(self, world: World) -> Generator[Step, None, None]:
        """renameat2(2), which was just called, and inode_moved()."""
        directory = world.inodes[self.victims[0]]
        directory.parent = self.to
        yield "remembers where it is now"
        directory.known_parent = self.to


@frozen
class Question:
    """What a removal asks that has met a word."""

    tested: tuple[int, ...]
    """The generations of the words that were met."""
    rounds: int
    """How often it was asked before."""
    frozen: bool
    """Until it is answered no bit is added to the words."""


def remover(world: World, removal: Removal | Move) -> Process:
    """Asks for a removal, until it is done or refused."""
    question = yield from serve(world, removal, None)
    while question is not None:
        yield "is given a verdict", world.loop_is_free
        refused = refusing(world.registry, removal.victims)
        yield "has the verdict heard", world.thread_is_free
        world.thread_is_busy = True
        again = None if refused else (yield from serve(world, removal, question))
        for number in removal.victims:
            world.inodes[number].frozen -= question.frozen
        world.thread_is_busy = False
        if refused:
            return "EBUSY"
        question = again
    return "removed"


def serve(world: World, removal: Removal | Move, proceed: Question | None) -> Generator[Step, None, Question | None]:
    """remove_name() or op_rename(): tests the words, then removes, or asks. `proceed` is what PROCEED was said to."""
    victims = removal.victims
    stripes = tuple(sorted({world.inodes[number].stripe for number in victims})) if world.rules.stripes else ()
    for number in stripes:
        yield "shares a stripe", world.stripes[number].can_be_shared
        world.stripes[number].sharing += 1

    words, tested = 0, ()
    for number in victims:
        yield "reads a generation"
        tested = (*tested, world.inodes[number].generation)
        yield "reads a word"
        words |= world.inodes[number].word

    question = None
    if words and not covers(world.rules, proceed, tested):
        yield "asks"
        rounds = 0 if proceed is None else proceed.rounds + 1
        question = Question(tested, rounds, frozen=rounds >= ROUNDS)
        for number in victims:
            world.inodes[number].frozen += question.frozen
    else:
        yield "makes the system call"
        if held := refusing(world.standing, victims):
            raise Violation(f"what {held[0].holder} holds is removed")
        yield from removal.happens(world)

    for number in stripes:
        world.stripes[number].sharing -= 1
    return question


def covers(rules: Rules, proceed: Question | None, tested: tuple[int, ...]) -> bool:
    """verdict_covers(): whether PROCEED was said of just what is there now."""
    if proceed is None:
        return False
    return proceed.frozen or proceed.tested == tested or not rules.generations
