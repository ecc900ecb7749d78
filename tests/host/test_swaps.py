from __future__ import annotations

from pathlib import Path

import pytest

from exclfs.host.swaps import Swap, parse, swaps

HEADINGS = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_every_line_is_one() -> None:
    text = (
        HEADINGS
        + b"/swap\\040file                          file\t\t1020\t\t0\t\t-2\n"
        + b"/dev/dm-1                               partition\t2097148\t\t0\t\t-3\n"
        + b"/gone\\040(deleted)                      file\t\t1020\t\t0\t\t-4\n"
    )
    assert parse(text) == (Swap(b"/swap file", True), Swap(b"/dev/dm-1", False), Swap(b"/gone", True))


def test_none_is_none() -> None:
    assert parse(HEADINGS) == ()


def test_they_are_read_from_the_proc_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "swaps").write_bytes(HEADINGS + b"/a file 1 0 -2\n")
    assert swaps(str(tmp_path)) == (Swap(b"/a", True),)
    with pytest.raises(FileNotFoundError):
        swaps(str(tmp_path / "none"))
