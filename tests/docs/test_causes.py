"""The page on causes has all kinds that the code has, and no others, in the order of the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from exclfs.diagnosis import asking
from exclfs.diagnosis.attempts import ORDER

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "causes.md"


def documented() -> list[str]:
    """The kinds of the page, as they follow one another."""
    rows = re.findall(r"^\| (`[^|]*`) \|(?:[^|\n]*\|){4}$", PAGE.read_text(), re.MULTILINE)
    return [kind for row in rows for kind in re.findall(r"`([^`]+)`", row)]


def yielded() -> set[str]:
    """What any finder may yield."""
    return {kind for find in asking.FINDERS for kind in sys.modules[find.__module__].KINDS}


def test_the_page_has_every_kind_once() -> None:
    assert sorted(documented()) == sorted(yielded())


def test_every_kind_that_has_an_order_is_yielded_by_somebody() -> None:
    assert set(ORDER) - yielded() == set()


def test_the_page_has_the_order_in_which_the_kernel_looks() -> None:
    removals = ORDER[: ORDER.index("mount below")]
    assert [kind for kind in documented() if kind in removals] == list(removals)
