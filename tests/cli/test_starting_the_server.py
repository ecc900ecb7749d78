"""The protocol between `exclfs mount` and the server that it starts, with small servers in place of the real one."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import cattrs
import pytest

from exclfs.cli import mount
from exclfs.options import MountFailed, MountOptions
from harness import children

if TYPE_CHECKING:
    from pathlib import Path

BEGIN = """
import json, os, signal, sys
asked, flag, number = sys.argv[1:]
assert flag == "--ready-fd"
def answer(text):
    os.write(int(number), text.encode())
"""
OPTIONS = MountOptions(os.fsdecode(b"/srv/\xff"), "/mnt", kernel_flags=("ro",), threads=3)

Start = "Callable[[str], dict[str, Any]]"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    def start_this(code: str) -> dict[str, Any]:
        (tmp_path / "small_server.py").write_text(BEGIN + code)
        monkeypatch.setattr(mount, "SERVER", "small_server")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        return mount.start_server(OPTIONS)

    return start_this


def test_it_is_done_once_the_server_serves(start: Start) -> None:
    ready = start(r"""
answer('{"ready": true, "pid": %d}\n' % os.getpid())
signal.pause()
""")
    assert ready["ready"] is True
    os.kill(ready["pid"], 0)
    os.kill(ready["pid"], signal.SIGKILL)
    os.waitpid(ready["pid"], 0)


def test_the_server_has_the_options_and_nothing_of_the_terminal(start: Start) -> None:
    told = start(r"""
links = [os.readlink(f"/proc/self/fd/{n}") for n in range(3)]
answer(json.dumps({"ready": True, "asked": json.loads(asked), "cwd": os.getcwd(), "links": links,
                   "leads": os.getsid(0) == os.getpid(), "pid": os.getpid()}) + "\n")
""")
    os.waitpid(told["pid"], 0)
    assert told["cwd"] == "/"
    assert told["leads"]
    assert told["links"][:2] == ["/dev/null", "/dev/null"]
    assert "(deleted)" in told["links"][2]
    assert cattrs.structure(told["asked"], MountOptions) == OPTIONS


def test_an_error_before_it_serves_comes_back(start: Start) -> None:
    with pytest.raises(MountFailed, match=r"^the tree is on fire$"):
        start(r"""
answer('{"error": "the tree is on fire", "exit": 6}\n')
sys.exit(6)
""")


def test_a_server_that_breaks_is_quoted(start: Start) -> None:
    with pytest.raises(MountFailed, match=r"ended with status 1 .*RuntimeError: on fire"):
        start("raise RuntimeError('on fire')")


def test_a_server_that_is_killed(start: Start) -> None:
    with pytest.raises(MountFailed, match="was ended by signal 9"):
        start("os.kill(os.getpid(), signal.SIGKILL)")


def test_a_server_that_ends_in_silence(start: Start) -> None:
    with pytest.raises(MountFailed, match=r"ended with status 0 before it served$"):
        start("pass")


def test_no_descriptor_and_no_child_is_left(start: Start) -> None:
    before = os.listdir("/proc/self/fd"), children()
    with pytest.raises(MountFailed):
        start("sys.exit(3)")
    assert (os.listdir("/proc/self/fd"), children()) == before
