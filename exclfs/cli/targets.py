"""What a command is about: the paths and ids that were named, on the command line, in a list, or by a pattern."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from typing import TYPE_CHECKING, Self

from exclfs import durations
from exclfs.cli.advice import SeveralMounts, Usage
from exclfs.client import discovery, sync_client
from exclfs.client.errors import ClientError, NotAMount
from exclfs.holds.errors import NoSuchHold
from exclfs.host import mounts
from exclfs.wire.messages import MAX_OBJECTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from exclfs.client.sync_client import Client


def named(
    words: Sequence[str],
    *,
    listed: str | None,
    null: bool,
    patterns: Iterable[str] = (),
    what: str = "PATH",
    command: str,
) -> tuple[str, ...]:
    """Everything that was named, each once: the words, then the lines of the list, then what the patterns match.

    Args:
        words: as they were typed.
        listed: the file that names more, one a line; "-" is standard input.
        null: whether that list has a NUL after each, not a line break.
        patterns: as of the shell, with ** for directories at any depth; each must match something.
        what: what is missing if nothing is named.
        command: the subcommand, for its usage.

    Raises:
        Usage: nothing is named, or too much, or a pattern matches nothing.
        OSError: the list cannot be read.
    """
    found = [*words, *(_lines(listed, b"\0" if null else b"\n") if listed is not None else ())]
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise Usage(f"--glob {pattern}: nothing matches", command)
        found += matches
    if not found:
        raise Usage(f"--from {listed}: it names nothing" if listed is not None else f"{what} is missing", command)
    several = tuple(dict.fromkeys(found))
    if len(several) > MAX_OBJECTS:
        raise Usage(f"{len(several)} are named, and at most {MAX_OBJECTS} can be at once", command)
    return several


def _lines(file: str, separator: bytes) -> Iterator[str]:
    if file == "-":
        content = sys.stdin.buffer.read()
    else:
        with open(file, "rb") as lines:
            content = lines.read()
    return (os.fsdecode(line) for line in content.split(separator) if line)


def duration(option: str, text: str, command: str) -> float:
    """The seconds that were typed for this option of this subcommand.

    Raises:
        Usage: it is no time.
    """
    try:
        return durations.seconds(text)
    except ValueError as error:
        raise Usage(f"{option}: {error}", command) from None


class Servers:
    """The servers of the mounts that a command turns out to be about: one connection to each."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._clients: dict[str, Client] = {}

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes every connection."""
        self._stack.close()

    def of(self, path: str) -> Client:
        """The server of the mount that the path is in.

        Raises:
            ClientError, OSError: as sync_client.connect().
        """
        server = discovery.find(path)
        if server.socket not in self._clients:
            self._clients[server.socket] = self._stack.enter_context(sync_client.reach(server))
        return self._clients[server.socket]

    def everywhere(self) -> tuple[Client, ...]:
        """Those of every mount in reach."""
        for mount in mounts.exclfs_mounts():
            with contextlib.suppress(ClientError, OSError):
                self.of(os.fsdecode(mount.mountpoint))
        return tuple(self._clients.values())

    def sorted_out(self, words: Iterable[str]) -> tuple[list[tuple[Client, str]], dict[Client, list[str]]]:
        """Tells paths from ids. A word is an id if it has no slash and there is no such file in a mount.

        Returns:
            Each path with its server, and the ids of each server.

        Raises:
            NoSuchHold: no mount has a hold with this id.
            SeveralMounts: more than one has.
            ClientError, OSError: a path cannot be reached, or is in no mount.
        """
        paths: list[tuple[Client, str]] = []
        ids: dict[str, NotAMount | None] = {}
        for word in words:
            if "/" not in word and not os.path.lexists(word):
                ids[word] = None
                continue
            try:
                paths.append((self.of(word), word))
            except NotAMount as error:
                if "/" in word:
                    raise
                ids[word] = error  # it may be a file here that has the name of a hold elsewhere
        return paths, self._by_server(ids)

    def _by_server(self, ids: dict[str, NotAMount | None]) -> dict[Client, list[str]]:
        if not ids:
            return {}
        clients = self.everywhere()
        known: dict[Client, set[str]] = {}
        for client in clients:
            with contextlib.suppress(ClientError):  # a mount that has ended since has no holds
                known[client] = {hold.id for hold in client.holds()}
        found: dict[Client, list[str]] = {}
        for name, no_mount in ids.items():
            those_with_it = [client for client, there in known.items() if name in there]
            if not those_with_it:
                raise no_mount or NoSuchHold(name)
            if len(those_with_it) > 1:
                raise SeveralMounts(name, tuple(client.mountpoint for client in those_with_it))
            found.setdefault(those_with_it[0], []).append(name)
        return found
