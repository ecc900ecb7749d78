"""What the pages about stopped programs and exploration show is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def fences(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (PAGES / page).read_text(), re.DOTALL | re.MULTILINE)


def run(directory: Path, code: str, *options: str) -> tuple[int, str]:
    """pytest on this code, with no other plugin."""
    (directory / "test_shown.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "exclfs.testing.plugin", "-rP", "-c", "/dev/null"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = ("--rootdir", str(directory), "--basetemp", str(directory / "temporary"), *options)
    done = subprocess.run(
        [*command, *options, str(directory)], capture_output=True, text=True, cwd=directory, env=environment
    )
    return done.returncode, done.stdout


EXPLORED = """
from exclfs.testing.exploration import exclfs_explore

@exclfs_explore(actors=[["mkdir", "x"], ["mkdir", "y"]])
def test_nothing(scenario):
    yield
"""


def test_a_program_that_is_stopped_and_how_many_schedules_ran(tmp_path: Path) -> None:
    (code,) = fences("testing-programs.md", "python")
    status, said = run(tmp_path, code + EXPLORED)
    assert status == 0, said
    assert "2 passed" in said
    assert "2 schedules ran, of those with at most 2 preemptions; that is every order there is" in said


def test_an_exploration_and_its_seed(tmp_path: Path) -> None:
    (code,), (shown,) = fences("testing-exploration.md", "python"), fences("testing-exploration.md", "text")
    status, said = run(tmp_path, code)
    assert status == 1, said
    for line in shown.splitlines():
        wanted = re.escape(line).replace("…", ".*")
        assert re.search(wanted, said), f"{line!r} is not in:\n{said}"
    seed = re.search(r"--exclfs-seed=(\S+)", said)
    assert seed is not None
    status, said = run(tmp_path, code, f"--exclfs-seed={seed[1]}")
    assert status == 1, said
    assert "1 schedule ran, that of the seed" in said
    assert f"--exclfs-seed={seed[1]}" in said
    # The timeline of the run that failed, and of no other.
    assert said.count("create of explored/objects/tmp") == 1
