"""Gates: what can be stopped, when, and which of it is meant.

The rule that this module owns: whether something that is about to happen in a mount, or has just happened, is what a
gate was placed for. A server and exclfs.testing decide by this same code. It is pure: names, paths and process ids come
in as values.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable


class Operation(StrEnum):
    """An operation on a filesystem, by the name of its system call where there is one."""

    LOOKUP = "lookup"
    """A name is looked up for the first time, or after the kernel has forgotten it. No system call is only that."""
    GETATTR = "getattr"
    """stat(2) and its kin."""
    SETATTR = "setattr"
    """chmod(2), chown(2), truncate(2), utimensat(2)."""
    READLINK = "readlink"
    OPEN = "open"
    """A file that is there is opened."""
    CREATE = "create"
    """open(2) makes a file; with O_TMPFILE one without a name, and the path is that of the directory."""
    MKDIR = "mkdir"
    MKNOD = "mknod"
    SYMLINK = "symlink"
    LINK = "link"
    """link(2): from the path to the second path."""
    UNLINK = "unlink"
    RMDIR = "rmdir"
    RENAME = "rename"
    """rename(2): from the path to the second path."""
    READ = "read"
    WRITE = "write"
    FALLOCATE = "fallocate"
    COPY_FILE_RANGE = "copy_file_range"
    """From the path to the second path."""
    FSYNC = "fsync"
    """Of a file or a directory."""
    OPENDIR = "opendir"
    """A directory is opened."""
    READDIR = "readdir"
    GETXATTR = "getxattr"
    SETXATTR = "setxattr"
    LISTXATTR = "listxattr"
    REMOVEXATTR = "removexattr"
    STATFS = "statfs"
    FLOCK = "flock"
    """flock(2) and the locks of fcntl(2). They stay in the kernel and reach no server, so only a program that the test
    starts can be stopped at them."""


GROUPS: Final = {
    "xattr": frozenset({Operation.GETXATTR, Operation.SETXATTR, Operation.LISTXATTR, Operation.REMOVEXATTR}),
}
"""Names for several operations at once."""

TELLING: Final = frozenset({
    Operation.SETATTR, Operation.OPEN, Operation.CREATE, Operation.MKDIR, Operation.MKNOD, Operation.SYMLINK,
    Operation.LINK, Operation.UNLINK, Operation.RMDIR, Operation.RENAME, Operation.SETXATTR, Operation.REMOVEXATTR,
})  # fmt: skip
"""What is recorded while a gate stands, besides what the gate is for, to tell what happened instead."""


class When(StrEnum):
    """On which side of its execution an operation is stopped."""

    BEFORE = "before"
    """Nothing has been checked or done yet."""
    AFTER = "after"
    """It has been done, or refused, and the program has not been told."""


class BadSelection(ValueError):
    """A selection that selects nothing, or that nobody can read."""


def operations(names: str | Iterable[str]) -> frozenset[Operation]:
    """The operations with these names; a name of GROUPS stands for several.

    Raises:
        BadSelection: there is no operation of a name, or none is named.
    """
    found: set[Operation] = set()
    for name in [names] if isinstance(names, str) else names:
        if name in GROUPS:
            found |= GROUPS[name]
            continue
        try:
            found.add(Operation(name))
        except ValueError:
            known = ", ".join([*Operation, *GROUPS])
            raise BadSelection(f"there is no operation {name!r}; there are {known}") from None
    if not found:
        raise BadSelection("no operation is named")
    return frozenset(found)


def _checked_nth(_: object, __: object, nth: int | None) -> None:
    if nth is not None and nth < 1:
        raise BadSelection(f"nth counts from 1, and is {nth}")


def _all_of(pids: Iterable[int] | None) -> frozenset[int] | None:
    return None if pids is None else frozenset(pids)


@frozen(kw_only=True)
class Selection:
    """Which operations are meant: of these kinds, on paths like this, by these processes.

    Raises:
        BadSelection: see operations(); or nth is less than 1.
    """

    operations: frozenset[Operation] = field(converter=operations)
    pattern: str = "**"
    """A glob of paths relative to the mount's root, without a leading slash: `*` and `?` match within one name, `[…]`
    one character of a set, `**` matches any number of whole names, none among them. The root itself has the path "".
    Of two paths one has to match."""
    when: When = field(default=When.BEFORE, converter=When)
    pids: frozenset[int] | None = field(default=None, converter=_all_of)
    """Processes, each with all that descend from it; None: anybody's."""
    nth: int | None = field(default=None, validator=_checked_nth)
    """Only so many-th of what else is meant, counted from 1; None: all of it. See Occurrences."""

    def matches(
        self,
        operation: Operation,
        when: When,
        paths: Iterable[str | None],
        lineage: Callable[[], Collection[int]],
    ) -> bool:
        """Whether this is meant, `nth` apart.

        Args:
            operation: what happens.
            when: on which side of it we are.
            paths: the one or two paths that it is about, relative to the mount's root.
            lineage: gives the ids of the process and of those that it descends from; asked only if it matters.
        """
        return (
            operation in self.operations
            and when is self.when
            and any(path is not None and path_matches(self.pattern, path) for path in paths)
            and (self.pids is None or not self.pids.isdisjoint(lineage()))
        )


class Occurrences:
    """Counts what a selection matches, and picks the one that its `nth` means."""

    def __init__(self, selection: Selection) -> None:
        self._nth = selection.nth
        self.number = 0
        """How many there have been."""

    def next_is_meant(self) -> bool:
        """There is one more; whether it is meant."""
        self.number += 1
        return self._nth in (None, self.number)


def path_matches(pattern: str, path: str) -> bool:
    """Whether a path relative to the root is like this glob; see Selection.pattern."""
    found = _compiled.get(pattern)
    if found is None:
        found = _compiled[pattern] = re.compile(_expression(pattern), re.DOTALL)
    return found.fullmatch(path) is not None


_compiled: Final[dict[str, re.Pattern[str]]] = {}


def _expression(pattern: str) -> str:
    """The regular expression of a glob, one name after another."""
    parts = [part for part in pattern.split("/") if part]
    if not parts:
        return ""
    expression, slash = "", ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part != "**":
            expression += slash + _of_name(part)
            slash = "/"
        elif last:
            expression += f"(?:{slash}.*)?" if slash else ".*"
        elif slash:
            expression += "(?:/[^/]+)*"
        else:
            expression += "(?:[^/]+/)*"
    return expression


def _of_name(part: str) -> str:
    expression, at = "", 0
    while at < len(part):
        character = part[at]
        at += 1
        if character == "*":
            expression += "[^/]*"
        elif character == "?":
            expression += "[^/]"
        elif character == "[" and (end := part.find("]", at + (2 if part[at : at + 1] == "!" else 1))) > 0:
            negated, inside = part[at] == "!", part[at:end]
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
            expression += f"(?!/)[{'^' if negated else ''}{inside}]"
            at = end + 1
        else:
            expression += re.escape(character)
    return expression
