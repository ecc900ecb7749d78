"""The examples, and the tests that a page shows, are run as somebody's own project: by pytest with the plugin alone."""

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
HOME: Final = Path(__file__).parents[2]
RACES: Final = HOME / "examples" / "races"
PAGE: Final = HOME / "docs" / "reference" / "simulated-holders.md"
SHOWN: Final = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(600)
def test_every_race_is_met_and_a_hold_prevents_it(tmp_path: Path) -> None:
    for number, code in enumerate(SHOWN):
        (tmp_path / f"test_shown_{number}.py").write_text(code)
    options = ["-q", "-rs", "-W", "error", "-c", os.devnull, "--rootdir", tmp_path, "--basetemp", tmp_path / "base"]
    command = [sys.executable, "-m", "pytest", *WITHOUT, *options, "--exclfs-require", RACES, tmp_path]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if "SKIPPED" in done.stdout:
        assert not os.environ.get("CI"), done.stdout
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= len(SHOWN) + 7, done.stdout
