"""Where a directory is, is remembered as it is, however often it is moved while others look it up by a path.

What covers a name is found by going up from its directory, so a place that is remembered wrongly is a hold with
NO_REMOVE_BELOW that does not hold. The kernel orders its own lookups with renames; those of the control socket are
ordered by the mirror (exclfs/mirror/paths.c).
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from exclfs.mirror import ROOT, Mirror

sys.path.insert(0, str(Path(__file__).parents[1] / "mirror"))
from kernel import Op, rig

ROUNDS = 2000


class Looker:
    """Looks one path up again and again, while it is told to."""

    def __init__(self, mirror: Mirror, path: bytes) -> None:
        self._mirror = mirror
        self._path = path
        self._begins = threading.Semaphore(0)
        self._rests = threading.Semaphore(0)
        self._is_to_rest = False
        self._is_to_end = False
        self._looks = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while self._begins.acquire() and not self._is_to_end:
            while not self._is_to_rest:
                with suppress(OSError):
                    self._mirror.release(self._mirror.resolve(self._path, os.geteuid(), os.getegid(), ()))
                self._looks += 1
            self._rests.release()

    def begin(self, looks: int) -> None:
        """Returns when it has looked so often, and goes on."""
        self._looks = 0
        self._is_to_rest = False
        self._begins.release()
        while self._looks < looks:
            time.sleep(0)

    def rest(self) -> None:
        """Returns when it looks no more."""
        self._is_to_rest = True
        self._rests.acquire()

    def end(self) -> None:
        self._is_to_end = True
        self._begins.release()
        self._thread.join()


def test_a_look_never_overtakes_a_rename(tmp_path: Path) -> None:
    for name in ("outside/moving", "inside"):
        (tmp_path / name).mkdir(parents=True)
    with rig(tmp_path) as made:
        outside, inside = (made.kernel.lookup(name).nodeid for name in ("outside", "inside"))
        moving = made.mirror.identify(made.kernel.lookup("moving", outside).nodeid)
        lookers = [Looker(made.mirror, b"outside/moving") for _ in range(2)]
        try:
            for turn in range(ROUNDS):
                there, back = (outside, inside) if turn % 2 == 0 else (inside, outside)
                for looker in lookers:
                    looker.begin(turn % 7)
                body = struct.pack("=QII", back, 0, 0) + b"moving\0moving\0"
                made.kernel.call(Op.RENAME2, there, body)
                for looker in lookers:
                    looker.rest()
                above = [inode.nodeid for inode in made.mirror.ancestors(moving)]
                assert above == [back, ROOT], f"it is remembered where it was before, in round {turn}"
        finally:
            for looker in lookers:
                looker.end()
