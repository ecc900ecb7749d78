"""Whatever a client sends on the control socket: one error, nothing changed, and the mount keeps serving."""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import socket
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.usefixtures("it_serves_afterwards")]


class Client:
    """A client of the control socket that keeps to nothing."""

    def __init__(self, mounted: Mounted) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(os.getxattr(mounted.root, "system.exclfs.socket"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        sent = self.socket.sendmsg([data], rights)
        self.socket.sendall(data[sent:])

    def read(self) -> bytes:
        """What comes until the server is silent or hangs up."""
        said = b""
        while not said.endswith(b"\0") and (more := self.socket.recv(65536)):
            said += more
        return said

    def call(self, method: str, parameters: Any = None, *descriptors: int) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # turned away, and told why
            self.send(json.dumps({"method": method, "parameters": parameters or {}}).encode() + b"\0", *descriptors)
        answer: dict[str, Any] = json.loads(self.read().rstrip(b"\0"))
        return answer


def hold(**changed: Any) -> dict[str, Any]:
    return {
        "objects": [{"fd": 0}],
        "flags": ["NO_REMOVE"],
        "holder": "bad",
        "reason": "",
        **changed,
    }


GARBAGE = {
    "half a message": b'{"method": "org.exclfs.Status"',
    "a word": b"nonsense\0",
    "a list": b"[]\0",
    "nothing": b"\0",
    "no method": b"{}\0",
    "a number for a method": b'{"method": 1}\0',
    "a list for parameters": b'{"method": "org.exclfs.Status", "parameters": []}\0',
    "not UTF-8": b'{"method": "\xff"}\0',
    "half a character": b'{"method": "org.exclfs.Holds", "parameters": {"holder": "\\ud800"}}\0',
    "a deep list": b"[" * 100_000 + b"\0",
    "10 MB without an end": b"x" * 10_000_000,
    "10 MB of bytes": b"\xff" * 10_000_000 + b"\0",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_not_varlink_gets_one_error_and_the_end(mounted: Mounted, kind: str) -> None:
    with Client(mounted) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may hang up before it has everything
            client.send(GARBAGE[kind])
            client.socket.shutdown(socket.SHUT_WR)
        answer = json.loads(client.read().rstrip(b"\0"))
        assert answer["error"] == "org.exclfs.ProtocolError"
        assert answer["parameters"]["why"]
        assert client.read() == b""


@pytest.mark.parametrize(
    ("method", "parameters", "error"),
    [
        ("org.exclfs.Nothing", {}, "org.varlink.service.MethodNotFound"),
        ("org.nothing.Status", {}, "org.varlink.service.InterfaceNotFound"),
        ("", {}, "org.varlink.service.InterfaceNotFound"),
        ("org.exclfs.Status", {"more": 1}, "org.varlink.service.InvalidParameter"),
        ("org.exclfs.Hold", {}, "org.varlink.service.InvalidParameter"),
        ("org.exclfs.Hold", hold(holder=1), "org.varlink.service.InvalidParameter"),
        ("org.exclfs.Hold", hold(flags="NO_REMOVE"), "org.varlink.service.InvalidParameter"),
        ("org.exclfs.Hold", hold(lifetime={"unmount": 0}), "org.varlink.service.InvalidParameter"),
        ("org.exclfs.Hold", hold(objects=[{"fd": True}]), "org.varlink.service.InvalidParameter"),
        ("org.exclfs.Hold", hold(objects=[{"path": {"bytes": "?"}}]), "org.varlink.service.InvalidParameter"),
        ("org.exclfs.Hold", hold(flags=["NONSENSE"]), "org.exclfs.UnknownFlag"),
        ("org.exclfs.Hold", hold(flags=[]), "org.exclfs.BadHold"),
        ("org.exclfs.Hold", hold(holder=""), "org.exclfs.BadHold"),
        ("org.exclfs.Hold", hold(objects=[]), "org.exclfs.BadHold"),
        ("org.exclfs.Hold", hold(objects=[{"fd": 1}]), "org.exclfs.BadObject"),
        ("org.exclfs.Hold", hold(objects=[{"fd": -1}]), "org.exclfs.BadObject"),
        ("org.exclfs.Hold", hold(objects=[{"fd": 2**70}]), "org.exclfs.BadObject"),
        ("org.exclfs.Hold", hold(objects=[{"fd": 0}] * 1025), "org.exclfs.BadObject"),
        ("org.exclfs.Hold", hold(objects=[{}]), "org.exclfs.BadObject"),
        ("org.exclfs.Hold", hold(objects=[{"path": "../.."}]), "org.exclfs.BadObject"),
        ("org.exclfs.Hold", hold(objects=[{"path": "a\0b"}]), "org.exclfs.BadObject"),
        ("org.exclfs.Hold", hold(objects=[{"path": "x" * 5000}]), "org.exclfs.BadObject"),
        ("org.exclfs.Release", {"break_it": True}, "org.exclfs.BadObject"),
        ("org.exclfs.Release", {"break_it": True, "ids": ["h0"]}, "org.exclfs.NoSuchHold"),
    ],
)
def test_a_wrong_call_gets_its_error_and_the_next_its_answer(
    mounted: Mounted, method: str, parameters: dict[str, Any], error: str
) -> None:
    mounted.expect("unlock_bad")
    descriptor = os.open(mounted.path / "kept", os.O_PATH)
    try:
        with Client(mounted) as client:
            assert client.call(method, parameters, descriptor)["error"] == error
            assert client.call("org.exclfs.Status")["parameters"]["status"]["pid"] == mounted.process.pid
    finally:
        os.close(descriptor)


FOREIGN: dict[str, Callable[[Path], int]] = {
    "a directory elsewhere": lambda path: os.open("/etc", os.O_PATH),
    "a file elsewhere": lambda path: os.open("/etc/passwd", os.O_PATH),
    "proc": lambda path: os.open("/proc/self", os.O_PATH),
    "the backing tree": lambda path: os.open(path.parent.parent.parent / "tree", os.O_PATH),
    "a device": lambda path: os.open("/dev/null", os.O_RDWR),
    "a socket": lambda path: socket.socket(socket.AF_UNIX).detach(),
    "open for reading": lambda path: os.open(path, os.O_RDONLY),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_descriptors_that_name_nothing_here(mounted: Mounted, kind: str) -> None:
    descriptor = FOREIGN[kind](mounted.path / "kept")
    try:
        with Client(mounted) as client:
            answer = client.call("org.exclfs.Hold", hold(), descriptor)
            assert answer["error"] == "org.exclfs.BadObject"
            assert ("O_PATH" in answer["parameters"]["why"]) == (kind in {"a device", "a socket", "open for reading"})
            assert client.call("org.exclfs.Holds", {"object": {"fd": 0}}, descriptor)["error"]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("its_server", ["lives", "is stopped"])
def test_descriptors_of_another_exclfs_mount(mounted: Mounted, mount: Callable[..., Mounted], its_server: str) -> None:
    other = mount()
    descriptor = os.open(other.setup("kept"), os.O_PATH)
    if its_server == "is stopped":
        other.process.send_signal(19)
    try:
        with Client(mounted) as client:
            answer = client.call("org.exclfs.Hold", hold(), descriptor)
            assert answer["error"] == "org.exclfs.BadObject"
            assert "is not of the mount" in answer["parameters"]["why"]
            assert client.call("org.exclfs.Status")["parameters"]["status"]["holds"] == 0
    finally:
        other.process.send_signal(18)
        os.close(descriptor)
    (other.path / "kept").rmdir()


def test_a_thousand_connections(mounted: Mounted) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    clients: list[Client] = []
    answers = []
    try:
        for _ in range(1000):
            clients.append(Client(mounted))
            answers.append(clients[-1].call("org.exclfs.Holds"))
        refused = [answer for answer in answers if "error" in answer]
        assert len(refused) > 500
        assert {answer["error"] for answer in refused} == {"org.exclfs.NotPermitted"}
        assert all("connections open" in answer["parameters"]["why"] for answer in refused)
        (mounted.path / "new").mkdir()
        (mounted.path / "new").rmdir()
    finally:
        for client in clients:
            client.socket.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    while not _admits(mounted):
        pass


def _admits(mounted: Mounted) -> bool:
    """Whether there is room again: the server notices the end of each connection when it comes to it."""
    with Client(mounted) as client:
        return "error" not in client.call("org.exclfs.Holds")
