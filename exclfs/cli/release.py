"""`exclfs release`: lets go of holds, by their ids or by what they are on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exclfs.cli import advice, targets
from exclfs.cli.output import say, say_json, shown, warn, who
from exclfs.cli.targets import Servers
from exclfs.wire.shapes import hold_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.holds.hold import Hold


def release(
    *what: Annotated[str, Parameter(name="PATH|ID")],
    listed: Annotated[str | None, Parameter(name="--from", metavar="FILE", allow_leading_hyphen=True)] = None,
    null: Annotated[bool, Parameter(name=["-0", "--null"])] = False,
    break_it: Annotated[bool, Parameter(name="--break")] = False,
    reason: Annotated[str, Parameter(metavar="TEXT", allow_leading_hyphen=True)] = "",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Release your holds on a path, or the hold with an id as `exclfs holds` lists them. Of ids all or none.

    Parameters
    ----------
    what
        A path in an exclfs mount, or the id of a hold.
    listed
        Release what this file names, too, one a line; - is standard input.
    null
        In --from a NUL ends each name.
    break_it
        Somebody else's, too, if you may; it is recorded, and the holder is told.
    reason
        Why it is broken, for the record and for the holder.
    as_json
        Say as JSON what was released.
    """
    words = targets.named(what, listed=listed, null=null, what="PATH|ID", command="release")
    released: list[Hold] = []
    nothing: list[str] = []
    for word, holds in _released(words, break_it=break_it, reason=reason):
        released += holds
        if not as_json:
            for hold in holds:
                say(f"released {hold.id} on {shown(hold.path)}, held by {who(hold)}")
        if not holds:
            nothing.append(word)
    if as_json:
        say_json(released=[hold_to_json(hold) for hold in released])
    for word in nothing:
        warn(f"{shown(word)}: there is no hold of yours to release; `exclfs holds {shown(word)}` lists those there are")
    return advice.NO if nothing else advice.OK


def _released(words: tuple[str, ...], *, break_it: bool, reason: str) -> Iterator[tuple[str, tuple[Hold, ...]]]:
    with Servers() as servers:
        paths, ids = servers.sorted_out(words)
        for client, some in ids.items():
            yield some[0], client.release(some, break_it=break_it, reason=reason)
        for client, path in paths:
            yield path, client.release(path=path, break_it=break_it, reason=reason)
