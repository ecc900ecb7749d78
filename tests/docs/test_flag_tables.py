"""The tables of docs/reference/flags.md are printed from the code that decides, so they cannot say anything else.

    EXCLFS_WRITE_TABLES=1 pytest tests/docs/test_flag_tables.py

writes them into the page; without that a page that differs fails.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exclfs.holds.flags import CLAIMS, DEFAULT, OF_DIRECTORIES, Flags, Operation, Place, conflicts, refuses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "flags.md"
MARKED: Final = re.compile(r"<!-- printed: (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)
OPERATIONS: Final = {
    Operation.UNLINK: "`unlink`",
    Operation.RMDIR: "`rmdir`",
    Operation.RENAME: "`rename` of it",
    Operation.REPLACE: "`rename` of something else over it",
    Operation.EXCHANGE: "`rename` with RENAME_EXCHANGE, on either side",
    Operation.WHITEOUT: "`rename` with RENAME_WHITEOUT",
}
PLACES: Final = {
    Place.HERE: "the held inode",
    Place.BELOW: "a name below it",
    Place.ABOVE: "a directory above it",
}
HEAD: Final = tuple(f"`{flag.name}`" for flag in Flags)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def kinds() -> str:
    """Which flags are claims, which only directories have, and which a hold has without further words."""
    sets = {"a claim": CLAIMS, "directories only": OF_DIRECTORIES, "in the default hold": DEFAULT}
    rows = ((name, *("yes" if flag in flags else "–" for flag in Flags)) for name, flags in sets.items())
    return table(("", *HEAD), rows)


def refusals() -> str:
    """Operation × place × flag."""
    rows = (
        (words, where, *("EBUSY" if refuses(flag, operation, place) else "–" for flag in Flags))
        for place, where in PLACES.items()
        for operation, words in OPERATIONS.items()
    )
    return table(("operation", "on", *HEAD), rows)


def pairs() -> str:
    """Flag × flag: where the second is kept out."""

    def kept_out(held: Flags, wanted: Flags) -> str:
        return ", ".join(place for place in Place if conflicts(held, wanted, place)) or "–"

    rows = ((f"`{held.name}` stands", *(kept_out(held, wanted) for wanted in Flags)) for held in Flags)
    return table(("", *(f"{name} is wanted" for name in HEAD)), rows)


TABLES: Final[dict[str, Callable[[], str]]] = {"kinds": kinds, "refusals": refusals, "pairs": pairs}


def printed(page: str) -> str:
    """The page with its tables as the code has them."""
    return MARKED.sub(lambda found: f"<!-- printed: {found['name']} -->\n{TABLES[found['name']]()}<!-- end -->", page)


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    if os.environ.get("EXCLFS_WRITE_TABLES"):
        PAGE.write_text(printed(page))
    assert {found["name"] for found in MARKED.finditer(page)} == set(TABLES)
    assert PAGE.read_text() == printed(page), "run: EXCLFS_WRITE_TABLES=1 pytest tests/docs/test_flag_tables.py"


def test_every_operation_and_every_place_has_its_row() -> None:
    assert set(OPERATIONS) == set(Operation)
    assert set(PLACES) == set(Place)
    assert refusals().count("\n") == 2 + len(Operation) * len(Place)
    assert pairs().count("\n") == kinds().count("\n") - 3 + len(Flags)
