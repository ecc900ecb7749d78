"""A scenario: a tree that is set up, actors that work in it at the same time, and what has to be true afterwards.

The rule that this module owns: each run has a tree of its own, with nothing in it that an earlier run has left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, runtime_checkable

from attrs import define, field, frozen

from exclfs.testing.actors import Actor

if TYPE_CHECKING:
    from exclfs.testing.actors import Ended, What
    from exclfs.testing.runs import Step
    from exclfs.testing.trail import Trail

NAME: Final = "explored"
"""The directory of the mount in which the tree of a scenario is made."""


class Tree(Protocol):
    """What a mount has to have: exclfs_mount does."""

    @property
    def path(self) -> Path:
        """The mountpoint."""

    @property
    def backing(self) -> Path:
        """The tree behind it."""


@runtime_checkable
class Storied(Protocol):
    """A mount that tells what happened as a timeline: of an exploration, its last run."""

    @property
    def trail(self) -> Trail:
        """What programs did."""

    def begin_story(self) -> None:
        """What happened before is left out."""


@frozen
class Directory:
    """A plain directory in the place of a mount, to explore without exclfs."""

    path: Path

    @property
    def backing(self) -> Path:
        """The same."""
        return self.path


@define
class Scenario:
    """What a scenario is given: a fresh tree, and afterwards what came of it."""

    path: Path
    """The tree, in the mount. Actors run there."""
    backing: Path
    """The same behind the mount."""
    mount: Tree
    ended: dict[str, Ended] = field(factory=dict, init=False)
    """After the run: how each actor ended, by its name."""
    steps: list[Step] = field(factory=list, init=False)
    """After the run: who did what, in order."""
    actors: list[Actor] = field(factory=list, init=False)

    def actor(self, what: What | Actor, **options: Any) -> str:
        """Before the run: one more takes part. Gives its name; the options are those of Actor."""
        actor = what if isinstance(what, Actor) else Actor(what, **options)
        self.actors.append(actor)
        return self.names()[-1][0]

    def names(self) -> list[tuple[str, Actor]]:
        """Names that tell all actors apart: of two with the same name the second is name-2."""
        told: list[tuple[str, Actor]] = []
        for actor in self.actors:
            number = sum(actor.called() == other.called() for _, other in told) + 1
            told.append((actor.called() if number == 1 else f"{actor.called()}-{number}", actor))
        return told


Steps: TypeAlias = Generator[None, None, None]
"""A scenario: sets the tree up, yields once, and checks what has become of it."""


def emptied(tree: Path) -> None:
    """A fresh tree, made behind the mount: no hold that an actor has left keeps it."""
    if os.path.lexists(tree):
        shutil.rmtree(tree)
    tree.mkdir()
