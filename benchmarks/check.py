"""Says which row has become slower since the last run that was accepted.

    python benchmarks/check.py NEW [ACCEPTED]

Two machines, or two days of one, cannot be compared by time. So a row is its ratio to bindfs, measured in the same
rounds. A row has fallen if its ratio is worse by more than the tolerance, and the 95 % intervals of the two do not
meet: what the noise of either run can explain is no regression. Nor is it one if only bindfs was faster this time, for
where the scheduler puts it may last a whole run: beside the backing tree the row must have fallen as well.
Rows that only one of the documents has are told, and are no failure.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Final

from attrs import frozen
from document import BACKING, BINDFS, EXCLFS, VARIANTS, Document, Series, loads
from ratios import Ratio

TOLERANCE: Final = 0.10
ACCEPTED: Final = "benchmarks/accepted.json"
OURS: Final = (EXCLFS, *VARIANTS.values())


@frozen
class Fall:
    """A row that has become slower.

    Args:
        row: its name.
        which: exclfs, or exclfs mounted otherwise.
        before: its ratio to bindfs as accepted.
        now: and as it is.
    """

    row: str
    which: str
    before: Ratio
    now: Ratio

    def __str__(self) -> str:
        """One line: what fell, from where to where."""
        return f"{self.which}: {self.row}: {self.before} of bindfs's time before, {self.now} now"


def fallen(accepted: Document, new: Document, tolerance: float = TOLERANCE) -> list[Fall]:
    """Rows that have got worse beside bindfs and beside the backing tree, by more than the tolerance and the noise."""
    before = by_name(accepted)
    found: list[Fall] = []
    for name, series in by_name(new).items():
        for which in OURS if name in before else ():
            beside_bindfs = fall(before[name], series, which, BINDFS, tolerance)
            if beside_bindfs and fall(before[name], series, which, BACKING, tolerance):
                found.append(beside_bindfs)
    return found


def fall(before: Series, now: Series, which: str, peer: str, tolerance: float) -> Fall | None:
    """How it has fallen beside this peer, if it has."""
    old, new = before.ratio(which, peer), now.ratio(which, peer)
    return Fall(now.name, which, old, new) if old and new and is_fall(old, new, tolerance) else None


def is_fall(before: Ratio, now: Ratio, tolerance: float) -> bool:
    """Whether it is slower by more than the tolerance, and the intervals do not meet."""
    return now.median > before.median * (1 + tolerance) and now.low > before.high


def broken(new: Document) -> list[str]:
    """Rows that exclfs could not do."""
    return [
        f"{which}: {series.name} fails: {series.failed[which]}"
        for series in new.series
        for which in OURS
        if which in series.failed
    ]


def gone(accepted: Document, new: Document) -> list[str]:
    """Rows that exclfs has done before, and that are not there now; of a group that is missing, their number."""
    now = by_name(new)
    groups = {(series.group, series.backing) for series in now.values()}
    rows, whole = [], Counter[str]()
    for name, series in by_name(accepted).items():
        if EXCLFS not in series.wall or EXCLFS in measured(now, name):
            continue
        if (series.group, series.backing) in groups:
            rows.append(name)
        else:
            whole[f"{series.group} on {series.backing}"] += 1
    return [*rows, *(f"{group}: {number} rows" for group, number in whole.items())]


def measured(series: dict[str, Series], name: str) -> dict[str, list[float]]:
    """By filesystem; nothing for a row that is not there."""
    return series[name].wall if name in series else {}


def by_name(document: Document) -> dict[str, Series]:
    """The rows that are compared with bindfs."""
    return {series.name: series for series in document.series if BINDFS in series.wall}


def main() -> None:
    """Compares two documents; exit status 1 if a row has fallen, 2 if one of them cannot be read."""
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("usage: check.py NEW [ACCEPTED]")
    new_path, accepted_path = sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else ACCEPTED
    try:
        with open(new_path, encoding="utf-8") as file:
            new = loads(file.read())
        with open(accepted_path, encoding="utf-8") as file:
            accepted = loads(file.read())
    except (OSError, ValueError) as error:
        print(f"bench-check: {error}", file=sys.stderr)
        sys.exit(2)
    falls = fallen(accepted, new)
    cannot = broken(new)
    for told in (*falls, *cannot):
        print(told)
    for name in gone(accepted, new):
        print(f"not measured this time: {name}")
    compared = len(by_name(new).keys() & by_name(accepted).keys())
    print(f"{compared} rows compared with the run of {accepted.when}, {len(falls)} fell, {len(cannot)} failed")
    sys.exit(1 if falls or cannot else 0)


if __name__ == "__main__":
    main()
