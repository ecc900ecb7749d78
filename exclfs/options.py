"""What a mount is asked to be: the options of `-o`, and whether SRC and MNT can be mounted at all.

Reading the options is pure; `check` looks at the host, and changes nothing. Options that only concern mount(8) and
fstab(5) are read and dropped, so that the same line works by hand, from fstab and from a mount unit.
"""

from __future__ import annotations

import enum
import grp
import math
import os
import re
import stat
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from exclfs import durations
from exclfs.holds.limits import MAX_REASON, Limits
from exclfs.holds.mode import Mode, OpenFiles
from exclfs.host import idle, mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FUSE_DEVICE: Final = "/dev/fuse"
FUSE_CONF: Final = "/etc/fuse.conf"
MOST_THREADS: Final = 64
LOG_SERVICES: Final = frozenset({"journal", "syslog", "stderr"})
"""Where a log can go that is no file."""


class LogFormat(enum.StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    """As key=value pairs."""
    JSON = "json"
    """As a JSON object."""


@frozen
class MountOptions:
    """Everything that the server of one mount is told. Goes to it as JSON, so only plain values."""

    source: str
    """The backing tree."""
    mountpoint: str
    """Where it is mounted; equal to `source` for a mount in place."""
    allow_other: bool = False
    """Whether users other than the mount's owner may enter it (mount.fuse3(8))."""
    kernel_flags: tuple[str, ...] = ()
    """Those of KERNEL_FLAGS that are on, sorted: ro, nosuid, nodev, …"""
    fsname: str | None = None
    """The first column of mountinfo; None for `source`."""
    entry_timeout: float = 1.0
    """Seconds for which the kernel may believe a name."""
    attr_timeout: float = 1.0
    """Seconds for which the kernel may believe attributes."""
    negative_timeout: float = 0.0
    """Seconds for which the kernel may believe that a name is not there."""
    ask_always: bool = False
    """Every operation that could be guarded is put to the policy, held or not (for tests and doubters)."""
    gates: bool = False
    """Root and the mount's owner can stop requests, for tests (exclfs.testing)."""
    passthrough: bool = True
    """Let the kernel read and write the backing files itself where it can."""
    idle_poll: bool | None = None
    """Keep processors from halting while requests come one after the other; None: where that costs little."""
    decision_timeout: float = 10.0
    """Seconds after which a removal without a verdict is refused."""
    threads: int | None = None
    """Workers of the mirror; None lets it choose."""
    log: str | None = None
    """journal, syslog, stderr or the path of a file; None lets the server choose."""
    log_format: str = LogFormat.TEXT.value
    """A LogFormat: how its lines are written."""
    mode: str = Mode.ENFORCE.value
    """A Mode: whether holds are enforced."""
    hold_open: str = OpenFiles.NONE.value
    """An OpenFiles: whose open files are held against other processes."""
    state: str | None = None
    """The state file, for holds that survive the server; None for none."""
    holders: int | None = None
    """The gid of the group whose members may place NO_REMOVE on what they can read."""
    max_holds: int = Limits().holds
    """Holds of one user at one time."""
    max_reason: int = Limits().reason
    """Bytes of a reason."""
    max_ttl: float = Limits().ttl
    """Seconds that a user may place or renew a hold for."""
    max_connections: int = Limits().connections
    """Connections of one user to the control socket."""

    @property
    def limits(self) -> Limits:
        """What one user may have."""
        return Limits(holds=self.max_holds, reason=self.max_reason, ttl=self.max_ttl, connections=self.max_connections)

    @property
    def in_place(self) -> bool:
        """Whether the tree is mounted over itself."""
        return self.source == self.mountpoint


class MountError(Exception):
    """The base of every reason for which a mount does not come about."""


class UnknownOption(MountError):
    """`-o` names an option that there is not; `suggestion` is the nearest that there is, or None."""

    def __init__(self, name: str, suggestion: str | None) -> None:
        super().__init__(f"there is no option {name}")
        self.name = name
        self.suggestion = suggestion


class BadOption(MountError):
    """An option of `-o` has a value that it cannot have; `why` says what it takes."""

    def __init__(self, option: str, why: str) -> None:
        super().__init__(f"{option}: {why}")
        self.option = option
        self.why = why


class SourceUnusable(MountError):
    """The tree cannot be mirrored; `why` says what is the matter with it."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class MountpointUnusable(MountError):
    """Nothing can be mounted there; `why` says what is the matter with it."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class Nested(MountError):
    """Of SRC and MNT one lies inside the other, so that the mount would contain itself."""

    def __init__(self, source: str, mountpoint: str, inner: str) -> None:
        outer = mountpoint if inner == source else source
        super().__init__(f"{inner} is inside {outer}")
        self.source = source
        self.mountpoint = mountpoint
        self.inner = inner
        self.outer = outer


class AlreadyMounted(MountError):
    """An exclfs serves this mountpoint already; `source` is what it mirrors."""

    def __init__(self, mountpoint: str, source: str) -> None:
        super().__init__(f"{mountpoint} is an exclfs mount of {source} already")
        self.mountpoint = mountpoint
        self.source = source


class NotAllowed(MountError):
    """This user may not mount so; `why` says what is missing."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class MountFailed(MountError):
    """SRC and MNT were in order and the mount failed all the same; `why` is what the system said."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


# --- reading -o ------------------------------------------------------------------------------------------------------

KERNEL_FLAGS: Final[dict[str, str]] = {
    "ro": "rw",
    "nosuid": "suid",
    "nodev": "dev",
    "noexec": "exec",
    "noatime": "atime",
    "nodiratime": "diratime",
    "relatime": "norelatime",
    "strictatime": "nostrictatime",
    "lazytime": "nolazytime",
    "nosymfollow": "symfollow",
    "sync": "async",
    "dirsync": "nodirsync",
}
"""Each flag that the kernel keeps for a mount (mount(2)), and the word that takes it back."""

UNPRIVILEGED_FLAGS: Final = frozenset({"nosuid", "nodev"})
"""What a mount of an ordinary user always has; fusermount3(1) insists on it."""

INHERITED_FLAGS: Final = frozenset({"ro", "nosuid", "nodev", "noexec"})
"""What a mount in place takes over from the mount below: covering a tree must not loosen it."""

# fmt: off
_OF_MOUNT_8: Final = frozenset({
    "defaults", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup",
    "nofail", "_netdev", "loud", "silent", "mand", "nomand", "iversion", "noiversion", "default_permissions",
})
# fmt: on
_OF_MOUNT_8_WITH_VALUE: Final = frozenset({"user", "comment", "subtype", "uhelper", "helper"})
_NOT_OF_EXCLFS: Final = frozenset({"remount", "bind", "rbind", "move"})
_UNESCAPED_COMMA: Final = re.compile(r"(?<!\\),")


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError
    return value


def _positive_seconds(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise ValueError
    return value


def _thread_count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MOST_THREADS:
        raise ValueError
    return value


def _words(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _reason_size(text: str) -> int:
    value = int(text)
    if not 0 <= value <= MAX_REASON:
        raise ValueError
    return value


def _group(text: str) -> int:
    if text.isdecimal():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError from None


def _mode(text: str) -> str:
    return Mode(text).value


def _log_format(text: str) -> str:
    return LogFormat(text).value


def _open_files(text: str) -> str:
    return OpenFiles(text).value


_VALUES: Final[dict[str, tuple[Callable[[str], float | int | str], str]]] = {
    "entry_timeout": (_seconds, "a number of seconds, 0 or more"),
    "attr_timeout": (_seconds, "a number of seconds, 0 or more"),
    "negative_timeout": (_seconds, "a number of seconds, 0 or more"),
    "decision_timeout": (_positive_seconds, "a number of seconds, more than 0"),
    "threads": (_thread_count, f"a number from 1 to {MOST_THREADS}"),
    "fsname": (_words, "a name"),
    "log": (_words, "journal, syslog, stderr or a file"),
    "log_format": (_log_format, f"one of {', '.join(LogFormat)}"),
    "mode": (_mode, f"one of {', '.join(Mode)}"),
    "hold_open": (_open_files, f"one of {', '.join(OpenFiles)}"),
    "state": (_words, "a file"),
    "holders": (_group, "a group that there is, or its number"),
    "max_holds": (_count, "a number, 0 or more"),
    "max_reason": (_reason_size, f"a number of bytes from 0 to {MAX_REASON}"),
    "max_ttl": (durations.seconds, f"a time: {durations.FORMS}"),
    "max_connections": (_count, "a number, 0 or more"),
}
_SWITCHES: Final[dict[str, tuple[str, bool]]] = {
    "allow_other": ("allow_other", True),
    "noallow_other": ("allow_other", False),
    "ask_always": ("ask_always", True),
    "noask_always": ("ask_always", False),
    "gates": ("gates", True),
    "nogates": ("gates", False),
    "passthrough": ("passthrough", True),
    "nopassthrough": ("passthrough", False),
    "idle_poll": ("idle_poll", True),
    "noidle_poll": ("idle_poll", False),
}


def parse(source: str, mountpoint: str, texts: Sequence[str] = (), *, superuser: bool) -> MountOptions:
    """The options that these values of `-o` ask for; of two that contradict each other the later wins.

    Args:
        source: SRC as typed.
        mountpoint: MNT as typed.
        texts: the values of each `-o`: words separated by commas; a comma in a value is written `\\,`.
        superuser: whether root mounts: then allow_other is the default, otherwise nosuid and nodev are not for choice.

    Raises:
        UnknownOption: there is no such option.
        BadOption: its value is missing, not wanted, or not one that it can have.
    """
    settled: dict[str, float | int | str | bool] = {"allow_other": superuser}
    flags: set[str] = set()
    taken_back = {undo: flag for flag, undo in KERNEL_FLAGS.items()}
    for word in _split(texts):
        name, equals, value = word.partition("=")
        if name in _NOT_OF_EXCLFS:
            raise BadOption(name, "exclfs cannot change a mount; unmount it and mount it again")
        if name.startswith(("x-", "X-")) or (name in _OF_MOUNT_8_WITH_VALUE and equals):
            continue
        if name in _VALUES:
            settled[name] = _value(name, value)
        elif name not in _known():
            raise UnknownOption(name, _nearest(name))
        elif equals:
            raise BadOption(name, "takes no value")
        elif name in _SWITCHES:
            field, on = _SWITCHES[name]
            settled[field] = on
        elif name in KERNEL_FLAGS:
            flags.add(name)
        elif name in taken_back:
            flags.discard(taken_back[name])
    if not superuser:
        flags |= UNPRIVILEGED_FLAGS
    return MountOptions(source, mountpoint, kernel_flags=tuple(sorted(flags)), **settled)  # type: ignore[arg-type]


def _split(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for word in _UNESCAPED_COMMA.split(text):
            if word:
                yield word.replace("\\,", ",")


def _value(name: str, text: str) -> float | int | str:
    convert, takes = _VALUES[name]
    try:
        return convert(text)
    except ValueError:
        raise BadOption(f"{name}={text}", f"takes {takes}") from None


def _known() -> frozenset[str]:
    return frozenset({*_VALUES, *_SWITCHES, *KERNEL_FLAGS, *KERNEL_FLAGS.values(), *_OF_MOUNT_8})


def _nearest(name: str) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, sorted(_known()), n=1)), None)


# --- looking at SRC and MNT ------------------------------------------------------------------------------------------


def check(options: MountOptions) -> MountOptions:
    """The same options, made ready for the server: all paths real and absolute, and in place with what it inherits.

    A stale mountpoint (ENOTCONN) is not cleared here: whoever mounts clears it first.

    Raises:
        SourceUnusable, MountpointUnusable, Nested, AlreadyMounted, NotAllowed, BadOption: see there.
    """
    _fuse_is_there()
    source = _real_source(options.source)
    mountpoint = _real_mountpoint(options.mountpoint)
    covered = mounts.at(mountpoint)
    if covered is not None and covered.fstype == mounts.FSTYPE:
        raise AlreadyMounted(mountpoint, os.fsdecode(covered.source))
    if _inside(source, mountpoint):
        raise Nested(source, mountpoint, source)
    if _inside(mountpoint, source):
        raise Nested(source, mountpoint, mountpoint)
    if options.allow_other and os.geteuid() != 0 and not _user_allow_other():
        raise NotAllowed(f"allow_other needs the line user_allow_other in {FUSE_CONF}")
    if options.idle_poll and not os.access(idle.LATENCY_DEVICE, os.W_OK):
        raise NotAllowed(
            f"idle_poll writes to {idle.LATENCY_DEVICE}, which is not there or not yours: mount as root, or without it"
        )
    settled = evolve(
        options,
        source=source,
        mountpoint=mountpoint,
        log=_real_log(options.log, mountpoint),
        state=None if options.state is None else _real_file("state", options.state, mountpoint),
    )
    if settled.in_place:
        return _with_flags_from_below(settled)
    _nothing_would_be_hidden(mountpoint)
    return settled


def _fuse_is_there() -> None:
    if not os.path.exists(FUSE_DEVICE):
        raise NotAllowed(
            f"there is no {FUSE_DEVICE}: load the module (modprobe fuse), or give the container the device"
        )


def _real_source(path: str) -> str:
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except OSError as error:
        raise SourceUnusable(path, _reason(error)) from None
    if not stat.S_ISDIR(status.st_mode):
        raise SourceUnusable(path, "is not a directory")
    if not os.access(real, os.R_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise SourceUnusable(path, "you cannot read it")
    return real


def _real_mountpoint(path: str) -> str:
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except OSError as error:
        raise MountpointUnusable(path, _reason(error)) from None
    if not stat.S_ISDIR(status.st_mode):
        raise MountpointUnusable(path, "is not a directory")
    return real


def _real_log(log: str | None, mountpoint: str) -> str | None:
    return log if log is None or log in LOG_SERVICES else _real_file("log", log, mountpoint)


def _real_file(option: str, file: str, mountpoint: str) -> str:
    """The path of a file as it is here: the server works in the root directory."""
    path = os.path.join(os.path.realpath(os.path.dirname(file)), os.path.basename(file))
    if _inside(path, mountpoint):
        raise BadOption(f"{option}={file}", "would be inside the mount, and keep it busy")
    return path


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, NotADirectoryError):
        return "is not a directory"
    if isinstance(error, PermissionError):
        return "you cannot enter it"
    return (error.strerror or str(error)).lower()


def _inside(inner: str, outer: str) -> bool:
    return inner != outer and os.path.commonpath([inner, outer]) == outer


def _nothing_would_be_hidden(mountpoint: str) -> None:
    for mount in mounts.mounts():
        below = os.fsdecode(mount.mountpoint)
        if _inside(below, mountpoint):
            raise MountpointUnusable(mountpoint, f"{below} is mounted below it and would be hidden")


def _with_flags_from_below(options: MountOptions) -> MountOptions:
    below = mounts.mount_of(options.source)
    inherited = INHERITED_FLAGS & {*below.options, *below.super_options}
    return evolve(options, kernel_flags=tuple(sorted({*options.kernel_flags, *inherited})))


def _user_allow_other() -> bool:
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as lines:
            return any(line.split("#")[0].strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
