"""Forks, threads and descriptors: what a client leaves to other processes is nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from exclfs.client import sync_client

if TYPE_CHECKING:
    from pathlib import Path

    from hold_server import HoldServer

FORKS = """
import os, sys
from exclfs.client.discovery import Server
from exclfs.client.errors import Disconnected
from exclfs.client.sync_client import reach

client = reach(Server("/mnt", sys.argv[1], os.getuid(), whole=True, st_dev=0))
(hold,) = client.hold(sys.argv[2])
child = os.fork()
if child == 0:
    try:
        client.release(hold)
    except Disconnected:
        os._exit(7 if client.closed else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert client.holds(sys.argv[2]) == (hold,)
lasting = os.fork()
if lasting == 0:
    os.read(0, 1)  # outlives its parent, without its connection
    os._exit(0)
print("held", flush=True)
os._exit(0)
"""


def test_a_forked_child_keeps_no_hold_alive(server: HoldServer, file: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKS, server.where.socket, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"held\n"
        assert parent.wait() == 0
        server.ended.acquire()
        assert len(server.registry) == 0
        assert parent.stdin is not None
        parent.stdin.close()


def test_no_descriptor_is_inherited(server: HoldServer, file: Path) -> None:
    with sync_client.reach(server.where) as client:
        client.hold(file)
        assert not os.get_inheritable(client.fileno())


KEEPS_NOTHING = """
import contextlib, os, sys
from exclfs.client.discovery import Server
from exclfs.client.sync_client import reach

client = reach(Server("/mnt", sys.argv[1], os.getuid(), whole=True, st_dev=0))
before = os.listdir("/proc/self/fd")
for _ in range(10):
    client.end(client.hold(sys.argv[2]))
    with contextlib.suppress(FileNotFoundError):
        client.hold([sys.argv[2], sys.argv[2] + "none"])
    with contextlib.suppress(NotADirectoryError):
        client.hold([sys.argv[2], sys.argv[2] + "/none"])
assert os.listdir("/proc/self/fd") == before
"""


def test_no_descriptor_is_left_open(server: HoldServer, file: Path) -> None:
    subprocess.run([sys.executable, "-c", KEEPS_NOTHING, server.where.socket, str(file)], check=True)


LIGHT = """
import sys
import exclfs
assert not {"trio", "pyfuse3", "attr", "cattrs", "socket", "rich", "cyclopts"} & set(sys.modules), "exclfs is heavy"
import exclfs.client.sync_client
assert not {"trio", "pyfuse3", "rich", "cyclopts", "structlog", "asyncio"} & set(sys.modules), "the client is heavy"
assert callable(exclfs.holds)
from exclfs.holds.flags import Flags
assert callable(exclfs.holds)
assert exclfs.Flags is Flags
for name in exclfs.__all__:
    getattr(exclfs, name)
    assert name in dir(exclfs)
try:
    exclfs.nonsense
except AttributeError:
    pass
else:
    raise AssertionError
"""


def test_importing_is_light_and_the_public_names_are_there() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)
