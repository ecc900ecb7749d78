"""`exclfs mount`: looks at what is asked, starts the server, and is done once it serves.

The server is a process of its own, in a session of its own, with nothing of the caller's terminal; what it has to say
before it serves comes back through a pipe. It writes one line of JSON there: {"ready": true, …}, or {"error": "…",
"exit": 6}. What it or its libraries write to standard error until then is shown if it ends without such a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from exclfs import options as mount_options
from exclfs.cli import advice, unmounting
from exclfs.cli.output import say, say_json, warn
from exclfs.host import mounts
from exclfs.options import MountFailed, MountOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVER: Final = "exclfs.mount"
"""The module that serves a mount: `python -m exclfs.mount OPTIONS --ready-fd N`, OPTIONS as one JSON object."""

_MOST_SHOWN: Final = 2000


def mount(
    src: str,
    mnt: str,
    /,
    *,
    options: Annotated[list[str] | None, Parameter(name=["-o", "--options"], metavar="OPTIONS")] = None,
    foreground: Annotated[bool, Parameter(name=["-f", "--foreground"])] = False,
    mode: Annotated[str | None, Parameter(metavar="MODE")] = None,
    hold_open: Annotated[str | None, Parameter(metavar="WHOSE")] = None,
    state: Annotated[str | None, Parameter(metavar="FILE")] = None,
    log: Annotated[str | None, Parameter(metavar="WHERE")] = None,
    log_format: Annotated[str | None, Parameter(metavar="FORMAT")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Mount SRC at MNT, so that what is held in it cannot be removed. SRC may be MNT: in place, over itself.

    Options for -o, separated by commas: allow_other, noallow_other, ro, nosuid, nodev, noexec, noatime and the like of
    mount(8); mode=MODE, hold_open=WHOSE, state=FILE, log=WHERE, log_format=FORMAT; holders=GROUP, and for each user
    max_holds=N, max_reason=BYTES, max_ttl=DUR, max_connections=N; entry_timeout=SECONDS, attr_timeout=SECONDS,
    negative_timeout=SECONDS, decision_timeout=SECONDS, threads=N, fsname=NAME, nopassthrough, idle_poll,
    noidle_poll, ask_always, gates.

    Parameters
    ----------
    src
        The tree to serve.
    mnt
        The directory to serve it at.
    options
        Mount options, as in fstab(5).
    foreground
        Stay in the foreground until the mount ends.
    mode
        enforce (the default), warn or off; `exclfs mode` switches it later.
    hold_open
        Whose open files are held against other processes: own (those that their owner or root has opened), all, or off
        (the default).
    state
        Keep what is held with --persistent in this file, across restarts.
    log
        Where refusals are logged: journal, syslog, stderr or a file. By default the journal, else syslog.
    log_format
        How: text (the default: key=value pairs) or json (an object a line, with the same keys).
    as_json
        Say as JSON what was mounted.
    """
    texts = list(options or ())
    named = {"mode": mode, "hold_open": hold_open, "state": state, "log": log, "log_format": log_format}
    for name, value in named.items():
        if value is not None:
            texts.append(f"{name}=" + value.replace(",", "\\,"))
    settled = validated(src, mnt, texts)
    if foreground:
        return _serve_here(settled, as_json=as_json)
    ready = start_server(settled)
    if as_json:
        say_json(**_mounted(settled, ready))
    return advice.OK


def validated(source: str, mountpoint: str, texts: Sequence[str]) -> MountOptions:
    """The options for the server, once a stale mountpoint has been cleared away.

    Raises:
        MountError: there is nothing to be mounted like this.
    """
    asked = mount_options.parse(source, mountpoint, texts, superuser=os.geteuid() == 0)
    _clear_stale(mountpoint)
    return mount_options.check(asked)


def _clear_stale(mountpoint: str) -> None:
    """Unmounts what a server that was killed has left behind; another filesystem's is left alone."""
    while mounts.is_stale(mountpoint):
        left = mounts.at(mountpoint)
        if left is None or left.fstype != mounts.FSTYPE:
            return
        unmounting.unmount(os.fsdecode(left.mountpoint), lazy=True)
        warn(f"{mountpoint}: cleared away what a server that had ended left mounted")


def _mounted(settled: MountOptions, ready: dict[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in ready.items() if key != "ready"}
    return {"source": settled.source, "mountpoint": settled.mountpoint, **told}


def _serve_here(settled: MountOptions, *, as_json: bool) -> int:
    from exclfs.mount import run

    def tell(ready: dict[str, Any]) -> None:
        if as_json:
            say_json(**_mounted(settled, ready))
        else:
            say(f"{settled.source} is served at {settled.mountpoint}; Ctrl-C unmounts it")
            sys.stdout.flush()

    return run(settled, ready=tell, foreground=True)


def start_server(settled: MountOptions) -> dict[str, Any]:
    """Starts the server and waits until it serves. Returns what it said of itself.

    Raises:
        MountFailed: it ended, or said that it cannot serve.
    """
    import attrs

    reading, writing = os.pipe2(os.O_CLOEXEC)
    with open(reading, encoding="utf-8") as answers, tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", SERVER, json.dumps(attrs.asdict(settled)), "--ready-fd", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=[writing],
                cwd="/",
                start_new_session=True,
                env=_environment(),
            )
        finally:
            os.close(writing)
        try:
            answer = answers.readline()
        except BaseException:
            # Interrupted: what is not served yet is not to appear later.
            process.terminate()
            process.wait()
            raise
        return _understand(answer, process, complaints)


def _environment() -> dict[str, str]:
    """Ours, with a PYTHONPATH that finds this very package from the root directory, too."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(mount_options.__file__)))
    places = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    if os.path.basename(home) not in {"site-packages", "dist-packages"}:
        places.append(home)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)} if places else dict(os.environ)


def _understand(answer: str, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        told: dict[str, Any] = json.loads(answer)
        if told.get("ready"):
            # It goes on without us, so it is no child to be waited for, and no warning that it still runs.
            process.returncode = 0
            return told
        process.wait()
        raise MountFailed(str(told.get("error", "the server does not say why")))
    status = process.wait()
    complaints.seek(0)
    said = " ".join(complaints.read()[-_MOST_SHOWN:].decode(errors="replace").split())
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    raise MountFailed(f"the server {ended} before it served" + (f": {said}" if said else ""))
