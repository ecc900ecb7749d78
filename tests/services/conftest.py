"""A control server, and a client that knows only what the protocol says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from serving import Client, Running, serving

import unserved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="exclfs-") as name:
        os.chmod(name, 0o755)
        top = Path(name) / "tree"
        (top / "private").mkdir(parents=True)
        os.chmod(top / "private", 0o700)
        for file in "a", "b", "private/c":
            (top / file).touch()
        yield top


@pytest.fixture
def patience() -> float:
    """Long: no test is to pass because the server has lost its patience."""
    return 1000


@pytest.fixture
def settings() -> dict[str, Any]:
    """Of the keeper."""
    return {"owner": os.geteuid()}


@pytest.fixture
async def server(top: Path, patience: float, settings: dict[str, Any]) -> AsyncIterator[Running]:
    with unserved.server(top, mountpoint=str(top), **settings) as behind:
        async with serving(behind, patience) as running:
            yield running


@pytest.fixture
async def client(server: Running) -> AsyncIterator[Client]:
    async with (await Client.connect(server.socket)).stream as stream:
        yield Client(stream)
