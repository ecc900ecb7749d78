"""Two sizes of one test, and the figures of the large one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from big import FULL

from harness import default_options

if TYPE_CHECKING:
    from collections.abc import Callable

_FIGURES = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is here is about sizes. Whether a verdict was asked for changes none, and is tried where it may."""
    if not default_options():
        return
    here = [item for item in items if item.path.parent.name == "scale"]
    config.hook.pytest_deselected(items=here)
    items[:] = [item for item in items if item not in set(here)]


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Notes what was measured, with the seconds since the last note. For people to read: no test compares it."""
    notes = request.config.stash.setdefault(_FIGURES, [])
    began = time.monotonic()

    def note(what: str) -> None:
        nonlocal began
        now = time.monotonic()
        notes.append(f"{request.node.name}: {what} ({now - began:.1f} s)")
        began = now

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The figures, after a full run."""
    notes = config.stash.get(_FIGURES, [])
    if FULL and notes:
        terminalreporter.section("figures")
        for note in notes:
            terminalreporter.write_line(note)
