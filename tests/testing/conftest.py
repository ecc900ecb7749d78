"""Mounts with gates, whose server the tests reach as the kit does."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from gated import control_of
from harness import Mounted, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exclfs.testing.control import Control
    from gated import Run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount with gates, and nothing cached."""
    options = {"gates": True, "entry_timeout": 0.0, "attr_timeout": 0.0, "passthrough": False}
    with start(tmp_path_factory.mktemp("gated"), **options) as mounted:
        yield mounted


@pytest.fixture
def gated(shared: Mounted, request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """That mount, narrowed to a directory that only this test has."""
    with shared.narrowed(request.node.name) as narrowed:
        yield narrowed


@pytest.fixture
def control(gated: Mounted) -> Iterator[Control]:
    """Its server."""
    made = control_of(gated)
    yield made
    made.close()


@pytest.fixture
def gated_alone(mount: Callable[..., Mounted]) -> Mounted:
    """One that only this test has, to be ended."""
    return mount(gates=True, entry_timeout=0.0, attr_timeout=0.0)


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts programs that are gone when the test is."""
    started: list[subprocess.Popen[str]] = []

    def begin(*command: str | Path) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
