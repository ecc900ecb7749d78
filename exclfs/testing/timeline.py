"""What happened, as a sequence diagram in text: a column for each process, time going down.

              │ find 4711                │ test 4700
    ──────────┼──────────────────────────┼─────────────────────────
       0.0 ms │ ■ before unlink of       │
              │   objects/4f             │
       1.4 ms │                          │ ● hold of objects/4f

The rule that this module owns: moments in, text out, the same text for the same moments. What fits is not shortened,
what does not is folded in its middle, no line is wider than it may be, and nobody is left out: if there are more
processes than columns, those that did the least share the last one, each with its name. Where moments come from is the
business of `story`.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING, Final

from attrs import frozen
from rich.cells import cell_len, chop_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NARROWEST: Final = 40
"""Columns of a terminal below which nothing is laid out: it is as if there were so many."""
_LEAST: Final = 22
"""What a column of a process takes at least."""
_TIME: Final = 10
"""What the column of the time takes."""
_OTHERS, _ALL = "others", "all"
_PLAIN: Final = "\x1b[0m"


class Kind(Enum):
    """What a moment is, with the mark before it and the colour that it has on a terminal (SGR, ECMA-48)."""

    DONE = ("·", "")
    """An operation that nobody stopped."""
    STOPPED = ("■", "\x1b[33m")
    """Somebody stands at a gate."""
    LET_GO = ("▶", "\x1b[32m")
    """Somebody who stood goes on."""
    REFUSED = ("✗", "\x1b[31m")
    """An operation was refused, or answered with an error."""
    HELD = ("●", "\x1b[36m")
    """A hold was placed."""
    FREE = ("○", "\x1b[36m")
    """A hold has ended."""
    NOTED = (" ", "\x1b[2m")
    """Anything else."""

    def __init__(self, mark: str, colour: str) -> None:
        self.mark = mark
        self.colour = colour


@frozen(kw_only=True)
class Moment:
    """One thing that happened."""

    at: int
    """When, in nanoseconds of any one clock. Of two at the same time the first to be given is the first."""
    who: str
    """Whose column."""
    kind: Kind
    text: str
    """What; without the mark and the name."""
    towards: str | None = None
    """To whose column an arrow leads: of a refusal, who holds."""
    label: str = ""
    """What the arrow says."""


def render(moments: Iterable[Moment], *, width: int = 80, colour: bool = False) -> str:
    """The diagram, lines ending in a newline; "" if nothing happened.

    Args:
        moments: in any order.
        width: columns that it may take.
        colour: whether to write escape sequences for colours.
    """
    story = sorted(moments, key=lambda moment: moment.at)
    if not story:
        return ""
    page = _Page(story, max(width, NARROWEST), colour=colour)
    return "".join(f"{line}\n" for line in page.lines(story))


def fold(text: str, width: int) -> str:
    """The text in so many columns: more of its end than of its beginning is kept, as it tells more of a path."""
    if cell_len(text) <= width:
        return text
    keep = width - 1
    head = chop_cells(text, keep // 3)[0] if keep >= 6 else ""
    tail = text[len(head) :]
    while cell_len(head) + cell_len(tail) > keep:
        tail = tail[1:]
    return f"{head}…{tail}"


class _Page:
    """The columns, and what is in each line of them."""

    def __init__(self, story: Sequence[Moment], width: int, *, colour: bool) -> None:
        self._colour = colour
        names = list(dict.fromkeys(name for moment in story for name in (moment.who, moment.towards) if name))
        room = width - _TIME - 1
        fitting = max(1, room // _LEAST)
        if len(names) > fitting:
            names = _busiest(story, names, fitting - 1)
        self._names = names
        self._columns = {name: index for index, name in enumerate(names)}
        each, rest = divmod(room, len(names))
        self._widths = [each + (index < rest) - 1 for index in range(len(names))]

    def lines(self, story: Sequence[Moment]) -> list[str]:
        """All of the diagram."""
        head = "│".join(_padded(f" {fold(_shown(name), width - 2)}", width) for name, width in self._each())
        rule = "┼".join("─" * width for width in self._widths)
        lines = [f"{' ' * _TIME}│{head}".rstrip(), f"{'─' * _TIME}┼{rule}"]
        for moment in story:
            lines += self._moment(moment, story[0].at)
        return lines

    def _each(self) -> Iterable[tuple[str, int]]:
        return zip(self._names, self._widths, strict=True)

    def _moment(self, moment: Moment, start: int) -> list[str]:
        column = self._columns.get(moment.who, len(self._names) - 1)
        width = self._widths[column]
        text = moment.text if moment.who in self._columns else f"{moment.who}: {moment.text}"
        target = None if moment.towards is None else self._columns.get(moment.towards, len(self._names) - 1)
        if target == column and moment.label:
            text += f" ({moment.label})"
        cell = [f" {'  ' if number else moment.kind.mark + ' '}{line}" for number, line in _wrapped(text, width - 4)]
        lines = []
        for number, line in enumerate(cell):
            time = f"{(moment.at - start) / 1e6:>{_TIME - 4}.1f} ms " if number == 0 else " " * _TIME
            cells = [" " * other for other in self._widths]
            cells[column] = self._painted(_padded(line, width), moment.kind)
            lines.append((self._painted(time, Kind.NOTED) if number == 0 else time) + "│" + "│".join(cells))
        if target not in (None, column):
            lines.append(self._arrow(column, target, moment))
        return [line.rstrip() for line in lines]

    def _arrow(self, source: int, target: int, moment: Moment) -> str:
        """A line from one column to the edge of another."""
        left, right = sorted((source, target))
        crossed = range(left, right) if source < target else range(left + 1, right + 1)
        length = sum(self._widths[index] for index in crossed) + len(crossed) - 1
        label = fold(f" {_shown(moment.label)} ", length - 6) if moment.label else ""
        dashes = length - cell_len(label) - 4
        body = f"{'─' * (dashes // 2)}{label}{'─' * (dashes - dashes // 2)}"
        arrow = f"  {body}─▶" if source < target else f"◀─{body}  "
        before = [" " * width for width in self._widths[: crossed[0]]]
        after = [" " * width for width in self._widths[crossed[-1] + 1 :]]
        return " " * _TIME + "│" + "│".join([*before, self._painted(arrow, moment.kind), *after])

    def _painted(self, text: str, kind: Kind) -> str:
        if not (self._colour and kind.colour and text.strip()):
            return text
        return f"{kind.colour}{text}{_PLAIN}"


def _busiest(story: Sequence[Moment], names: Sequence[str], number: int) -> list[str]:
    """So many names, of those with the most moments, in the order in which they came; and one for all others."""
    counted = Counter(moment.who for moment in story)
    chosen = sorted(names, key=lambda name: -counted[name])[:number]
    return [*(name for name in names if name in chosen), _OTHERS if chosen else _ALL]


def _wrapped(text: str, width: int) -> Iterable[tuple[int, str]]:
    """The text in lines, broken at spaces; a word that is too long is folded."""
    lines, line = [], ""
    for word in (fold(word, width) for word in _shown(text).split(" ")):
        if line and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return enumerate([*lines, line])


def _shown(text: str) -> str:
    """Without what a terminal would obey, or could not be encoded."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
