"""System calls of the server for each operation, exclfs beside its peers: counts that no noise touches.

    python benchmarks/syscalls.py [--only WORD] [--peer NAME]… [--markdown]

strace counts what every thread of a server calls while a row is done; divided by the number of operations. The count of
requests is that of read(2) on /dev/fuse. strace must be able to attach (root, no seccomp filter).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final

from backings import tmpfs
from peers import available, quiet
from rows import METADATA

if TYPE_CHECKING:
    from peers import Peer
    from rows import Row

COUNT: Final = 200
LINE: Final = re.compile(
    r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(?P<calls>\d+)(?:\s+(?P<failed>\d+))?\s+(?P<name>\w+)$", re.MULTILINE
)
WAITING: Final = {"futex", "epoll_wait", "restart_syscall", "poll", "clock_nanosleep"}
"""Not counted: how often a thread had to wait is the machine's doing."""


def counted(pid: int, report: str, row: Row, behind: str, seen: str) -> dict[str, float]:
    """Calls for each operation, by name; the most frequent first."""
    with subprocess.Popen(["strace", "-c", "-f", "-p", str(pid), "-o", report], stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        threads = len(os.listdir(f"/proc/{pid}/task"))
        while threads > 0 and (line := tracer.stderr.readline()):
            threads -= line.count(b"attached")
            if b"threads" in line:
                break
        time.sleep(0.2)
        row.measure(behind, seen)
        quiet([pid])
        tracer.send_signal(signal.SIGINT)
    with open(report) as file:
        calls = {line["name"]: done(line) / row.count for line in LINE.finditer(file.read())}
    calls.pop("total", None)
    kept = {name: number for name, number in calls.items() if name not in WAITING and number >= 0.05}
    return dict(sorted(kept.items(), key=lambda call: -call[1]))


def done(line: re.Match[str]) -> int:
    """Of read(2) those that gave something: how often a server asks in vain is the machine's doing, too."""
    return int(line["calls"]) - (int(line["failed"] or 0) if line["name"] == "read" else 0)


def told(calls: dict[str, float]) -> str:
    """The sum, then each."""
    each = ", ".join(name if round(number, 1) == 1 else f"{number:.2g} {name}" for name, number in calls.items())
    return f"{sum(calls.values()):.1f}: {each}"


def main() -> None:
    """Counts, and prints a line for each row and server."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--peer", action="append", help="only these; default: exclfs, bindfs and both passthrough_*")
    parser.add_argument("--markdown", action="store_true", help="a table of the sums")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(5, "benchmarks/syscalls.py: strace of a server needs root\n")
    wanted = arguments.peer or ["exclfs", "bindfs", "passthrough_ll", "passthrough_hp"]
    peers = [peer for peer in available() if peer.name in wanted]
    rows = [row for row in METADATA if arguments.only in row.name]
    found: dict[str, dict[str, dict[str, float]]] = {row.name: {} for row in rows}
    with tempfile.TemporaryDirectory(prefix="exclfs-bench-") as workspace, tmpfs(workspace) as source:
        for number, peer in enumerate(peers):
            of_peer(peer, rows, source, os.path.join(workspace, f"mnt{number}"), found)
    for row in rows:
        if arguments.markdown:
            print(f"| {row.name} | " + " | ".join(f"{sum(found[row.name][p.name].values()):.1f}" for p in peers) + " |")
            continue
        print(row.name)
        for peer in peers:
            print(f"    {peer.name:16} {told(found[row.name][peer.name])}")


def of_peer(
    peer: Peer, rows: list[Row], source: str, mountpoint: str, found: dict[str, dict[str, dict[str, float]]]
) -> None:
    """Counts every row with this one mounted."""
    with peer.mounted(source, mountpoint) as pid:
        if pid is None:
            sys.exit(f"benchmarks/syscalls.py: no server of {peer.name}")
        for place, row in enumerate(rows):
            row = row.shorter(row.count // COUNT)
            name = f"{peer.name} {place}"
            seen = os.path.join(mountpoint, name)
            found[row.name][peer.name] = counted(pid, mountpoint + ".calls", row, os.path.join(source, name), seen)


if __name__ == "__main__":
    main()
