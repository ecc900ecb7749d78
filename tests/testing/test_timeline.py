"""The timeline is drawn as in tests/testing/timelines, whatever the width and whoever takes part.

    EXCLFS_WRITE_OUTPUT=1 pytest tests/testing/test_timeline.py

writes the diagrams there; without that one that differs fails.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import pytest
from rich.cells import cell_len

from exclfs.testing.timeline import Kind, Moment, fold, render

DRAWN: Final = Path(__file__).parent / "timelines"
ESCAPES: Final = re.compile(r"\x1b\[\d*m")


def moment(ms: float, who: str, kind: Kind, text: str, **more: Any) -> Moment:
    return Moment(at=1_000_000_000 + int(ms * 1e6), who=who, kind=kind, text=text, **more)


FIND, TEST = "find 4711", "test 4700"
REFUSED: Final = [
    moment(0, FIND, Kind.DONE, "opendir of objects"),
    moment(0.52, FIND, Kind.STOPPED, "before unlink of objects/4f"),
    moment(1.4, TEST, Kind.HELD, "hold of objects/4f: EXCL_INUSE, NO_REMOVE (reader)"),
    moment(2, FIND, Kind.LET_GO, "unlink of objects/4f"),
    moment(2.13, FIND, Kind.REFUSED, "unlink of objects/4f: EBUSY", towards=TEST, label="held by reader"),
    moment(1203.4, TEST, Kind.FREE, "hold of objects/4f"),
]
LONG: Final = "objects/4f/" + "/".join(f"{number:02x}" * 4 for number in range(12)) + "/data"
STORIES: Final = {
    "refused": REFUSED,
    "long": [
        moment(
            0, "a-program-with-a-very-long-name-indeed 100200", Kind.STOPPED, f"before rename of {LONG} to {LONG}.old"
        ),
        moment(5, "rm 7", Kind.REFUSED, f"unlink of {LONG}: EBUSY", towards=TEST, label=f"held by {'holder ' * 20}"),
        moment(6, TEST, Kind.NOTED, "x" * 200),
    ],
    "many": [
        *REFUSED,
        *(moment(3 + number, f"worker {number}", Kind.DONE, f"open of objects/{number:02x}") for number in range(9)),
        moment(13, "worker 1", Kind.REFUSED, "rmdir of objects: EBUSY", towards="worker 8", label="held by w8"),
        moment(14, "worker 1", Kind.REFUSED, "rmdir of objects: EBUSY", towards=FIND, label="held by find"),
    ],
    "odd": [
        moment(0, "日本語 1", Kind.DONE, "open of 漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字/ファイル"),
        moment(0, "evil\x1b[31m 2", Kind.DONE, "unlink of line\nbreak\x1b[2J\udcff and  two  spaces"),
    ],
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", STORIES)
def test_a_story_is_drawn_as_it_was(name: str, width: int) -> None:
    drawn = render(STORIES[name], width=width)
    kept = DRAWN / f"{name}-{width}.txt"
    if os.environ.get("EXCLFS_WRITE_OUTPUT"):
        DRAWN.mkdir(exist_ok=True)
        kept.write_text(drawn)
    assert drawn == kept.read_text()


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("width", [1, 40, 41, 63, 80, 200])
def test_no_line_is_too_wide_and_nobody_is_left_out(name: str, width: int) -> None:
    drawn = render(STORIES[name], width=width)
    assert max(cell_len(line) for line in drawn.splitlines()) <= max(width, 40)
    marks = sum(drawn.count(mark) for mark in "·■▶✗●○") - sum(drawn.count(arrow) for arrow in ("─▶",))
    assert marks == sum(moment.kind is not Kind.NOTED for moment in STORIES[name])
    assert drawn.isascii() is False
    drawn.encode()


def test_the_order_is_that_of_time_and_then_as_given() -> None:
    drawn = render(
        [moment(2, "a", Kind.DONE, "third"), moment(1, "a", Kind.DONE, "one"), moment(1, "a", Kind.DONE, "two")]
    )
    assert drawn.index("one") < drawn.index("two") < drawn.index("third")


def test_colours_change_nothing_but_colours() -> None:
    plain, coloured = render(REFUSED), render(REFUSED, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[31m" in coloured
    assert [line.rstrip() for line in ESCAPES.sub("", coloured).splitlines()] == plain.splitlines()
    assert coloured.count("\x1b[0m") * 2 == len(ESCAPES.findall(coloured))


def test_nothing_is_nothing() -> None:
    assert render([]) == ""


@pytest.mark.parametrize("width", range(1, 20))
def test_folding_keeps_the_end(width: int) -> None:
    folded = fold("objects/4f/data", width)
    assert cell_len(folded) == min(width, 15)
    assert "objects/4f/data".endswith(folded.rpartition("…")[2])
