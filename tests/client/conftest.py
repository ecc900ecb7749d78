"""Both clients against a server that speaks the wire: one set of tests, so that neither lacks what the other can."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hold_server import HoldServer

from exclfs.client import sync_client, trio_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


class Blocking:
    """The blocking client, called from trio as any blocking thing is."""

    def __init__(self, client: sync_client.Client) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        async def call(*args: Any, **named: Any) -> Any:
            return await trio.to_thread.run_sync(lambda: method(*args, **named))

        return call

    @contextlib.asynccontextmanager
    async def events(self, *args: Any, **named: Any) -> AsyncIterator[BlockingEvents]:
        with await trio.to_thread.run_sync(lambda: self.client.events(*args, **named)) as stream:
            yield BlockingEvents(stream)


class BlockingEvents:
    """Its events, likewise."""

    def __init__(self, stream: sync_client.Events) -> None:
        self.stream = stream
        self.missed = stream.missed

    def __aiter__(self) -> BlockingEvents:
        return self

    async def __anext__(self) -> Any:
        event = await trio.to_thread.run_sync(next, self.stream, None)
        if event is None:
            raise StopAsyncIteration
        return event

    def close(self) -> None:
        self.stream.close()


@contextlib.asynccontextmanager
async def blocking(server: HoldServer) -> AsyncIterator[Any]:
    with await trio.to_thread.run_sync(sync_client.reach, server.where) as client:
        yield Blocking(client)


@contextlib.asynccontextmanager
async def on_trio(server: HoldServer) -> AsyncIterator[Any]:
    async with await trio_client.reach(server.where) as client:
        yield client


@pytest.fixture(params=[blocking, on_trio])
def connected(request: pytest.FixtureRequest, server: HoldServer) -> Callable[[], Any]:
    """Makes a client of one kind."""
    return lambda: request.param(server)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HoldServer]:
    made = HoldServer(str(tmp_path / "socket"), tmp_path)
    yield made
    made.close()


@pytest.fixture
def found(server: HoldServer, monkeypatch: pytest.MonkeyPatch) -> HoldServer:
    """Every path is taken to be in a mount of the server."""
    monkeypatch.setattr("exclfs.client.discovery.find", lambda path: server.where)
    return server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "directory").mkdir()
    return tmp_path / "directory"
