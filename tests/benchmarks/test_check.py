"""`make bench-check`, with made-up documents: which rows fell, and which only look like it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import check
import pytest
from document import SECONDS, VERSION, Document, Series, dumps, loads

if TYPE_CHECKING:
    from pathlib import Path

NOISE = [1.0, 1.02, 0.98, 1.01, 0.99, 1.03, 0.97]


def series(
    row: str, times_of_bindfs: float, noise: list[float] = NOISE, slow: float = 1.0, bindfs_is: float = 1.0
) -> Series:
    """A row that takes so many times as long as bindfs, which may itself be another than it was."""
    bindfs = [10e-6 * slow * bindfs_is for _ in noise]
    return Series(
        "metadata",
        "tmpfs",
        row,
        1,
        SECONDS,
        {
            "exclfs": [10e-6 * slow * bindfs_is * times_of_bindfs * factor for factor in noise],
            "bindfs": bindfs,
            "backing tree": [1e-6 * slow for _ in noise],
        },
    )


def document(*rows: Series) -> Document:
    return Document(VERSION, "2026-11-27", False, {"kernel": "6.18"}, list(rows))


ACCEPTED = document(series("unlink", 0.8), series("rename", 0.7))


def names(new: Document) -> list[str]:
    return [fall.row for fall in check.fallen(ACCEPTED, new)]


def test_the_row_that_fell_is_named_and_no_other() -> None:
    assert names(document(series("unlink", 1.0), series("rename", 0.7))) == ["unlink on tmpfs"]


def test_a_slower_machine_is_no_regression() -> None:
    assert names(document(series("unlink", 0.8, slow=9), series("rename", 0.7, slow=9))) == []


def test_a_bindfs_that_is_faster_is_no_regression() -> None:
    assert names(document(series("unlink", 1.6, bindfs_is=0.5))) == []


def test_a_bindfs_that_is_slower_too_does_not_hide_a_larger_fall() -> None:
    assert names(document(series("unlink", 1.2, bindfs_is=1.2))) == ["unlink on tmpfs"]


def test_less_than_the_tolerance_is_no_regression() -> None:
    assert names(document(series("unlink", 0.86))) == []


def test_what_noise_explains_is_no_regression() -> None:
    wild = [0.6, 1.0, 2.5, 0.7, 1.3, 0.8, 1.9]
    assert names(document(series("unlink", 0.9, wild))) == []


def test_faster_is_no_regression() -> None:
    assert names(document(series("unlink", 0.1), series("rename", 0.1))) == []


def test_a_fall_without_passthrough_counts_too() -> None:
    def both(second: float) -> Document:
        one = series("write 1M", 0.1)
        one.wall["exclfs, nopassthrough"] = [second * time for time in one.wall["bindfs"]]
        return document(one)

    assert [str(fall.which) for fall in check.fallen(both(0.5), both(0.9))] == ["exclfs, nopassthrough"]


def test_rows_that_are_not_measured_this_time_are_told_and_new_ones_are_not_compared() -> None:
    new = document(series("unlink", 0.8), series("mkdir", 5.0))
    assert check.gone(ACCEPTED, new) == ["rename on tmpfs"]
    assert names(new) == []


def test_a_group_that_is_not_measured_is_told_as_one() -> None:
    elsewhere = [Series(one.group, "ext4", one.row, 1, one.unit, one.wall) for one in ACCEPTED.series]
    assert check.gone(document(*ACCEPTED.series, *elsewhere), ACCEPTED) == ["metadata on ext4: 2 rows"]


def test_the_same_row_by_more_clients_is_another_row() -> None:
    one = series("unlink", 3.0)
    several = Series(one.group, one.backing, one.row, 4, one.unit, one.wall)
    assert names(document(several)) == []


def test_a_document_is_what_it_was_after_it_was_written() -> None:
    assert loads(dumps(ACCEPTED)).series[0].wall["bindfs"] == ACCEPTED.series[0].wall["bindfs"]
    assert dumps(loads(dumps(ACCEPTED))) == dumps(ACCEPTED)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 99}', '{"version": 1, "series": 3}'])
def test_what_is_no_document_is_one_clear_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"document|version|Expecting"):
        loads(text)


def run(tmp_path: Path, new: str, accepted: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "new").write_text(new)
    (tmp_path / "accepted").write_text(accepted)
    return subprocess.run(
        [sys.executable, check.__file__, tmp_path / "new", tmp_path / "accepted"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_says_which_row_fell_and_exits_with_1(tmp_path: Path) -> None:
    fallen = document(series("unlink", 1.6), series("rename", 0.7))
    done = run(tmp_path, dumps(fallen), dumps(ACCEPTED))
    assert done.returncode == 1
    assert "exclfs: unlink on tmpfs: 0.80 (" in done.stdout
    assert "rename" not in done.stdout
    assert "2 rows compared with the run of 2026-11-27, 1 fell, 0 failed" in done.stdout


def test_a_row_that_fails_now_is_a_failure(tmp_path: Path) -> None:
    broken = Series("metadata", "tmpfs", "unlink", 1, SECONDS, {"bindfs": [1.0]}, {}, {"exclfs": "[Errno 5] EIO"})
    done = run(tmp_path, dumps(document(broken)), dumps(ACCEPTED))
    assert done.returncode == 1
    assert "exclfs: unlink on tmpfs fails: [Errno 5] EIO" in done.stdout


def test_nothing_fell_is_status_0_and_what_cannot_be_read_is_2(tmp_path: Path) -> None:
    assert run(tmp_path, dumps(ACCEPTED), dumps(ACCEPTED)).returncode == 0
    done = run(tmp_path, dumps(ACCEPTED), "")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
