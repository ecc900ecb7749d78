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

WITHOUT: Final = [
    word for name in ("cacheprovider", "hypothesispytest", "timeout", "trio") for word in ("-p", f"no:{name}")
]
"""Who runs them may well not have these, and their start takes longer than a test."""
RACES: Final = Path(__file__).parents[2] / "examples" / "races"


@pytest.mark.timeout(600)
def test_every_race_is_met_and_a_hold_prevents_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-W", "error", *WITHOUT]
    command += ["-c", os.devnull, "--rootdir", tmp_path, "--basetemp", tmp_path / "base", "--exclfs-require", RACES]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if "SKIPPED" in done.stdout:
        assert not os.environ.get("CI"), done.stdout
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE), done.stdout
