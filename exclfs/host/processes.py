"""Who a process is, from /proc.

The rule that this module owns: what could not be read is None, never a guess, and a process that has vanished is no
error. Everything that is said of one process is read below one open directory of /proc, which stays bound to that
process (proc_pid(5)): a pid that is given to somebody else meanwhile can never mix two of them.
"""

from __future__ import annotations

import errno
import functools
import os
import pwd
import re
import select
from contextlib import suppress
from typing import Final

from exclfs.holds.holder import Process

UNKNOWN_UID: Final = 0xFFFF_FFFF
"""(uid_t) -1, which is nobody's (chown(2)): the uid of a process that had vanished before it could be looked at."""

_CONTAINER: Final = re.compile(
    r"(?:(?P<engine>docker|libpod|cri-containerd|crio|nerdctl)-)?(?P<id>[0-9a-f]{64})(?:\.scope)?",
)
_ENGINES: Final = {"libpod": "podman", "cri-containerd": "containerd", "crio": "cri-o"}
_NSPAWN: Final = re.compile(r"/(?:systemd-nspawn@|machine-)(?P<name>[^/]+)\.(?:service|scope)(?:/|$)")
_LXC: Final = re.compile(r"/lxc(?:\.payload\.|/)(?P<name>[^/]+)")
_UNIT: Final = re.compile(r"(?P<unit>[^/]+\.(?:service|scope))$")
_NOT_A_SERVICE: Final = re.compile(r"^(?:init\.scope|session-\w+\.scope|user@\d+\.service)$")


def describe(pid: int, *, uid: int | None = None) -> Process:
    """The process that a pid or thread id belongs to, as it is now. Never raises.

    Args:
        pid: in this pid namespace; of a process or of any of its threads, as FUSE gives them. 0 is what the kernel
            says for itself and for a process of a foreign pid namespace: nothing is known of that but its uid.
        uid: whom the kernel says it is (SO_PEERCRED, the FUSE request); without it, its effective uid from /proc. Where
            the thread works with another one (its fsuid, credentials(7)) that is told as its own.
    """
    if pid <= 0:
        return _unseen(None, uid)
    try:
        thread = _open(pid)
    except OSError:
        return _unseen(pid, uid)
    try:
        return _describe(thread, pid, uid)
    except OSError:
        return _unseen(pid, uid)
    finally:
        os.close(thread)


def is_alive(process: Process) -> bool:
    """Whether this very process still runs: the same pid and the same start time.

    Only proof of death makes it False: a process of which too little is known counts as alive. One that has exited and
    is not yet waited for is dead. /proc may hide other users' processes (hidepid, proc(5)), so pidfd_open(2) is asked.
    """
    if process.pid is None:
        return True
    try:
        pidfd = os.pidfd_open(process.pid)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except OSError as error:
        # EINVAL: the number is a thread's now, so the process that had it is gone. Anything else proves nothing.
        return error.errno != errno.EINVAL
    try:
        if has_exited(pidfd):
            return False
        start_time = describe(process.pid, uid=process.uid).start_time
        return None in (start_time, process.start_time) or start_time == process.start_time
    finally:
        os.close(pidfd)


@functools.cache
def boot_id() -> str:
    """Which boot this is: what a start time counts from (/proc/sys/kernel/random/boot_id, random(4))."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().decode().strip()


def real_uid(pid: int) -> int | None:
    """Whose process this is, whatever set-user-ID program it runs; None if that cannot be read."""
    with suppress(OSError):
        directory = _open(pid)
        try:
            uids = _status(directory).get("Uid")
        finally:
            os.close(directory)
        return int(uids.split()[0]) if uids else None
    return None


def groups_of(pid: int) -> tuple[int, ...]:
    """The supplementary groups of a process or thread; none if that cannot be read: less right, not more."""
    with suppress(OSError):
        directory = _open(pid)
        try:
            groups = _status(directory).get("Groups", "")
        finally:
            os.close(directory)
        return tuple(int(group) for group in groups.split())
    return ()


# --- pidfds ----------------------------------------------------------------------------------------------------------


def pid_of(pidfd: int) -> int:
    """The pid of a pidfd's process, or the thread id of its thread, in this pid namespace.

    It is -1 of a process that has exited and been waited for, and 0 of one that this pid namespace does not have
    (pidfd_show_fdinfo() in fs/pidfs.c).

    Raises:
        OSError: it is no descriptor (ENOENT) or no pidfd (EBADF).
    """
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as lines:
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"Pid":
                return int(value)
    raise OSError(errno.EBADF, "not a pidfd")


def has_exited(pidfd: int) -> bool:
    """Whether the process has exited, waited for or not. Asks the kernel now (pidfd_open(2), poll)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def pidfd_of(pid: int, start_time: int) -> int | None:
    """A pidfd of the very process that started then; None if it is not there any more. It is the caller's to close.

    A process whose start time cannot be read is not known to be that one.

    Raises:
        OSError: no descriptor is to be had (EMFILE, ENFILE, ENOMEM).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.ENOENT, errno.EINVAL):  # EINVAL: the number is a thread's now
            return None
        raise
    # Read while the pid cannot have been given to another process: until the one that has it has been waited for.
    if describe(pid).start_time == start_time and not has_exited(pidfd):
        return pidfd
    os.close(pidfd)
    return None


# --- /proc/PID -------------------------------------------------------------------------------------------------------


def _unseen(pid: int | None, uid: int | None) -> Process:
    if uid is None:
        return Process(pid, UNKNOWN_UID)
    return Process(pid, uid, user=user_name(uid))


def _open(pid: int) -> int:
    return os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _describe(thread: int, pid: int, uid: int | None) -> Process:
    """The process of a thread: its thread group leader's directory says who that is. Raises OSError if it is gone."""
    status = _status(thread)
    leader = int(status.get("Tgid", pid))
    if leader == pid:
        return _read(thread, thread, leader, status, uid)
    directory = _open(leader)
    try:
        return _read(directory, thread, leader, status, uid)
    finally:
        os.close(directory)


def _read(directory: int, thread: int, pid: int, status: dict[str, str], uid: int | None) -> Process:
    _, effective, _, working = map(int, status["Uid"].split()) if "Uid" in status else (None,) * 4
    unseen = _unseen(pid, effective if uid is None else uid)
    return Process(
        pid=unseen.pid,
        uid=unseen.uid,
        comm=_comm(directory),
        # A leader that has ended, or been killed, before its last thread has no program any more; the thread has.
        exe=_exe(directory) or _exe(thread),
        user=unseen.user,
        container=_container(directory),
        start_time=_start_time(directory),
        own_uid=working if uid is not None and working != uid else None,
    )


def _contents(directory: int, name: str) -> bytes:
    """A small file of the process; empty if it cannot be read or the process is gone (ESRCH)."""
    with suppress(OSError):
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(descriptor, "rb", buffering=0) as file:
            return file.read()
    return b""


def _status(directory: int) -> dict[str, str]:
    fields = {}
    for line in os.fsdecode(_contents(directory, "status")).split("\n"):
        name, _, value = line.partition(":")
        fields[name] = value.strip()
    return fields


def _comm(directory: int) -> str | None:
    # A comm may hold anything but NUL, newlines too (prctl(2), PR_SET_NAME): only the one that the kernel adds goes.
    return os.fsdecode(_contents(directory, "comm").removesuffix(b"\n")) or None


def _exe(directory: int) -> str | None:
    try:
        return os.readlink("exe", dir_fd=directory)
    except OSError:  # a kernel thread, a zombie, or somebody whom we may not trace (ptrace(2))
        return None


def _start_time(directory: int) -> int | None:
    """Clock ticks since boot (proc_pid_stat(5), field 22, counted from behind the comm, which may hold brackets)."""
    fields = _contents(directory, "stat").rpartition(b")")[2].split()
    return int(fields[19]) if len(fields) > 19 else None


@functools.lru_cache(maxsize=4096)
def user_name(uid: int) -> str | None:
    """The name of a user. Looked up once: name services may be slow, and a refusal must not wait for them again."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


def _container(directory: int) -> str | None:
    for line in os.fsdecode(_contents(directory, "cgroup")).split("\n"):
        name = container_of(line.split(":", 2)[-1])
        if name is not None:
            return name
    return None


def container_of(cgroup: str) -> str | None:
    """What a cgroup's path says of who started the process: a container or a systemd unit; None if it says nothing.

    Containers are `docker:0123456789ab` and the like, with the first twelve digits of their id, as their own tools
    print it; `container:…` where the path does not tell the engine. Of nested ones it is the innermost. A unit is its
    name, `cron.service`. Login sessions are neither.
    """
    for component in reversed(cgroup.split("/")):
        container = _CONTAINER.fullmatch(component)
        if container is not None:
            return f"{_engine(container['engine'], cgroup)}:{container['id'][:12]}"
    machine = _NSPAWN.search(cgroup)
    if machine is not None:
        return f"machine:{machine['name']}"
    lxc = _LXC.search(cgroup)
    if lxc is not None:
        return f"lxc:{lxc['name']}"
    unit = _UNIT.search(cgroup)
    if unit is not None and not _NOT_A_SERVICE.match(unit["unit"]):
        return unit["unit"]
    return None


def _engine(prefix: str | None, cgroup: str) -> str:
    if "kubepods" in cgroup:
        return "kubernetes"
    for engine in (prefix, "docker", "libpod"):
        if engine is not None and engine in cgroup:
            return _ENGINES.get(engine, engine)
    return "container"
