"""A program in a user namespace and a pid namespace of its own, as a container's are, that does what it is told.

A test starts it with `contained(...)`; run as a program it is what goes on inside.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000


class Contained:
    """The program, seen from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid: int = self.do("pid")
        """In this pid namespace; inside it is 1."""

    def do(self, what: str, *arguments: Any, **named: Any) -> Any:
        """Has it done (see Inside): what comes of it, or the name of the error that does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, list(map(_plain, arguments)), named]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def contained(mount: Path, uid: int, uids: Mapping[int, int]) -> Iterator[Contained]:
    """Starts it.

    Args:
        mount: the mount that it will use.
        uid: whose it is, inside; its gid is the same.
        uids: users and groups, inside and here.
    """
    with subprocess.Popen(
        [sys.executable, __file__, str(mount), str(uid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "unshared\n"
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{process.pid}/{name}", "w") as file:
                    file.write("".join(f"{inside} {outside} 1\n" for inside, outside in uids.items()))
            process.stdin.write("mapped\n")
            process.stdin.flush()
            yield Contained(process)
        finally:
            process.stdin.close()


def _plain(argument: Any) -> Any:
    return os.fspath(argument) if isinstance(argument, os.PathLike) else argument


class Inside:
    """What it can do. Its holds that end with a connection last as long as it does.

    It talks to the socket itself: exclfs.connect() trusts a server by its uid, which here may have no number.
    """

    def __init__(self, mount: str) -> None:
        self.line = socket.socket(socket.AF_UNIX)
        self.line.connect(os.getxattr(mount, "user.exclfs.socket"))

    def pid(self) -> int:
        return int(os.readlink("/proc/self"))  # of the mount of /proc, which is that of outside

    def ids(self) -> list[int]:
        return [os.getpid(), os.getuid()]

    def call(self, method: str, parameters: dict[str, Any], *descriptors: int) -> Any:
        """The reply; or the name of the error."""
        message = json.dumps({"method": f"org.exclfs.{method}", "parameters": parameters}).encode() + b"\0"
        self.line.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
        answer = b""
        while not answer.endswith(b"\0"):
            answer += self.line.recv(65536)
        reply = json.loads(answer[:-1])
        return reply["error"].rpartition(".")[2] if "error" in reply else reply["parameters"]

    def hold(self, path: str, *flags: str, pidfd: bool = False, **lifetime: Any) -> Any:
        """Holds it, by a descriptor; with pidfd until this process ends. The hold, as JSON."""
        descriptors = [os.open(path, os.O_PATH | os.O_NOFOLLOW)]
        if pidfd:
            descriptors.append(os.pidfd_open(os.getpid()))
            lifetime["pidfd"] = 1
        wanted = {
            "objects": [{"fd": 0}],
            "flags": flags or ["EXCL_INUSE", "NO_REMOVE"],
            "holder": "contained",
            "reason": "",
            "lifetime": lifetime,
        }
        reply = self.call("Hold", wanted, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        return reply if isinstance(reply, str) else reply["holds"][0]

    def set(self, path: str) -> None:
        os.setxattr(path, "system.exclfs.hold", b'{"claim": false}')


def main() -> None:
    """Enters the namespaces, becomes the user, and does line by line what stdin says."""
    mount, uid = sys.argv[1], int(sys.argv[2])
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")
    print("unshared", flush=True)
    sys.stdin.readline()
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    inside = Inside(mount)
    for line in sys.stdin:
        what, arguments, named = json.loads(line)
        try:
            outcome = getattr(inside, what)(*arguments, **named)
        except Exception as error:
            outcome = type(error).__name__
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
