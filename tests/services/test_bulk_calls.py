"""Ten thousand in one call: all or none, and meanwhile the server answers others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from serving import Client, Running, hold_parameters, message

from exclfs.wire.messages import MAX_OBJECTS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def many(top: Path) -> list[dict[str, str]]:
    """So many objects as one call may name."""
    (top / "many").mkdir()
    names = [f"many/{number}" for number in range(MAX_OBJECTS)]
    for name in names:
        (top / name).touch()
    return [{"path": name} for name in names]


async def answered_meanwhile(server: Running, client: Client, method: str, **parameters: Any) -> dict[str, Any]:
    """The reply to a call. Another client has had answers from the server before it came."""
    answers: list[dict[str, Any]] = []
    async with trio.open_nursery() as nursery, (await Client.connect(server.socket)).stream as stream:

        async def ask() -> None:
            while len(answers) < 10:
                answers.append(await Client(stream).call("org.exclfs.Status"))

        nursery.start_soon(ask)
        reply = await client.call(method, **parameters)
        nursery.cancel_scope.cancel()
    assert len(answers) > 2
    assert "error" not in reply, str(reply)[:1000]
    result: dict[str, Any] = reply["parameters"]
    return result


async def test_places_renews_lists_and_releases_ten_thousand(
    server: Running, client: Client, many: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hops = []
    run_sync = trio.to_thread.run_sync

    async def counted(*arguments: Any, **named: Any) -> Any:
        hops.append(arguments)
        return await run_sync(*arguments, **named)

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    wish = hold_parameters(objects=many, lifetime={"ttl": 600})
    placed = (await answered_meanwhile(server, client, "org.exclfs.Hold", **wish))["holds"]
    assert len(hops) < 10
    assert [hold["path"].rpartition("many/")[2] for hold in placed] == [str(number) for number in range(MAX_OBJECTS)]
    ids = [hold["id"] for hold in placed]
    renewed = (await answered_meanwhile(server, client, "org.exclfs.Renew", ids=ids, ttl=1200))["holds"]
    assert [hold["id"] for hold in renewed] == ids
    assert all(new["ends"][0]["at"] > old["ends"][0]["at"] for new, old in zip(renewed, placed, strict=True))
    listed = (await answered_meanwhile(server, client, "org.exclfs.Holds"))["holds"]
    assert listed == renewed
    released = (await answered_meanwhile(server, client, "org.exclfs.Release", ids=ids))["released"]
    assert released == renewed
    assert server.keeper.registry.all() == ()
    await server.until(lambda: server.lookups.known.total() == 0)


async def test_if_one_cannot_be_held_none_is(server: Running, client: Client, many: list[dict[str, str]]) -> None:
    other = await Client.connect(server.socket)
    await other.call("org.exclfs.Hold", **hold_parameters(objects=many[-1:], holder="other"))
    reply = await client.call("org.exclfs.Hold", **hold_parameters(objects=many))
    assert (reply["error"], reply["parameters"]["hold"]["holder"]["name"]) == ("org.exclfs.Held", "other")
    reply = await client.call("org.exclfs.Hold", **hold_parameters(objects=[*many[:-1], {"path": "none"}]))
    assert reply["error"] == "org.exclfs.BadObject"
    assert [hold.holder.name for hold in server.keeper.registry.all()] == ["other"]
    await server.until(lambda: server.lookups.known.total() == 0)
    await other.stream.aclose()


async def test_who_hangs_up_in_the_middle_holds_nothing(server: Running, many: list[dict[str, str]]) -> None:
    client = await Client.connect(server.socket)
    await client.send(message("org.exclfs.Hold", **hold_parameters(objects=many)))
    await server.until(lambda: server.lookups.known.total() > 0)
    await client.stream.aclose()
    await server.until(lambda: not server.peers)
    assert server.keeper.registry.all() == ()
    assert server.lookups.known.total() == 0
