"""The tutorial is followed to the letter: its files are written, its commands typed, and what they print compared.

    EXCLFS_WRITE_OUTPUT=1 pytest tests/docs/test_tutorial.py

writes what they print into the page; without that a page that differs fails. Times, process ids and temporary paths
differ each time and are not compared.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.mount, pytest.mark.program]

PAGE: Final = Path(__file__).parents[2] / "docs/tutorial/force-the-race.md"
STEP: Final = re.compile(
    r"<!-- file: (?P<file>\S+) -->\n```python\n(?P<text>.*?)```\n"
    r"|<!-- run -->\n```console\n\$ (?P<command>[^\n]+)\n(?P<printed>.*?)```\n",
    re.DOTALL,
)
WITHOUT: Final = [
    word for name in ("cacheprovider", "hypothesispytest", "timeout", "trio") for word in ("-p", f"no:{name}")
]
"""Who follows the tutorial may well not have these, and their start takes longer than a test."""
TIDIED: Final = (
    (re.compile(r"/[^\s']*?/exclfs0/mnt"), "/tmp/exclfs0/mnt"),
    (re.compile(r"/[^\s']*?/bin/python[\d.]*"), "python"),
    (re.compile(r"/[^\s\"']*?/culler\.py"), "culler.py"),
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
)
"""What is replaced also on the page."""
CHANGING: Final = (
    (re.compile(r"\bin \d+\.\d+s\b"), "in 0.1s"),
    (re.compile(r"^[ ^~]+\n", re.MULTILINE), ""),  # which part of a line it was, as later versions of Python show
    (re.compile(r"\d+\.\d ms"), "0.0 ms"),
    (re.compile(r"\b(pytest|python)[\d.]* \d+\b"), r"\1 4711"),
    (re.compile(r"\bpid \d+\b"), "pid 4711"),
    (re.compile(r"^test_cache\.py:\d+", re.MULTILINE), "test_cache.py:1"),
    (re.compile(r" +|─+"), " "),
)
"""What is not compared."""


def compared(text: str) -> str:
    for changing, instead in CHANGING:
        text = changing.sub(instead, text)
    return text


def printed(command: str, directory: Path) -> str:
    program, *arguments = command.split()
    environment = {
        # In CI pytest cuts no line short.
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "EXCLFS_", "CI"))},
        "COLUMNS": "80",
        "PYTHONDONTWRITEBYTECODE": "1",  # a file that is replaced within a second, by one of the same size, is another
    }
    run = [
        Path(sys.executable).parent / program,
        "-p",
        "no:cacheprovider",
        "--basetemp",
        directory / "base",
        *arguments,
    ]
    done = subprocess.run(run, cwd=directory, env=environment, check=False, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    said = done.stdout
    for changing, instead in TIDIED:
        said = changing.sub(instead, said)
    return said


STEPS: Final = list(STEP.finditer(PAGE.read_text()))


def followed(directory: Path) -> Iterator[str | None]:
    """What each step prints; None if it is a file, which is written."""
    for step in STEPS:
        if step["file"]:
            (directory / step["file"]).write_text(step["text"])
            yield None
        else:
            yield printed(step["command"], directory)


@pytest.mark.timeout(600)
def test_who_follows_the_tutorial_sees_what_it_shows(tmp_path: Path) -> None:
    said = list(followed(tmp_path))
    if os.environ.get("EXCLFS_WRITE_OUTPUT"):
        left = iter(said)
        PAGE.write_text(STEP.sub(lambda step: with_output(step, next(left)), PAGE.read_text()))
        return
    for step, output in zip(STEPS, said, strict=True):
        if output is not None:
            assert compared(output) == compared(step["printed"])


def with_output(step: re.Match[str], output: str | None) -> str:
    if output is None:
        return step[0]
    return f"<!-- run -->\n```console\n$ {step['command']}\n{output}```\n"


def test_every_block_is_followed() -> None:
    shown = re.findall(r"^```(?:python|console)$", PAGE.read_text(), re.MULTILINE)
    assert len(shown) == len(STEPS) + 1  # pip install
    assert [bool(step["printed"]) for step in STEPS if step["command"]] == [True] * 4
