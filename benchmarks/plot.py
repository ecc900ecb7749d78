"""Plots as SVG, without a library: a line for each row, a dot for each filesystem, how long it takes beside bindfs."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

from document import BACKING, BINDFS, EXCLFS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from document import Series
    from ratios import Ratio

COLOURS: Final = {
    EXCLFS: "#0b6e4f",
    "exclfs, nopassthrough": "#6bbf9d",
    "exclfs, noidle_poll": "#b5d99c",
    BINDFS: "#333333",
    "mergerfs": "#b07aa1",
    "passthrough_ll": "#e1812c",
    "passthrough_hp": "#c03d3e",
    BACKING: "#7f9fc5",
}
LABELS, WIDTH, LINE, TOP, MARGIN = 230, 900, 20, 70, 20
FONT: Final = 'font-family="sans-serif" font-size="12"'


def ratios(title: str, series: Sequence[Series]) -> str:
    """The drawing: to the left of 1 is faster than bindfs. The lines are the 95 % intervals of exclfs's."""
    rows = [each for each in series if BINDFS in each.wall]
    found = {each.name: {name: each.ratio(name, BINDFS) for name in COLOURS if name in each.wall} for each in rows}
    medians = [one.median for row in found.values() for one in row.values() if one is not None]
    low = 10 ** math.floor(math.log10(min(medians, default=0.1)))
    high = max(2.0, max(medians, default=1.0) * 1.2)
    height = TOP + LINE * len(rows) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT}>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="18" font-weight="bold">{escape(title)}: time in times of bindfs</text>',
        *legend(),
        *axis(low, high, height),
    ]
    for number, each in enumerate(rows):
        several = f", {each.clients} clients" if each.clients > 1 else ""
        y = TOP + LINE * number + LINE / 2
        parts.append(f'<text x="{LABELS}" y="{y + 4}" text-anchor="end">{escape(each.row + several)}</text>')
        parts += dots(found[each.name], low, high, y)
    return "\n".join([*parts, "</svg>", ""])


def dots(row: dict[str, Ratio | None], low: float, high: float, y: float) -> Iterator[str]:
    """One for each filesystem; those of exclfs on top, the first with its interval."""
    for name in reversed(COLOURS):
        if (one := row.get(name)) is None:
            continue
        x = position(one.median, low, high)
        if name == EXCLFS:
            ends = position(one.low, low, high), position(one.high, low, high)
            yield f'<path d="M{ends[0]:.1f} {y}H{ends[1]:.1f}" stroke="{COLOURS[name]}" stroke-width="2"/>'
        radius = 5 if name == EXCLFS else 3.5
        title = f"<title>{escape(name)}: {one}</title>"
        yield f'<circle cx="{x:.1f}" cy="{y}" r="{radius}" fill="{COLOURS[name]}">{title}</circle>'


def position(ratio: float, low: float, high: float) -> float:
    """Where a ratio lies, on a logarithmic scale; what is beyond the ends is put there."""
    share = (math.log(max(ratio, low)) - math.log(low)) / (math.log(high) - math.log(low))
    return LABELS + 15 + min(share, 1.0) * (WIDTH - LABELS - 15 - MARGIN)


def legend() -> Iterator[str]:
    """What each colour is."""
    x = MARGIN
    for name, colour in COLOURS.items():
        yield f'<circle cx="{x}" cy="36" r="4" fill="{colour}"/><text x="{x + 8}" y="40">{escape(name)}</text>'
        x += 22 + int(7.2 * len(name))


def axis(low: float, high: float, height: int) -> Iterator[str]:
    """A line at each of 1, 2 and 5 of every decade."""
    for exponent in range(-4, 4):
        for digit in (1, 2, 5):
            tick = digit * 10.0**exponent
            if not low <= tick <= high:
                continue
            x, strong = position(tick, low, high), tick == 1
            colour = "#888888" if strong else "#dddddd"
            yield f'<path d="M{x:.1f} {TOP - 4}V{height - MARGIN}" stroke="{colour}"/>'
            yield f'<text x="{x:.1f}" y="{TOP - 8}" text-anchor="middle" fill="#666666">{tick:g}</text>'
