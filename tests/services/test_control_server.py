"""What the methods do, for a client that says what the protocol says."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
import varlink
from serving import Client, Running, hold_parameters, opened

if TYPE_CHECKING:
    from pathlib import Path


async def test_introduces_itself(client: Client) -> None:
    info = (await client.call("org.varlink.service.GetInfo"))["parameters"]
    assert (info["vendor"], info["product"]) == ("exclfs", "exclfs")
    assert info["interfaces"] == ["org.varlink.service", "org.exclfs", "org.exclfs.gates"]
    for interface in info["interfaces"]:
        reply = await client.call("org.varlink.service.GetInterfaceDescription", interface=interface)
        assert f"interface {interface}\n" in reply["parameters"]["description"]


async def test_a_varlink_client_that_is_not_ours_understands_it(server: Running, top: Path) -> None:
    def use() -> None:
        with varlink.Client(f"unix:{server.socket}") as client, client.open("org.exclfs") as service:
            assert service.Status()["status"]["log"] == "stderr"
            (held,) = service.Hold([{"path": "a"}], ["NO_REMOVE"], "theirs", "", {"ttl": 60.5})["holds"]
            assert (held["path"], held["ends"][0]["kind"]) == (str(top / "a"), "time")
            assert service.Why({"path": "a"})["blocked"]
            assert service.Mode()["mode"] == "enforce"
            (renewed,) = service.Renew([held["id"]], 600)["holds"]
            assert renewed["ends"][0]["at"] > held["ends"][0]["at"]
            with client.open("org.exclfs") as watching:
                events = watching.Events(_more=True)
                assert next(events).get("event") is None
                assert service.Release([held["id"]])["released"] == [renewed]
                event = next(events)["event"]
                assert (event["event"], event["hold"]["id"]) == ("unlocked", held["id"])
            with pytest.raises(varlink.VarlinkError) as caught:
                service.Release([held["id"]])
            assert caught.value.error() == "org.exclfs.NoSuchHold"

    await trio.to_thread.run_sync(use)
    await server.until(lambda: not server.keeper.registry.all())


async def test_a_hold_by_descriptor(server: Running, client: Client, top: Path) -> None:
    (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
    assert held["path"] == str(top / "a")
    assert (held["dev"], held["inode"]) == (os.stat(top).st_dev, os.stat(top / "a").st_ino)
    assert (held["holder"]["name"], held["holder"]["pid"]) == ("tester", os.getpid())
    assert held["ends"] == [{"kind": "connection", "pid": None, "at": None}]
    assert server.refusing("a") == ["tester"]
    assert server.refusing("b") == []
    assert server.word("a") == 3


async def test_a_hold_by_path(server: Running, client: Client, top: Path) -> None:
    name = os.fsencode(top / "b") + b"\xff"
    os.rename(top / "b", name)
    path = {"bytes": base64.b64encode(os.path.basename(name)).decode()}
    for spelling in [{"path": "a"}, {"path": "/private/.//c"}, {"path": path}]:
        reply = await client.call(
            "org.exclfs.Hold", **hold_parameters(objects=[spelling], flags=["NO_REMOVE"], lifetime={"unmount": True})
        )
        assert "error" not in reply, reply
        assert reply["parameters"]["holds"][0]["ends"][0]["kind"] == "unmount", reply
    paths = [hold.path for hold in server.keeper.registry.all()]
    assert paths == [str(top / "a"), str(top / "private" / "c"), os.fsdecode(name)]
    await server.until(lambda: server.lookups.known.total() == 0)  # everything that was looked up is released


async def test_several_objects_are_held_together_or_not_at_all(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "b")
    reply = await client.hold(top / "a", top / "b")
    assert reply["error"] == "org.exclfs.Held"
    assert reply["parameters"]["hold"]["holder"]["name"] == "tester"
    assert server.refusing("a") == []


async def test_holds_end_with_the_connection(server: Running, top: Path) -> None:
    client = await Client.connect(server.socket)
    await client.hold(top / "a")
    await client.hold(top / "b", lifetime={"unmount": True}, holder="lasting")
    await client.stream.aclose()
    assert server.refusing("a") == []  # at once, although the server has had no time to notice
    await server.until(lambda: not server.peers)
    assert [hold.holder.name for hold in server.keeper.registry.all()] == ["lasting"]


async def test_release_by_id_and_by_object(server: Running, client: Client, top: Path) -> None:
    (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
    reply = await client.call("org.exclfs.Release", ids=[held["id"]])
    assert [hold["id"] for hold in reply["parameters"]["released"]] == [held["id"]]
    reply = await client.call("org.exclfs.Release", ids=[held["id"]])
    assert reply == {"error": "org.exclfs.NoSuchHold", "parameters": {"id": held["id"]}}
    await client.hold(top / "a")
    reply = await client.call("org.exclfs.Release", object={"path": "a"})
    assert len(reply["parameters"]["released"]) == 1
    reply = await client.call("org.exclfs.Release", object={"path": "a"})
    assert reply["parameters"]["released"] == []


async def test_lists_holds_and_says_why(client: Client, top: Path) -> None:
    await client.hold(top / "a")
    await client.hold(top / "b", holder="other", flags=["EXCL_INUSE"])
    every = await client.call("org.exclfs.Holds")
    assert [hold["holder"]["name"] for hold in every["parameters"]["holds"]] == ["tester", "other"]
    others = await client.call("org.exclfs.Holds", holder="other")
    assert [hold["path"] for hold in others["parameters"]["holds"]] == [str(top / "b")]
    with opened(top / "a") as passed:
        of_a = await client.call("org.exclfs.Holds", passed=passed, object={"fd": 0})
        why = (await client.call("org.exclfs.Why", passed=passed, object={"fd": 0}))["parameters"]
    assert [hold["path"] for hold in of_a["parameters"]["holds"]] == [str(top / "a")]
    assert (why["path"], why["blocked"]) == (str(top / "a"), True)
    assert why["causes"][0]["blocks"] == ["unlink", "rmdir", "rename"]
    why = (await client.call("org.exclfs.Why", object={"path": "b"}))["parameters"]
    assert (why["blocked"], len(why["causes"])) == (False, 1)


async def test_oneway_is_not_answered_and_more_is_answered_once(server: Running, client: Client, top: Path) -> None:
    hold = {"method": "org.exclfs.Hold", "parameters": hold_parameters(objects=[{"path": "a"}]), "oneway": True}
    nonsense = {"method": "org.exclfs.Nonsense", "oneway": True}
    info = {"method": "org.varlink.service.GetInfo", "more": True}
    await client.send(b"".join(json.dumps(call).encode() + b"\0" for call in (hold, nonsense, info)))
    reply = await client.receive()
    assert reply["parameters"]["product"] == "exclfs"
    assert "continues" not in reply
    assert server.refusing("a") == ["tester"]


@pytest.mark.parametrize(
    ("call", "error", "parameters"),
    [
        ({"method": "org.exclfs.Nonsense"}, "org.varlink.service.MethodNotFound", {"method": "org.exclfs.Nonsense"}),
        ({"method": "org.other.X"}, "org.varlink.service.InterfaceNotFound", {"interface": "org.other"}),
        ({"method": "x"}, "org.varlink.service.InterfaceNotFound", {"interface": ""}),
        (
            {"method": "org.exclfs.Status", "upgrade": True},
            "org.varlink.service.InvalidParameter",
            {"parameter": "upgrade"},
        ),
        ({"method": "org.exclfs.Why"}, "org.varlink.service.InvalidParameter", {"parameter": "object"}),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters(holder=7)},
            "org.varlink.service.InvalidParameter",
            {"parameter": "holder"},
        ),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters()},
            "org.exclfs.BadObject",
            {"why": "there is no descriptor 0: 0 came with the call"},
        ),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters(0)},
            "org.exclfs.BadHold",
            {"why": "no object is named"},
        ),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters(objects=[{"path": "a"}], holder="")},
            "org.exclfs.BadHold",
            {"why": "the holder's name is empty"},
        ),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters(objects=[{"path": "a\0"}])},
            "org.exclfs.BadObject",
            {"why": "a path cannot hold a NUL byte"},
        ),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters(objects=[{"path": "a/../b"}])},
            "org.exclfs.BadObject",
            {"why": '"a/../b": a path is named without ".."'},
        ),
    ],
)
async def test_a_call_that_is_wrong_is_told_and_the_next_is_answered(
    client: Client, call: dict[str, Any], error: str, parameters: dict[str, Any]
) -> None:
    await client.send(json.dumps(call).encode() + b"\0")
    assert await client.receive() == {"error": error, "parameters": parameters}
    assert "error" not in await client.call("org.exclfs.Status")


async def test_a_path_that_is_not_there(client: Client, top: Path) -> None:
    reply = await client.call("org.exclfs.Why", object={"path": "none"})
    assert reply["error"] == "org.exclfs.BadObject"
    assert reply["parameters"]["why"] == f'"{top}/none": No such file or directory'
