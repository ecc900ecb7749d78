"""The program as people run it: `exclfs …` in a process of its own, against real mounts."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exclfs.holds.flags import Flags
from exclfs.testing import forks
from harness import SANITIZED, default_options, mounts_now, server_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness import Mounted

HERE = Path(__file__).parent
EXCLFS = [sys.executable, "-m", "exclfs.cli"]


def exclfs(*arguments: object, status: int | None = 0, **named: Any) -> subprocess.CompletedProcess[str]:
    """Runs `exclfs` to its end, and expects this exit code (None: any) and never a traceback.

    Where nothing else is asked for it is forked, which saves each run its imports.
    """
    done = _run(list(map(str, arguments)), **named) if named or SANITIZED else _fork(list(map(str, arguments)))
    assert status in (None, done.returncode), f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def _run(arguments: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EXCLFS, *arguments], capture_output=True, text=True, errors="surrogateescape", check=False, **named
    )


def _fork(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        program = fork_server().fork(arguments, environment=os.environ, stdout=stdout, stderr=stderr, cwd=os.getcwd())
        status = program.wait()
        said = []
        for file in stdout, stderr:
            file.seek(0)
            said.append(file.read().decode(errors="surrogateescape"))
    return subprocess.CompletedProcess([*EXCLFS, *arguments], status, *said)


def fork_server() -> forks.ForkServer:
    """What forks the program: it has imported all of it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    return forks.server_of("imported_program", environment)


def started(*arguments: object, **named: Any) -> subprocess.Popen[str]:
    """Begins `exclfs`, with pipes to its stdout and stderr."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*EXCLFS, *map(str, arguments)], **{**pipes, **named})


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command has to say when it fails."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, f"{len(lines)} lines: {done.stderr!r}"
    assert lines[0].startswith("exclfs: "), lines[0]
    assert done.stderr.endswith("\n")
    assert done.stdout == ""
    return lines[0].removeprefix("exclfs: ")


def document(*arguments: object, status: int = 0) -> dict[str, Any]:
    """What a command says with --json: one document on one line, version 1."""
    said = exclfs(*arguments, "--json", status=status).stdout
    assert said.count("\n") == 1, said
    told: dict[str, Any] = json.loads(said)
    assert told.pop("version") == 1
    return told


def run_options() -> list[str]:
    """What every mount of this run is started with (EXCLFS_TEST_OPTIONS), as words of the command line."""
    words = [name if value is True else f"{name}={value}" for name, value in default_options().items()]
    return ["-o", ",".join(words)] if words else []


@contextmanager
def mounted_by_program(source: Path, mountpoint: Path, *more: object) -> Iterator[dict[str, Any]]:
    """Mounts with `exclfs mount` (logging to a file beside SRC), gives what it says, and takes the mount away."""
    log = source.parent / f"{mountpoint.name}.log"
    options = [*run_options(), *more] if "--log" in more else [*run_options(), "--log", log, *more]
    # A sanitizer's server has an environment of its own; others are to have that of a user.
    done = exclfs(
        "mount",
        source,
        mountpoint,
        *options,
        "--json",
        env=server_environment({"EXCLFS_KEEP_STDERR": ""}) if SANITIZED else None,
    )
    told = json.loads(done.stdout)
    pidfd = os.pidfd_open(told["pid"])
    try:
        yield told
    finally:
        if os.fsencode(mountpoint) in mounts_now():
            subprocess.run(["umount", "-l", str(mountpoint)], check=True)
        wait_for_exit(pidfd)
        os.close(pidfd)


def wait_for_exit(pidfd: int) -> None:
    """Waits until this process has exited; it need not be a child."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000), "a process did not end"


def logged(mounted: Mounted, event: str, *words: str) -> str:
    """The last line of this event that has all these words. It waits for one: a log is written some time after."""
    while True:
        for line in reversed(mounted.log_lines(event)):
            if all(word in line for word in words):
                return line
        time.sleep(0.01)


def is_text(value: object) -> bool:
    """Whether this is how JSON tells a name: a string, or {"bytes": base64}."""
    return isinstance(value, str) or (isinstance(value, dict) and list(value) == ["bytes"])


def must_be_a_process(told: dict[str, Any], *also: str) -> None:
    """The shape of DESIGN section 9: unknown is null, never left out."""
    assert set(told) == {"pid", "comm", "exe", "uid", "user", "own_uid", "container", *also}
    assert isinstance(told["pid"], int | None)
    assert isinstance(told["own_uid"], int | None)
    assert isinstance(told["uid"], int)
    assert all(told[key] is None or is_text(told[key]) for key in ("comm", "exe", "user", "container"))


def must_be_a_hold(told: dict[str, Any]) -> dict[str, Any]:
    """The shape of DESIGN section 9, for `--json`, the socket and the xattrs alike."""
    assert set(told) == {"id", "path", "dev", "inode", "flags", "holder", "reason", "since", "ends"}
    assert isinstance(told["id"], str)
    assert is_text(told["path"])
    assert isinstance(told["dev"], int)
    assert isinstance(told["inode"], int)
    assert told["flags"]
    assert set(told["flags"]) <= set(Flags.__members__)
    must_be_a_process(told["holder"], "name")
    assert isinstance(told["holder"]["name"], str)
    assert isinstance(told["reason"], str)
    assert told["since"].endswith("Z")
    assert datetime.fromisoformat(told["since"]).utcoffset() is not None
    assert told["ends"]
    for end in told["ends"]:
        must_be_an_end(end)
    return told


def must_be_an_end(told: dict[str, Any]) -> None:
    """An end has a pid if it is that of a process, and a time if it is one; and both keys in any case."""
    assert set(told) == {"kind", "pid", "at"}
    assert told["kind"] in {"connection", "process", "time", "unmount", "state file", "close"}
    assert isinstance(told["pid"], int) == (told["kind"] == "process")
    assert (told["at"] is not None) == (told["kind"] == "time")
    if told["at"] is not None:
        assert told["at"].endswith("Z")
        assert datetime.fromisoformat(told["at"]).utcoffset() is not None


def kinds(hold: dict[str, Any]) -> list[str]:
    """The kinds of its ends."""
    return [end["kind"] for end in must_be_a_hold(hold)["ends"]]


def ids(holds: Sequence[dict[str, Any]]) -> list[str]:
    """The ids of these holds, each of which has the right shape."""
    return [must_be_a_hold(hold)["id"] for hold in holds]
