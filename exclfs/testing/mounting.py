"""A mount for one test, over a tree of its own, served by a process of its own.

The rule that this module owns: nothing of it is left, whatever the test does. Its programs are killed, its server ends
with the test's process however that ends, and a mount that somebody still uses is cut off. And what a test asks here
goes over the control socket and the tree behind the mount, never through the mount: a program that stands at a gate may
have locked a directory there.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from exclfs import options as mount_options
from exclfs.client.errors import ClientError
from exclfs.gating import Selection, When
from exclfs.holds.events import Refused
from exclfs.host import mounts
from exclfs.testing import timeline
from exclfs.testing.control import Control
from exclfs.testing.faults import Fault
from exclfs.testing.forks import server_of as fork_server_of
from exclfs.testing.gates import CannotBeGated, Gate
from exclfs.testing.programs import Program
from exclfs.testing.server_gates import ServerGate
from exclfs.testing.story import tell
from exclfs.testing.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from exclfs.holds.events import Event
    from exclfs.holds.flags import Flags
    from exclfs.holds.hold import Hold
    from exclfs.testing.forks import Fork
    from exclfs.testing.program_gates import ProgramFault

ENDING: Final = 30.0
"""Seconds that the server has to end in."""

By = Program | subprocess.Popen[Any] | int
"""Who is stopped: a program of the mount, or any other process with all that descends from it."""


class CannotMount(Exception):
    """There is no mount to be had on this machine; `why` says what is missing."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Mount:
    """A mount. As a context manager it closes itself.

    Args:
        directory: where the tree, the mountpoint and the log are made; empty.
        options: fields of exclfs.options.MountOptions. Nothing is cached by default (`entry_timeout` and `attr_timeout`
            are 0) and it has gates. `passthrough=False` where a gate shall see reads and writes.

    Raises:
        CannotMount: this machine has no mounts for this user.
        MountError: of the options.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        self.path: Final = directory / "mnt"
        """Where programs see the tree."""
        self.backing: Final = directory / "tree"
        """The tree behind it."""
        self.log: Final = directory / "log"
        """What the server has logged."""
        for made in (self.path, self.backing):
            made.mkdir()
        self.trail: Final = Trail()
        """What the programs of the mount did, in order."""
        self._begun = (0, 0)
        self._programs: list[Program] = []
        self._gates: list[ServerGate] = []
        self._closed = False
        if (why := obstacle()) is not None:
            raise CannotMount(why)
        settled = mount_options.check(
            attrs.evolve(
                mount_options.parse(str(self.backing), str(self.path), superuser=os.geteuid() == 0),
                **{"log": str(self.log), "gates": True, "entry_timeout": 0.0, "attr_timeout": 0.0, **options},
            )
        )
        self._server, told = _serve(settled, directory / "stderr")
        self.server_pid: Final = self._server.pid
        """The process that serves it."""
        self._control: Final = Control(settled.mountpoint, told["socket"], os.geteuid())

    # --- holds -----------------------------------------------------------------------------------------------------

    def hold(
        self,
        path: str | os.PathLike[str],
        *,
        holder: str | None = None,
        reason: str = "",
        claim: bool = True,
        flags: Flags | None = None,
    ) -> AbstractContextManager[Hold]:
        """Holds a path for as long as the `with` block lasts, as exclfs.hold() does.

        Args:
            path: relative to the mount's root, or absolute in the mount.
            holder: who holds; by default the name of the running program.
            reason: why.
            claim: whether it is exclusive.
            flags: exactly these, instead.

        Raises:
            HoldError: it cannot be held.
        """
        return self._control.hold(self._relative(path), holder=holder, reason=reason, claim=claim, flags=flags)

    def holds(self, path: str | os.PathLike[str] | None = None) -> tuple[Hold, ...]:
        """Every hold that covers a path, or of the whole mount, oldest first."""
        return self._control.holds(None if path is None else self._relative(path))

    @property
    def events(self) -> tuple[Event, ...]:
        """What has happened to holds so far, the oldest first."""
        return self._control.events()

    @property
    def refusals(self) -> tuple[Refused, ...]:
        """What was refused so far, the oldest first."""
        return tuple(event for event in self.events if isinstance(event, Refused))

    # --- programs --------------------------------------------------------------------------------------------------

    def program(self, args: Sequence[str | bytes | os.PathLike[str]], **options: Any) -> Program:
        """A program, not yet running: place gates, and then start() it. It is killed when the mount is closed.

        Args:
            args: the program and its arguments.
            options: those of Program (`operations`, `env`), and of subprocess.Popen.

        Raises:
            NotSupported: this machine cannot stop programs.
        """
        made = Program(args, root=self.path, backing=self.backing, **{"trail": self.trail, **options})
        self._programs.append(made)
        return made

    def run(self, args: Sequence[str | bytes | os.PathLike[str]], **options: Any) -> Program:
        """As program(), and starts it. Gates that it must not miss are placed before: use program() for those."""
        return self.program(args, **options).start()

    # --- gates -----------------------------------------------------------------------------------------------------

    def gate(
        self,
        operations: str | Iterable[str],
        path: str = "**",
        *,
        by: By | None = None,
        when: When | str = When.BEFORE,
        nth: int | None = None,
    ) -> Gate:
        """Stops whoever comes to these operations on paths like this, from now until the `with` block ends.

        A program of this mount is stopped before the system call, while nothing is locked; after it, as everybody else,
        at the request in the mount.

        Args:
            operations: names of exclfs.testing.Operation, one or several.
            path: a glob, relative to the mount's root: `*` matches within one name, `**` any number of names.
            by: whom alone; None: everybody.
            when: "before" it is executed, or "after": it has been, and the program has not been told.
            nth: only so many-th, counted from 1.

        Raises:
            BadSelection: there is no such operation, ….
            CannotBeGated: nobody could ever come there.
        """
        return self._placed(operations, path, by, when, nth)

    def fault(
        self,
        operations: str | Iterable[str],
        path: str = "**",
        *,
        errno: int | None = None,
        delay: float | None = None,
        by: By | None = None,
        nth: int | None = None,
    ) -> Fault | ProgramFault:
        """Has these operations fail with an errno, or wait for `delay` seconds, until the `with` block ends.

        Args:
            operations, path, by, nth: as of gate().
            errno: what they fail with, without being executed.
            delay: seconds; one of the two is given.

        Raises:
            BadSelection, CannotBeGated: as gate().
            ValueError: not one of `errno` and `delay` is given.
        """
        if (errno is None) == (delay is None):
            raise ValueError("a fault has one of errno and delay")
        selection = Selection(operations=operations, pattern=path, pids=_pids(by), nth=nth)
        if isinstance(by, Program) and by.can_be_stopped_at(selection):
            return by.fault(selection, errno=errno, delay=delay or 0.0)
        return Fault(self._at_the_mount(selection, answer=errno, delay=delay))

    def _placed(
        self, operations: str | Iterable[str], path: str, by: By | None, when: When | str, nth: int | None
    ) -> Gate:
        if isinstance(by, Program):
            selection = Selection(operations=operations, pattern=path, when=when, nth=nth)
            if by.can_be_stopped_at(selection):
                return by.gate(selection)
            if not by.started:
                raise CannotBeGated(f"{by} is stopped there at the mount, and has no process id yet: start it first")
        selection = Selection(operations=operations, pattern=path, when=when, pids=_pids(by), nth=nth)
        return self._at_the_mount(selection)

    def _at_the_mount(
        self, selection: Selection, *, answer: int | None = None, delay: float | None = None
    ) -> ServerGate:
        gate = ServerGate(self._control, selection, answer=answer, delay=delay, trail=self.trail)
        self._gates.append(gate)
        return gate

    # --- what happened ---------------------------------------------------------------------------------------------

    def timeline(self, *, width: int = 80, colour: bool = False) -> str:
        """What happened so far, as a diagram: a column for each process. "" if nothing did.

        Args:
            width: columns that it may take.
            colour: whether with escape sequences for colours.
        """
        clock = time.time_ns() - time.monotonic_ns()
        entry, at = self._begun
        try:
            known = self.events
        except ClientError:
            known = ()  # the server is gone, and has taken its past with it
        events = [event for event in known if event.at.timestamp() * 1e9 >= at]
        story = tell(self.trail.since(entry), events, root=str(self.path), clock=clock)
        return timeline.render(story, width=width, colour=colour)

    def begin_story(self) -> None:
        """The timeline begins here: what happened before is left out."""
        self._begun = (self.trail.last, time.time_ns())

    # --- its end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Kills the programs, takes the mount away and waits for its server. Does nothing the second time.

        Raises:
            AssertionError: the server did not end as it should; it is gone all the same.
        """
        if self._closed:
            return
        self._closed = True
        for program in self._programs:
            program.close()
        for gate in self._gates:
            gate.close()
        self._control.close()
        self._server.terminate()
        try:
            status = self._server.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
            raise AssertionError(f"the server did not end; its log is {self.log}") from None
        finally:
            _take_away(str(self.path))
        assert status == 0, f"the server ended with {status}; its log is {self.log}"

    def _relative(self, path: str | os.PathLike[str]) -> str:
        named = os.fspath(path)
        return os.path.relpath(named, self.path) if os.path.isabs(named) else named

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes it."""
        self.close()

    def __repr__(self) -> str:
        """Where it is."""
        return f"Mount({str(self.path)!r})"


def obstacle() -> str | None:
    """Why nothing can be mounted here; None: it can."""
    device = mount_options.FUSE_DEVICE
    if not os.path.exists(device):
        return f"there is no {device}"
    return None if os.access(device, os.R_OK | os.W_OK) else f"{device} cannot be opened"


def _serve(settled: mount_options.MountOptions, stderr: Path) -> tuple[Fork, dict[str, Any]]:
    """The server, once it serves, and what it said of itself."""
    environment = server_environment()
    forks = fork_server_of("exclfs.mount", environment)
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as answers, open(stderr, "wb") as complaints:
        try:
            server = forks.fork(
                [json.dumps(attrs.asdict(settled)), "--parent", str(forks.pid), "--ready-fd"],
                environment=environment,
                stdout=complaints,
                stderr=complaints,
                passed=writing,
                new_session=True,  # Ctrl-C is for the test; the server ends with it
            )
        finally:
            os.close(writing)
        try:
            answer = answers.readline()
        except BaseException:
            server.kill()
            server.wait()
            raise
    told = json.loads(answer) if answer else {}
    if not told.get("ready"):
        server.wait()
        raise CannotMount(told.get("error") or f"the server has ended: {stderr.read_text(errors='replace')[-2000:]}")
    return server, told


def server_environment() -> dict[str, str]:
    """The environment of a server: this one's, with the place from which exclfs was imported."""
    home = str(Path(mount_options.__file__).parents[1])
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    if os.path.basename(home) not in {"site-packages", "dist-packages"}:
        places.append(home)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, places))}
    return environment if places else dict(os.environ)


def _pids(by: By | None) -> frozenset[int] | None:
    if by is None or (isinstance(by, Program) and not by.started):
        return None
    return frozenset({by if isinstance(by, int) else by.pid})


def _take_away(mountpoint: str) -> None:
    """The mount that a server has left which was killed. Whoever is still in it gets ENOTCONN."""
    if mounts.at(mountpoint) is None:
        return
    from exclfs.mirror import channel

    with suppress(OSError):  # somebody else was faster
        channel.detach(mountpoint)
