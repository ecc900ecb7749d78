"""What docs/how-to/device-or-resource-busy.md shows is what is printed, in each of its situations made for real.

    EXCLFS_WRITE_OUTPUT=1 pytest tests/docs/test_busy_page.py

writes it into the page; without that a page that differs fails. Numbers that differ each time are not compared.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import pytest
from scenes import SCENES, Stage, staged

pytestmark = pytest.mark.root

PAGE: Final = Path(__file__).parents[2] / "docs/how-to/device-or-resource-busy.md"
BLOCK: Final = re.compile(r"<!-- scene: (?P<scene>\w+) -->\n```console\n(?P<typed>.*?)```\n", re.DOTALL)
CHANGING: Final = (
    # Root of a container may not look at every process, such as pid 1 of its host.
    (re.compile(r"Could not be read:\n  What (pid \d+ has|\d+ processes have) open, .*\n(?!  )"), ""),
    (re.compile(r"(\bpid|`kill|nsenter -t) \d+"), r"\1 4711"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "12:04:51"),
    (re.compile(r"\b40265\d{5}\b"), "4026532777"),
    (re.compile(r"/dev/loop\d+"), "/dev/loop0"),
    (re.compile(r"\bloop\d+"), "loop0"),
    (re.compile(r"/sys/fs/cgroup(/unified)?/exclfs-\d+"), "/sys/fs/cgroup/job"),
)
"""What differs each time, and what the page has in its place."""

BLOCKS: Final = [(found["scene"], found["typed"]) for found in BLOCK.finditer(PAGE.read_text())]


def commands(block: str) -> list[str]:
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def played(block: str, stage: Stage) -> str:
    lines = []
    for command in commands(block):
        said = stage.said(command)
        for changing, instead in CHANGING:
            said = changing.sub(instead, said)
        lines.append(f"$ {command}\n{said}")
    return "".join(lines)


@pytest.mark.parametrize(
    ("scene", "block"),
    [
        pytest.param(
            scene,
            block,
            id=f"{number} {scene}",
            marks=[pytest.mark.mount, pytest.mark.program] if SCENES[scene].mounts else [],
        )
        for number, (scene, block) in enumerate(BLOCKS)
    ],
)
def test_what_is_shown_is_what_is_printed(scene: str, block: str, tmp_path: Path) -> None:
    with staged(scene, tmp_path) as stage:
        printed = played(block, stage)
    if os.environ.get("EXCLFS_WRITE_OUTPUT"):
        before = f"<!-- scene: {scene} -->\n```console\n"
        PAGE.write_text(PAGE.read_text().replace(f"{before}{block}```\n", f"{before}{printed}```\n", 1))
        return
    assert printed == block


def test_every_scene_is_on_the_page() -> None:
    assert {scene for scene, _ in BLOCKS} == set(SCENES)
