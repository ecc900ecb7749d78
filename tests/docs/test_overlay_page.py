"""What docs/how-to/put-an-overlay-on-it.md shows is what is printed, one command after the other.

EXCLFS_WRITE_OUTPUT=1 writes it into the page, as in test_busy_page.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import pytest
from scenes import Scene, Stage, staged

pytestmark = [pytest.mark.root, pytest.mark.mount, pytest.mark.program]

PAGE: Final = Path(__file__).parents[2] / "docs/how-to/put-an-overlay-on-it.md"
BLOCK: Final = re.compile(r"```console\n(.*?)```\n", re.DOTALL)
SCENE: Final = Scene(
    made="mkdir -p /srv/layers/upper /srv/layers/work /srv/held /srv/image /srv/merged && echo x > /srv/image/base",
    ended="umount /srv/merged 2>/dev/null; umount -l /srv/held 2>/dev/null; true",
)


def played(page: str, stage: Stage) -> str:
    def block(found: re.Match[str]) -> str:
        lines = [line for line in found[1].splitlines(keepends=True) if line.startswith("$ ")]
        said = "".join(line + stage.said(line[2:].strip()) for line in lines)
        said = re.sub(r"\b(pid) \d+", r"\1 4711", said)
        return f"```console\n{said}```\n"

    return BLOCK.sub(block, page)


def test_what_is_shown_is_what_is_printed(tmp_path: Path) -> None:
    page = PAGE.read_text()
    with staged(SCENE, tmp_path) as stage:
        printed = played(page, stage)
    if os.environ.get("EXCLFS_WRITE_OUTPUT"):
        PAGE.write_text(printed)
    else:
        assert printed == page
