"""What one of many processes does in a tree at the same time: python turmoil.py ACTOR SEED ROUNDS TREE BEHIND.

BEHIND is 1 if somebody moves the houses behind the mount as well. The last line is a JSON object: how often each errno
came, and what went wrong.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import exclfs
from exclfs import Flags

if TYPE_CHECKING:
    from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
EXCHANGE = 2
HOUSES = 6
"""Directories that are moved about, each with thousands below."""
STABLE = "stable"
"""Files that begin with this are never removed: they are somewhere, each once."""


class Actor:
    """Somebody who does something over and over."""

    def __init__(self, seed: int, tree: str, behind: bool) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.tree = tree
        self.behind = behind
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []

    def house(self) -> str:
        """Where one of the houses may be."""
        return f"{self.tree}/{self.chance.choice('NESW')}/house{self.chance.randrange(HOUSES)}"

    def attempt(self, act: Callable[[], object]) -> bool:
        """Does it; others may have been faster."""
        try:
            act()
        except OSError as error:
            self.errors[errno.errorcode[error.errno or 0]] += 1
            return False
        return True

    def walk(self) -> None:
        """Looks at everything, and opens some of it."""
        for directory, _, names in os.walk(self.tree):
            for name in names:
                path = f"{directory}/{name}"
                self.attempt(lambda path=path: os.lstat(path))  # type: ignore[misc]
                if self.chance.random() < 0.05:
                    self.attempt(lambda path=path: open(path, "rb").close())  # type: ignore[misc]

    def move(self) -> None:
        """Directories with all that is below them, from one parent to another, or two of them at once."""
        for _ in range(50):
            source, target = self.house(), self.house()
            if self.chance.random() < 0.3:
                self.attempt(lambda source=source, target=target: exchange(source, target))  # type: ignore[misc]
            else:
                target = f"{self.tree}/{self.chance.choice('NESW')}/{os.path.basename(source)}"
                self.attempt(lambda source=source, target=target: os.rename(source, target))  # type: ignore[misc]

    def build(self) -> None:
        """Makes a tree with links in one house, and removes it from wherever that is then."""
        name = f"work{self.seed}-{self.chance.randrange(1 << 30)}"
        house = self.house()
        if not self.attempt(lambda: os.makedirs(f"{house}/{name}/deep/deeper")):
            return
        for number in range(40):
            path = f"{house}/{name}/deep/{number}"
            self.attempt(lambda path=path: open(path, "x").close())  # type: ignore[misc]
            self.attempt(lambda path=path: os.link(path, f"{path}.link"))  # type: ignore[misc]
            if number % 3 == 0:
                self.attempt(lambda path=path: os.unlink(path))  # type: ignore[misc]
            elif number % 3 == 1:
                self.attempt(lambda path=path: os.rename(path, f"{path}.moved"))  # type: ignore[misc]
        for side in "NESW":
            for number in range(HOUSES):
                shutil.rmtree(f"{self.tree}/{side}/house{number}/{name}", ignore_errors=True)

    def hold(self) -> None:
        """Has a room held for a while, and tries to remove what must not be, wherever its house is carried."""
        number = self.chance.randrange(4)
        flags = self.chance.choice([Flags.NO_REMOVE_BELOW, Flags.PIN_PATH, Flags.NO_REMOVE])
        path = f"{self.house()}/room{number}"
        with suppress(exclfs.ClientError, exclfs.HoldError, OSError), ExitStack() as stack:
            room = opened(stack, path)
            client = stack.enter_context(exclfs.connect(self.tree))
            (hold,) = client.hold(path, flags=flags)
            if os.fstat(room).st_ino == hold.inode.ino:
                self.must_refuse(stack, flags, room, f"room{number}")
            client.end([hold])

    def must_refuse(self, stack: ExitStack, flags: Flags, room: int, name: str) -> None:
        """By descriptors: another house may have come to where this one was."""
        house = opened(stack, "..", room)
        attempts = [lambda: os.rename(name, "moved", src_dir_fd=house, dst_dir_fd=house)]
        if flags is Flags.NO_REMOVE_BELOW:
            attempts.append(lambda: os.unlink(f"{STABLE}0", dir_fd=room))
        if flags is Flags.PIN_PATH and not self.behind:
            side, of_house = opened(stack, "..", house), os.path.basename(os.readlink(f"/proc/self/fd/{house}"))
            attempts.append(lambda: os.rename(of_house, "moved", src_dir_fd=side, dst_dir_fd=side))
        for number, act in enumerate(attempts):
            try:
                act()
            except OSError as error:
                self.errors[errno.errorcode[error.errno or 0]] += 1
                if error.errno == errno.EBUSY:
                    continue
            self.wrong.append(f"{flags!r} did not refuse, attempt {number}")

    def stay(self) -> None:
        """Works in a directory whose name is taken away, and in files without names."""
        house = self.house()
        name = f"{house}/stay{self.seed}-{self.chance.randrange(1 << 30)}"
        if not self.attempt(lambda: os.mkdir(name)):
            return
        here = os.open(".", os.O_RDONLY)
        try:
            if self.attempt(lambda: os.chdir(name)):
                with suppress(OSError), open("file", "w+") as file:
                    os.unlink("file")
                    file.write("text")
                    file.flush()
                    if os.fstat(file.fileno()).st_nlink != 0:
                        self.wrong.append("a removed file has links")
                where = os.getcwd()
                self.attempt(lambda: os.rmdir(where))
                self.attempt(lambda: os.listdir("."))
        finally:
            os.fchdir(here)
            os.close(here)
        for side in "NESW":
            for number in range(HOUSES):
                with suppress(OSError):
                    os.rmdir(f"{self.tree}/{side}/house{number}/{os.path.basename(name)}")


def opened(stack: ExitStack, path: str, at: int | None = None) -> int:
    """A directory, as long as the stack."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
    stack.callback(os.close, fd)
    return fd


def exchange(source: str, target: str) -> None:
    """renameat2(2)."""
    if LIBC.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def main() -> None:
    """One actor, from its start to its report."""
    actor, seed, rounds, tree, behind = sys.argv[1:]
    one = Actor(int(seed), tree, behind == "1")
    for _ in range(int(rounds)):
        getattr(one, actor)()
    print(json.dumps({"errors": one.errors, "wrong": one.wrong}))


if __name__ == "__main__":
    main()
