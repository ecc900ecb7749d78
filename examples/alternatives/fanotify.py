"""fanotify as a guard against removal: every permission event there is, each answered with "no", and a removal.

Run it as root, on Linux 5.9 or later::

    sudo python3 examples/alternatives/fanotify.py

The numbers are those of <linux/fanotify.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import subprocess
import tempfile
import threading
from pathlib import Path

FAN_CLASS_NOTIF = 0x0
FAN_CLASS_CONTENT = 0x4
FAN_REPORT_DFID_NAME = 0x400 | 0x800
FAN_CLOEXEC = 0x1
FAN_MARK_ADD = 0x1
FAN_DELETE = 0x200
FAN_DELETE_SELF = 0x400
FAN_MOVED_FROM = 0x40
FAN_OPEN_PERM = 0x10000
FAN_ACCESS_PERM = 0x20000
FAN_OPEN_EXEC_PERM = 0x40000
FAN_EVENT_ON_CHILD = 0x08000000
FAN_ONDIR = 0x40000000
FAN_DENY = 2
AT_FDCWD = -100
METADATA = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata: length, version, …, mask, fd, pid

PERMISSION_EVENTS = {"OPEN_PERM": FAN_OPEN_PERM, "ACCESS_PERM": FAN_ACCESS_PERM, "OPEN_EXEC_PERM": FAN_OPEN_EXEC_PERM}
REMOVAL_EVENTS = {"DELETE": FAN_DELETE, "DELETE_SELF": FAN_DELETE_SELF, "MOVED_FROM": FAN_MOVED_FROM}

libc = ctypes.CDLL(None, use_errno=True)
libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]


def checked(result: int) -> int:
    """The result of a call of the C library; raises OSError with its errno where it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def group(flags: int) -> int:
    """A new fanotify group."""
    return checked(libc.fanotify_init(flags | FAN_CLOEXEC, os.O_RDONLY))


def mark(fd: int, mask: int, path: Path, flags: int = 0) -> None:
    """Watch `path`."""
    checked(libc.fanotify_mark(fd, FAN_MARK_ADD | flags, mask, AT_FDCWD, os.fsencode(path)))


def events(fd: int) -> list[tuple[int, int, int]]:
    """What the group has to say now: (mask, descriptor, pid) each."""
    buffer, found, offset = os.read(fd, 65536), [], 0
    while offset < len(buffer):
        length, _, _, _, mask, descriptor, pid = METADATA.unpack_from(buffer, offset)
        found.append((mask, descriptor, pid))
        offset += length
    return found


def deny_everything(fd: int, stop: int) -> None:
    """Answer every permission question with "no", except those of this process, until `stop` is readable."""
    while True:
        ready, _, _ = select.select([fd, stop], [], [])
        if stop in ready:
            return
        for mask, descriptor, pid in events(fd):
            names = [name for name, bit in PERMISSION_EVENTS.items() if mask & bit]
            print(f"    listener: pid {pid} asks for {', '.join(names)}: FAN_DENY")
            os.write(fd, struct.pack("=iI", descriptor, FAN_DENY))
            os.close(descriptor)


def run(*command: str) -> None:
    """Run a command, and show what it says."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (result.stderr or result.stdout).strip() or "(nothing)"
    print(f"  $ {' '.join(command)}\n    {said} [exit {result.returncode}]")


def ask_for_a_removal_permission(directory: Path) -> None:
    """Show that a group that may answer cannot watch removals, and that one that can watch them may not answer."""
    for name, bit in REMOVAL_EVENTS.items():
        fd = group(FAN_CLASS_CONTENT)
        try:
            mark(fd, bit | FAN_ONDIR | FAN_EVENT_ON_CHILD, directory)
        except OSError as error:
            print(f"  FAN_{name} in a group of FAN_CLASS_CONTENT: {errno.errorcode[error.errno or 0]}")
        else:
            print(f"  FAN_{name} in a group of FAN_CLASS_CONTENT: accepted")
        os.close(fd)
    try:
        os.close(group(FAN_CLASS_CONTENT | FAN_REPORT_DFID_NAME))
    except OSError as error:
        print(f"  a group of FAN_CLASS_CONTENT with FAN_REPORT_DFID_NAME: {errno.errorcode[error.errno or 0]}")
    else:
        print("  a group of FAN_CLASS_CONTENT with FAN_REPORT_DFID_NAME: accepted")


def deny_and_remove(directory: Path) -> None:
    """Deny every permission event below `directory`, and remove from it all the same."""
    fd = group(FAN_CLASS_CONTENT)
    mark(fd, sum(PERMISSION_EVENTS.values()) | FAN_ONDIR | FAN_EVENT_ON_CHILD, directory)
    stop_reader, stop_writer = os.pipe()
    listener = threading.Thread(target=deny_everything, args=(fd, stop_reader))
    listener.start()
    try:
        run("cat", str(directory / "file"))
        run("unlink", str(directory / "file"))
        run("rmdir", str(directory / "held"))
    finally:
        os.write(stop_writer, b".")
        listener.join()
        for descriptor in (fd, stop_reader, stop_writer):
            os.close(descriptor)


def be_told_of_a_removal(directory: Path) -> None:
    """Show what there is: a notification, once the file is gone."""
    fd = group(FAN_CLASS_NOTIF | FAN_REPORT_DFID_NAME)
    mark(fd, FAN_DELETE | FAN_ONDIR, directory)
    subprocess.run(["unlink", str(directory / "other")], check=True)
    for mask, _, pid in events(fd):
        exists = (directory / "other").exists()
        print(f"  event {mask:#x} (FAN_DELETE is {FAN_DELETE:#x}) of pid {pid}; the file exists: {exists}")
    os.close(fd)


def main() -> None:
    """Set the scene and play it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "file").write_text("data\n")
        (directory / "other").write_text("data\n")
        (directory / "held").mkdir()
        print("Ask to be asked before a removal:")
        ask_for_a_removal_permission(directory)
        print("Deny everything that one can be asked about, and remove:")
        deny_and_remove(directory)
        print("Be told afterwards:")
        be_told_of_a_removal(directory)


if __name__ == "__main__":
    main()
