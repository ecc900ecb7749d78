from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

import pytest

from exclfs.cli.advice import Usage
from exclfs.cli.targets import duration, named

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/b/z.o", "a/y.o", "x.o", "a/.hidden.o"):
        (tmp_path / name).touch()
    (tmp_path / "dangling.o").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["*.o"], ["dangling.o", "x.o"]),
        (["a/**/*.o"], ["a/b/z.o", "a/y.o"]),
        (["x.?", "a/y*"], ["x.o", "a/y.o"]),
        (["*.o", "x*"], ["dangling.o", "x.o"]),
    ],
)
def test_patterns(patterns: list[str], found: list[str]) -> None:
    assert named((), listed=None, null=False, patterns=patterns, command="hold") == tuple(found)


@pytest.mark.parametrize(
    ("content", "null", "found"),
    [
        (b"x.o\na b\n\n c", False, ["x.o", "a b", " c"]),
        (b"x\n.o\0a b\0", True, ["x\n.o", "a b"]),
        (b"\xff\n", False, [os.fsdecode(b"\xff")]),
    ],
)
def test_a_list(content: bytes, null: bool, found: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(content)
    assert named((), listed="list", null=null, command="hold") == tuple(found)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert named((), listed="-", null=null, command="hold") == tuple(found)


def test_all_that_is_named_counts_once_and_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("b\nx.o\na\n")
    assert named(("a", "c"), listed="list", null=False, patterns=["x*"], command="hold") == ("a", "c", "b", "x.o")


def test_what_is_more_than_one_call_takes(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\n".join(map(str, range(10_001))))
    with pytest.raises(Usage, match="10001 are named, and at most 10000"):
        named((), listed="list", null=False, command="hold")
    assert len(named(("0",), listed="list", null=True, command="hold")) == 2


def test_a_time_that_is_none() -> None:
    assert duration("--ttl", "1h30m", "hold") == 5400
    with pytest.raises(Usage, match="--ttl: '5 m' is not a time"):
        duration("--ttl", "5 m", "hold")
