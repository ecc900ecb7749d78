"""The client on trio, on a real mount: a hold is a block, also where that is cancelled, and for many tasks at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import exclfs
from exclfs.client import trio_client

if TYPE_CHECKING:
    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]


def refused(path: Path) -> None:
    with pytest.raises(OSError, match="busy"):
        path.rmdir()


async def test_on_trio(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    async with trio_client.hold(path, holder="us", reason="because") as hold:
        refused(path)
        async with await trio_client.connect(path) as client:
            assert [one.id for one in await client.holds(path)] == [hold.id]
            with pytest.raises(exclfs.Held) as caught:
                await client.hold(path)
            assert caught.value.hold.id == hold.id
            assert (await client.why(path)).blocked
            assert (await client.status()).pid == mounted.process.pid
    path.rmdir()


async def test_on_trio_a_cancelled_block_holds_nothing(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    async with trio.open_nursery() as nursery:

        async def stay(task_status: trio.TaskStatus[None]) -> None:
            async with trio_client.hold(path):
                task_status.started()
                await trio.sleep_forever()

        await nursery.start(stay)
        assert exclfs.inuse(path)
        nursery.cancel_scope.cancel()
    path.rmdir()


async def test_on_trio_many_at_once(mounted: Mounted) -> None:
    paths = [mounted.setup(f"directory{number}") for number in range(50)]

    async def work(path: Path) -> None:
        async with trio_client.hold(path):
            assert exclfs.inuse(path)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(work, path)
    for path in paths:
        path.rmdir()
