"""Mount namespaces made for a test, and what somebody gets who unmounts, or mounts an overlay, beside what was said.

A test that is marked `privately` runs in a process of its own, whose mounts nobody sees, and which end with it.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exclfs.diagnosis import asking, subject
from exclfs.diagnosis.attempts import Attempt
from exclfs.host.view import Host
from predicted import CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, in_a_child, mount
from twins import LIBC, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exclfs.diagnosis.findings import Diagnosis

MS_SHARED, MS_SLAVE = 1 << 20, 1 << 19


def privately(test: Callable[..., None]) -> Callable[..., None]:
    """The test runs in a process and a mount namespace of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        def inside() -> dict[str, Any]:
            leave()
            test(*arguments, **named)
            return {}

        in_a_child(inside)

    return run


def leave() -> None:
    """Goes into a mount namespace of its own, which shares nothing."""
    check(LIBC.unshare(CLONE_NEWNS))
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


@contextmanager
def process(work: Callable[[], object]) -> Iterator[int]:
    """A process that has done this, and then waits for its end: its pid."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            work()
            os.write(writing, b"ready")
            os.close(writing)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            assert pipe.read() == b"ready"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def in_another_namespace(work: Callable[[], object]) -> Any:
    """A process that has gone into a mount namespace of its own, and done this there: its pid."""

    def run() -> None:
        leave()
        work()

    return process(run)


def bind(source: Path, target: Path, flags: int = 0) -> None:
    """mount --bind."""
    mount(str(source), target, flags=MS_BIND | flags)


def tmpfs(directory: Path, source: str = "tmpfs") -> Path:
    """A new directory with an empty filesystem mounted on it."""
    directory.mkdir(exist_ok=True)
    mount(source, directory, "tmpfs")
    return directory


def umount(path: str | Path) -> None:
    """umount(2), without flags."""
    check(LIBC.umount2(os.fsencode(path), 0))


def overlay(merged: Path, options: str) -> Path:
    """An overlay, mounted on a new directory with these options."""
    merged.mkdir(exist_ok=True)
    mount("overlay", merged, "overlay", options=options)
    return merged


def errno_of(work: Callable[[], object]) -> str | None:
    """The name of the error with which it fails; None: it does not."""
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def asked(path: str | Path, attempt: str | None = None, sys: str = "/sys") -> Diagnosis:
    """As `exclfs.why`, with sysfs elsewhere: what the modules' defaults are is said there."""
    host = Host(sys=sys)
    with subject.looked_up(os.fspath(path), host) as looked_at:
        return asking.diagnose(looked_at, host, Attempt(attempt) if attempt is not None else None)


def agrees(said: Diagnosis, real: str | None) -> None:
    """It came as it was said.

    Of a machine where some process shows itself to nobody, not even to root, a success is never quite certain.
    """
    uncertain = {gap.kind for gap in said.unread if said.attempt in gap.may_block}
    expected = True if real is not None else None if uncertain == {"processes"} else False
    assert (said.blocked, said.errno) == (expected, real), said


def of_kind(said: Diagnosis, kind: str) -> Any:
    """The one cause of this kind."""
    (cause,) = [cause for cause in said.causes if cause.kind == kind]
    return cause


def kinds(said: Diagnosis) -> set[str]:
    """The kinds of all causes."""
    return {cause.kind for cause in said.causes}
