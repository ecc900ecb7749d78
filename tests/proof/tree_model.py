"""A plain tree with holds: what exclfs ought to do, said again without an inode table, words, indexes or locks.

`Tree` is a directory tree as Linux has it; `Holds` is every hold in a list, and who asks looks at each. Errors are
OSError with the errno that a program gets. The order in which errors are looked for is the mirror's: a name that is not
there first, then a refusal, then what the system call says (the kernel above asks the last two the other way round).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, NoReturn

from attrs import define, field

from exclfs.holds.flags import Flags, Operation

if TYPE_CHECKING:
    from collections.abc import Iterator

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
"""RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT of renameat2(2)."""
MOVES: Final = {Operation.RENAME, Operation.EXCHANGE, Operation.WHITEOUT}
CLAIMS: Final = Flags.EXCL_INUSE | Flags.KERNEL_FILE | Flags.EXCL_SUBTREE
KEEPS: Final = Flags.NO_REMOVE | Flags.NO_REMOVE_BELOW | Flags.PIN_PATH


def fail(code: int) -> NoReturn:
    """Raises OSError."""
    raise OSError(code, os.strerror(code))


@define(eq=False)
class Node:
    """An inode."""

    kind: str
    """file, directory or whiteout."""
    ino: int = 0
    """What the backing tree calls it, once that is known."""
    entries: dict[str, Node] = field(factory=dict)

    @property
    def is_directory(self) -> bool:
        return self.kind == "directory"


@define(eq=False)
class Victim:
    """A name that a removal meets, and what would happen to what it leads to."""

    operation: Operation
    node: Node
    parent: Node


class Tree:
    """Directories, and names in them."""

    def __init__(self) -> None:
        self.root = Node("directory")

    def walk(self) -> Iterator[tuple[str, Node, Node]]:
        """Every name: its path, the directory that has it, and what it leads to. Parents come first."""
        waiting = [("", self.root)]
        while waiting:
            above, directory = waiting.pop(0)
            for name, node in directory.entries.items():
                path = f"{above}{name}"
                yield path, directory, node
                if node.is_directory:
                    waiting.append((f"{path}/", node))

    def directories(self) -> list[tuple[str, Node]]:
        """The root, whose path is empty, and every other directory."""
        return [("", self.root), *((path, node) for path, _, node in self.walk() if node.is_directory)]

    def links(self, node: Node) -> list[str]:
        """The paths of all names of an inode."""
        return [path for path, _, other in self.walk() if other is node]

    def above(self, path: str) -> list[Node]:
        """The directories above a path, the root first."""
        found = [self.root]
        for name in path.split("/")[:-1]:
            found.append(found[-1].entries[name])
        return found

    def above_directory(self, node: Node) -> list[Node]:
        """The directories above a directory."""
        return [] if node is self.root else self.above(self.links(node)[0])

    # --- what makes names ---------------------------------------------------------------------------------------------

    def add(self, directory: Node, name: str, node: Node) -> None:
        """mknod(2), mkdir(2) and link(2)."""
        if name in directory.entries:
            fail(errno.EEXIST)
        directory.entries[name] = node

    # --- what takes names away ----------------------------------------------------------------------------------------

    def removal(self, operation: Operation, directory: Node, name: str) -> list[Victim]:
        """What unlink(2) or rmdir(2) meets."""
        if name not in directory.entries:
            fail(errno.ENOENT)
        return [Victim(operation, directory.entries[name], directory)]

    def unlink(self, directory: Node, name: str) -> None:
        """unlink(2)."""
        if directory.entries[name].is_directory:
            fail(errno.EISDIR)
        del directory.entries[name]

    def rmdir(self, directory: Node, name: str) -> None:
        """rmdir(2)."""
        node = directory.entries[name]
        if not node.is_directory:
            fail(errno.ENOTDIR)
        if node.entries:
            fail(errno.ENOTEMPTY)
        del directory.entries[name]

    def renaming(self, old_directory: Node, old: str, directory: Node, new: str, flags: int) -> list[Victim]:
        """What renameat2(2) meets; nothing if both names lead to one inode."""
        if old not in old_directory.entries:
            fail(errno.ENOENT)
        source, target = old_directory.entries[old], directory.entries.get(new)
        if source is target:
            return []
        moves = replaced = Operation.EXCHANGE
        if not flags & EXCHANGE:
            moves = Operation.WHITEOUT if flags & WHITEOUT else Operation.RENAME
            replaced = Operation.REPLACE
        victims = [Victim(moves, source, old_directory)]
        return victims if target is None else [*victims, Victim(replaced, target, directory)]

    def rename(self, old_directory: Node, old: str, directory: Node, new: str, flags: int) -> None:
        """renameat2(2), in the order of do_renameat2() and vfs_rename()."""
        source, target = old_directory.entries[old], directory.entries.get(new)
        if flags & NOREPLACE and target is not None:
            fail(errno.EEXIST)
        if flags & EXCHANGE and target is None:
            fail(errno.ENOENT)
        if source is target:
            return
        if source is directory or source in self.above_directory(directory):
            fail(errno.EINVAL)
        if target is old_directory or target in self.above_directory(old_directory):
            fail(errno.EINVAL if flags & EXCHANGE else errno.ENOTEMPTY)
        if flags & EXCHANGE:
            assert target is not None
            old_directory.entries[old], directory.entries[new] = target, source
            return
        if target is not None:
            if source.is_directory and not target.is_directory:
                fail(errno.ENOTDIR)
            if target.is_directory and not source.is_directory:
                fail(errno.EISDIR)
            if target.entries:
                fail(errno.ENOTEMPTY)
        del old_directory.entries[old]
        directory.entries[new] = source
        if flags & WHITEOUT:
            old_directory.entries[old] = Node("whiteout")


@define(eq=False)
class Held:
    """A hold, and what it concerns."""

    id: str
    node: Node
    flags: Flags
    holder: str
    connection: int | None
    """The connection that it ends with."""
    pinned: list[Node]
    """The directories above the path that it was placed by."""


class Holds:
    """Every hold."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.all: list[Held] = []

    def end_of(self, connection: int) -> None:
        """Nothing is held any more by who has gone."""
        self.all = [held for held in self.all if held.connection != connection]

    def refusing(self, victim: Victim) -> list[Held]:
        """Those that refuse what would happen to a name."""
        around = [victim.parent, *self.tree.above_directory(victim.parent)]
        return [held for held in self.all if self._refuses(held, victim, around)]

    def _refuses(self, held: Held, victim: Victim, around: list[Node]) -> bool:
        if held.node is victim.node:
            if held.flags & KEEPS:
                return True
            return Flags.KERNEL_FILE in held.flags and victim.operation is Operation.RMDIR
        if Flags.NO_REMOVE_BELOW in held.flags and held.node in around:
            return True
        return Flags.PIN_PATH in held.flags and victim.node in held.pinned and victim.operation in MOVES

    def in_the_way(self, path: str, node: Node, flags: Flags, holder: str) -> list[Held]:
        """The claims that keep out a hold that is placed by this path."""
        if not flags & CLAIMS:
            return []
        above = self.tree.above(path) if path else []
        return [held for held in self.all if held.flags & CLAIMS and self._keeps_out(held, node, above, flags, holder)]

    def _keeps_out(self, held: Held, node: Node, above: list[Node], flags: Flags, holder: str) -> bool:
        if held.node is node:
            return True
        if held.holder == holder or Flags.EXCL_SUBTREE not in held.flags | flags:
            return False
        return held.node in above or self._lies_below(held.node, node)

    def _lies_below(self, node: Node, directory: Node) -> bool:
        return any(directory in self.tree.above(path) for path in self.tree.links(node))

    def covering(self, directory: Node) -> list[Held]:
        """Those that say something about a directory."""
        above = self.tree.above_directory(directory)
        reach = Flags.NO_REMOVE_BELOW | Flags.EXCL_SUBTREE
        return [
            held
            for held in self.all
            if held.node is directory
            or (held.node in above and held.flags & reach)
            or (Flags.PIN_PATH in held.flags and directory in held.pinned)
        ]
