"""The examples are run as somebody's own project: by pytest, with the plugin, and nothing of these tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.program]

RACES: Final = sorted((Path(__file__).parents[2] / "examples" / "races").glob("test_*.py"))


@pytest.mark.parametrize("example", RACES, ids=lambda path: path.stem)
def test_a_race_is_met_and_a_hold_prevents_it(example: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-W", "error", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", tmp_path, "--basetemp", tmp_path / "base", "--exclfs-require", example]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if "SKIPPED" in done.stdout:
        assert not os.environ.get("CI"), done.stdout
        pytest.skip(done.stdout)
    assert re.search(r"^[23] passed in", done.stdout, re.MULTILINE), done.stdout
