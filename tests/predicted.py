"""What was said before somebody tried to remove or rename something, and what came of it.

A situation is made by root in a process of its own, in a mount namespace of its own; in it a second process becomes the
user, asks why, and tries. Both end, and with them what was mounted.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from exclfs.diagnosis.asking import why
from twins import ALICE, LIBC, ROOT, User, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_DUMPABLE = 4

CONTAINED: Final = User("contained", ALICE.uid, ALICE.gid)
"""Root of a user namespace in which nobody has a number but alice, who is root there."""
USERS: Final = (ROOT, ALICE, CONTAINED)

PREFIX: Final = f"exclfs-situation-{os.getpid()}-"
"""Of the directory of a situation: another run beside this one has situations of its own."""
CALLS: Final[dict[str, Callable[[str], None]]] = {
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "rename": lambda path: os.rename(path, f"{path.rstrip('/')}-renamed"),
}


@attrs.frozen
class Answer:
    """What was said before, and what came of it."""

    blocked: bool | None
    errno: str | None
    kinds: list[str]
    texts: list[str]
    unread: list[str]
    real: str | None
    """The errno; None if it succeeded."""

    @property
    def is_right(self) -> bool:
        """Whether it came as it was said. Who says that it is not certain is neither right nor wrong."""
        return (self.blocked, self.errno) == (self.real is not None, self.real)


def tried(path: str, attempt: str) -> Answer:
    """Asks, then does it."""
    said = why(path, attempt=attempt)
    real = None
    try:
        CALLS[attempt](path)
    except OSError as error:
        real = errno.errorcode[error.errno or 0]
    return Answer(
        said.blocked,
        said.errno,
        [cause.kind for cause in said.causes],
        [cause.text for cause in said.causes],
        [gap.text for gap in said.unread],
        real,
    )


def as_process_of(user: User, work: Callable[[], Answer]) -> Answer:
    """What comes of it in a process of this user's."""

    def run() -> dict[str, Any]:
        if user != ROOT:
            become(user)
        return attrs.asdict(work())

    return Answer(**in_a_child(run))


def answer(make: Callable[[Path], AbstractContextManager[Path]], user: User, attempt: str) -> Answer:
    """Makes the situation, asks as the user, and tries."""

    def stage() -> dict[str, Any]:
        check(LIBC.unshare(CLONE_NEWNS))
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        with make(directory) as thing:
            return attrs.asdict(as_process_of(user, lambda: tried(str(thing), attempt)))

    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        directory = Path(name)
        directory.chmod(0o777)
        return Answer(**in_a_child(stage))


def become(user: User) -> None:
    """This process is the user's from now on, as after an exec."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    check(LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
    if user == CONTAINED:
        check(LIBC.unshare(CLONE_NEWUSER))
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user.uid} 1"), ("gid_map", f"0 {user.gid} 1")):
            Path(f"/proc/self/{name}").write_text(line)


def in_a_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What comes of it in a process that ends then."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            result = json.dumps(work())
            status = 0
        except BaseException:
            result = traceback.format_exc()
        finally:
            with open(writing, "w") as pipe:
                pipe.write(result)
            os._exit(status)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    _, ended = os.waitpid(child, 0)
    assert ended == 0, said
    result = json.loads(said)
    assert isinstance(result, dict)
    return result


def mount(source: str, target: str | Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), options.encode())
    check(LIBC.mount(*arguments))


def run(*words: object) -> str:
    """Runs a command, which must succeed; what it printed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


# --- Mounts that map ids ---------------------------------------------------------------------------------------------

OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
MOUNT_ATTR_IDMAP = 0x00100000


@contextmanager
def idmapped(source: Path, target: Path, ids: dict[int, int]) -> Iterator[None]:
    """A bind mount on which what belongs to one id belongs to another (mount_setattr(2)): on disk, and seen there."""
    with user_namespace(ids) as namespace:
        tree = check(LIBC.syscall(OPEN_TREE, -100, os.fsencode(source), 1))
        request = (ctypes.c_uint64 * 4)(MOUNT_ATTR_IDMAP, 0, 0, namespace)
        check(LIBC.syscall(MOUNT_SETATTR, tree, b"", 0x1000, ctypes.byref(request), 32))
        check(LIBC.syscall(MOVE_MOUNT, tree, b"", -100, os.fsencode(target), 4))
        os.close(tree)
        yield
        check(LIBC.umount2(os.fsencode(target), 2))


@contextmanager
def user_namespace(ids: dict[int, int]) -> Iterator[int]:
    """A descriptor of one with this map: ids inside, and outside."""
    ready, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        LIBC.unshare(CLONE_NEWUSER)
        os.write(go_on, b"x")
        while True:
            signal.pause()
    try:
        os.read(ready, 1)
        for name in ("uid_map", "gid_map"):
            lines = "".join(f"{inside} {outside} 1\n" for inside, outside in ids.items())
            Path(f"/proc/{child}/{name}").write_text(lines)
        namespace = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
        try:
            yield namespace
        finally:
            os.close(namespace)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(go_on)
