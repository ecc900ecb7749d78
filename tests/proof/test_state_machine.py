"""Whatever is done in whatever order: the mirror, the keeper and the registry, all real, do what a plain tree with a
plain list of holds says (tree_model.py).

The test is kernel and pyfuse3 at once (tests/mirror/kernel.py): it sends the mirror requests as the kernel would, takes
the questions that the mirror asks, and has the real handlers of the policy answer them. So nothing is mounted.

EXCLFS_PROOF_EXAMPLES is how many runs there are; `make stress` has many.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pyfuse3
import pytest
import trio
from attrs import define
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tree_model import CLAIMS, EXCHANGE, NOREPLACE, WHITEOUT, Held, Holds, Node, Tree, Victim

from exclfs.fuse.operations import Policy
from exclfs.holds.errors import BadHold, Gone, NoSuchHold, NotPermitted
from exclfs.holds.errors import Held as IsHeld
from exclfs.holds.events import Event, Refused
from exclfs.holds.flags import DEFAULT, OF_DIRECTORIES, Flags, Operation
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, Unmount
from exclfs.holds.mode import Mode
from exclfs.holds.registry import Registry
from exclfs.keeper import Keeper
from exclfs.mirror import ROOT
from harness import variant

sys.path.insert(0, str(Path(__file__).parents[1] / "mirror"))
from kernel import ENTRY, PATIENCE, Op, rig

if TYPE_CHECKING:
    from collections.abc import Callable

    from kernel import Question

    from exclfs.holds.hold import Hold, Inode

EXAMPLES: Final = int(os.environ.get("EXCLFS_PROOF_EXAMPLES", "40"))
WIDE: Final = 0.04
WINDOW: Final = float(os.environ.get("EXCLFS_TEST_WINDOW", "0"))
"""Seconds between test and system call of the mirror that is tested, if it was built so."""
MOUNTPOINT: Final = "/mnt"
REMOVER_PID: Final = 7
REMOVER: Final = Process(REMOVER_PID, 1000, "remover", start_time=7)
STRANGER: Final = Process(8, 1001, "stranger", start_time=8)
HOLDERS: Final = ("Anna", "Otto", "Eve")

NAMES = st.sampled_from("abc")
WHICH = st.integers(0, 60)
"""Which of what there is, taken modulo its number."""
FLAGS = st.one_of(
    st.just(DEFAULT),
    st.sampled_from(list(Flags)),
    st.sets(st.sampled_from(list(Flags)), min_size=1).map(lambda some: Flags(sum(flag.value for flag in some))),
)
RENAME_FLAGS = st.sampled_from((0, 0, NOREPLACE, EXCHANGE, WHITEOUT, NOREPLACE | WHITEOUT))


@define
class Line:
    """A connection that a holder has."""

    number: int
    alive: bool = True

    def is_alive(self) -> bool:
        return self.alive


def errno_of(work: Callable[[], object]) -> int:
    """What it fails with, 0 if it does not."""
    try:
        work()
    except OSError as error:
        return error.errno or 0
    return 0


class ExclfsAgainstAPlainTree(RuleBasedStateMachine):
    ask_always = False

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.place = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="exclfs-proof-")))
        self.rig = self.stack.enter_context(rig(self.place, ask_always=self.ask_always))
        self.mirror = self.rig.mirror
        self.keeper = Keeper(Registry(), self.mirror, mountpoint=MOUNTPOINT)
        self.policy = Policy(
            keeper=self.keeper,
            xattrs=None,  # type: ignore[arg-type] # nobody asks about any
            mirror=self.mirror,
            mountpoint=MOUNTPOINT,
            describe=lambda pid, uid: REMOVER,
        )
        self.events: list[Event] = []
        self.keeper.subscribe(self.events.append)
        self.tree = Tree()
        self.holds = Holds(self.tree)
        self.lookups: Counter[int] = Counter()
        self.gone: list[Inode] = []
        """Inodes whose last link has been removed, and which the kernel still knows."""
        self.lines: dict[str, Line] = {}
        self.connections = 0

    def teardown(self) -> None:
        self.stack.close()

    # --- the kernel's part, and pyfuse3's -----------------------------------------------------------------------------

    def nodeid(self, path: str) -> int:
        """Looks a path up, name by name, as the kernel does."""
        found = ROOT
        for name in path.split("/") if path else ():
            found = self.rig.kernel.lookup(name, found).nodeid
            self.lookups[found] += 1
        return found

    def ask(self, op: Op, directory: str, body: bytes) -> bytes:
        """Sends a request about a name in a directory, answers what is asked about it, and gives the reply."""
        return self.reply(self.rig.kernel.ask(op, self.nodeid(directory), body, pid=REMOVER_PID))

    def reply(self, unique: int) -> bytes:
        """Answers every question until there is a reply, and gives that."""
        while self.is_asked():
            question = self.rig.policy.question()
            self.rig.policy.answer(question, self.verdict(question))
        return self.rig.kernel.reply(unique)

    def is_asked(self) -> bool:
        """Waits for a question or a reply; whether it is a question."""
        channel = self.rig.policy.channel
        ready, _, _ = select.select([self.rig.device, channel], [], [], PATIENCE)
        assert ready, "neither a reply nor a question"
        return channel in ready

    def verdict(self, question: Question) -> int:
        """What pyfuse3 does: takes the packet apart, and calls the handler. The errno, 0 for PROCEED."""
        context = SimpleNamespace(pid=REMOVER_PID, uid=REMOVER.uid, gid=0)
        handlers = {Op.UNLINK: self.policy.unlink, Op.RMDIR: self.policy.rmdir, Op.RENAME2: self.policy.rename}
        handler: Callable[..., Any] = handlers[Op(question.op)]
        arguments: tuple[object, ...] = (question.nodeid, question.body.removesuffix(b"\0"))
        if question.op == Op.RENAME2:
            target, flags = struct.unpack_from("=QI4x", question.body)
            old, new = question.body[16:].removesuffix(b"\0").split(b"\0")
            arguments = (question.nodeid, old, target, new, flags)
        try:
            trio.run(handler, *arguments, context)
        except pyfuse3.FUSEError as error:
            return int(error.errno)
        return 0

    def entry(self, body: bytes) -> None:
        """A reply with an inode, which the kernel then knows."""
        nodeid, *_ = ENTRY.unpack_from(body)
        self.lookups[nodeid] += 1

    # --- what is the same on both sides -------------------------------------------------------------------------------

    def same(self, wanted: Callable[[], None], done: Callable[[], object]) -> bool:
        """Whether it succeeds: in the model and for real, or in neither, with the same errno."""
        expected, happened = errno_of(wanted), errno_of(done)
        assert (happened and errno.errorcode[happened]) == (expected and errno.errorcode[expected])
        return expected == 0

    def directory(self, which: int) -> tuple[str, Node]:
        directories = self.tree.directories()
        return directories[which % len(directories)]

    def name(self, which: int) -> tuple[str, Node]:
        """Any name that there is, or the root."""
        names = [("", self.tree.root), *((path, node) for path, _, node in self.tree.walk())]
        return names[which % len(names)]

    # --- making names -------------------------------------------------------------------------------------------------

    @initialize()
    def begin_with_a_few(self) -> None:
        for at, name in ((0, "a"), (0, "b"), (1, "c")):
            self.make(at, name, "directory")
        for at, name in ((0, "c"), (1, "a"), (2, "b"), (3, "a")):
            self.make(at, name, "file")

    @rule(at=WHICH, name=NAMES, kind=st.sampled_from(("file", "directory")))
    def make(self, at: int, name: str, kind: str) -> None:
        path, directory = self.directory(at)
        if kind == "file":
            op, fixed = Op.MKNOD, struct.pack("=IIII", stat.S_IFREG | 0o644, 0, 0, 0)
        else:
            op, fixed = Op.MKDIR, struct.pack("=II", 0o755, 0)
        node = Node(kind)
        if self.same(
            lambda: self.tree.add(directory, name, node),
            lambda: self.entry(self.ask(op, path, fixed + name.encode() + b"\0")),
        ):
            node.ino = (self.place / path / name).lstat().st_ino

    @rule(which=WHICH, at=WHICH, name=NAMES)
    def link(self, which: int, at: int, name: str) -> None:
        files = [(path, node) for path, _, node in self.tree.walk() if node.kind == "file"]
        if not files:
            return
        source, node = files[which % len(files)]
        path, directory = self.directory(at)
        body = struct.pack("=Q", self.nodeid(source)) + name.encode() + b"\0"
        self.same(lambda: self.tree.add(directory, name, node), lambda: self.entry(self.ask(Op.LINK, path, body)))

    # --- removing names -----------------------------------------------------------------------------------------------

    @rule(at=WHICH, name=NAMES, op=st.sampled_from((Op.UNLINK, Op.RMDIR)))
    def remove(self, at: int, name: str, op: Op) -> None:
        path, directory = self.directory(at)
        operation = Operation.UNLINK if op == Op.UNLINK else Operation.RMDIR
        self.removal(
            lambda: self.tree.removal(operation, directory, name),
            lambda: (self.tree.unlink if op == Op.UNLINK else self.tree.rmdir)(directory, name),
            lambda: self.ask(op, path, name.encode() + b"\0"),
        )

    @rule(at=WHICH, old=NAMES, to=WHICH, new=NAMES, flags=RENAME_FLAGS)
    def rename(self, at: int, old: str, to: int, new: str, flags: int) -> None:
        old_path, old_directory = self.directory(at)
        new_path, new_directory = self.directory(to)
        self.removal(
            lambda: self.tree.renaming(old_directory, old, new_directory, new, flags),
            lambda: self.tree.rename(old_directory, old, new_directory, new, flags),
            lambda: self.ask(
                Op.RENAME2,
                old_path,
                struct.pack("=QII", self.nodeid(new_path), flags, 0) + f"{old}\0{new}\0".encode(),
            ),
        )

    def removal(
        self, meets: Callable[[], list[Victim]], happens: Callable[[], None], asked: Callable[[], object]
    ) -> None:
        before = {node.ino: node for _, _, node in self.tree.walk()}
        known = {node.ino: self.mirror.identify(self.nodeid(path)) for path, _, node in self.tree.walk()}
        refusing: list[Held] = []

        def wanted() -> None:
            refusing.extend(held for victim in meets() for held in self.holds.refusing(victim))
            if refusing and self.keeper.mode is Mode.ENFORCE:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            happens()

        self.events.clear()
        happened = self.same(wanted, asked)
        told = [event for event in self.events if isinstance(event, Refused)]
        if self.keeper.mode is Mode.OFF:
            assert not told
        else:
            assert {hold.id for event in told for hold in event.holds} == {held.id for held in refusing}
            assert all(event.requester == REMOVER for event in told)
            assert all(event.enforced == (self.keeper.mode is Mode.ENFORCE) for event in told)
        left = {node.ino for _, _, node in self.tree.walk()}
        self.gone += [known[ino] for ino in before if ino not in left]
        for path, _, node in self.tree.walk():
            if node.kind == "whiteout" and not node.ino:
                node.ino = (self.place / path).lstat().st_ino
        if self.keeper.mode is not Mode.ENFORCE:
            self.sweep()
        if happened:
            self.try_everything()

    @rule()
    def try_everything(self) -> None:
        """Every name is removed as what it is not, and moved to where something is: refused or not, nothing changes."""
        names = list(self.tree.walk()) if not WINDOW else []  # where each would take its time
        for number, (path, directory, node) in enumerate(names):
            above, _, name = path.rpartition("/")
            op, operation, error = Op.RMDIR, Operation.RMDIR, errno.ENOTDIR
            if node.is_directory:
                op, operation, error = Op.UNLINK, Operation.UNLINK, errno.EISDIR
            self.try_in_vain(
                [Victim(operation, node, directory)], error, partial(self.ask, op, above, f"{name}\0".encode())
            )

            there, there_directory, there_node = names[number - 1]
            if there_node is node:
                continue
            there_above, _, there_name = there.rpartition("/")
            body = struct.pack("=QII", self.nodeid(there_above), NOREPLACE, 0) + f"{name}\0{there_name}\0".encode()
            victims = [
                Victim(Operation.RENAME, node, directory),
                Victim(Operation.REPLACE, there_node, there_directory),
            ]
            self.try_in_vain(victims, errno.EEXIST, partial(self.ask, Op.RENAME2, above, body))

    def try_in_vain(self, victims: list[Victim], error: int, asked: Callable[[], object]) -> None:
        """Does what is refused if the model says so, and fails otherwise."""
        is_refused = self.keeper.mode is Mode.ENFORCE and any(self.holds.refusing(victim) for victim in victims)
        assert errno.errorcode[errno_of(asked)] == errno.errorcode[errno.EBUSY if is_refused else error]

    # --- holding ------------------------------------------------------------------------------------------------------

    def process(self, holder: str) -> Process:
        return Process(100 + HOLDERS.index(holder), 0, holder, start_time=HOLDERS.index(holder))

    def line(self, holder: str) -> Line:
        if holder not in self.lines:
            self.connections += 1
            self.lines[holder] = Line(self.connections)
            self.keeper.present[Connection(self.connections)] = self.lines[holder]
        return self.lines[holder]

    def trylock(self, objects: list[tuple[Inode, str]], flags: Flags, holder: str, connected: bool) -> tuple[Hold, ...]:
        return trio.run(
            partial(
                self.keeper.trylock,
                [(inode, os.path.join(MOUNTPOINT, path)) for inode, path in objects],
                flags=flags,
                holder=Holder(holder, self.process(holder)),
                reason="",
                ends=(Connection(self.line(holder).number),) if connected else (Unmount(),),
                requester=self.process(holder),
            )
        )

    @rule(
        which=st.lists(WHICH, min_size=1, max_size=2), flags=FLAGS, holder=st.sampled_from(HOLDERS), bound=st.booleans()
    )
    def hold(self, which: list[int], flags: Flags, holder: str, bound: bool) -> None:
        named = [self.name(number) for number in which]
        if self.is_ambiguous(flags, [node for _, node in named]):
            return
        wanted, in_the_way = self.wanted(named, flags, holder, bound)
        inodes = [self.mirror.resolve(path.encode(), os.geteuid(), os.getegid(), ()) for path, _ in named]
        objects = [(inode, path) for inode, (path, _) in zip(inodes, named, strict=True)]
        try:
            if flags & OF_DIRECTORIES and not all(node.is_directory for _, node in named):
                with pytest.raises(BadHold, match="is not a directory"):
                    self.trylock(objects, flags, holder, bound)
            elif flags & CLAIMS and len({node for _, node in named}) < len(named):
                with pytest.raises(BadHold, match="named twice"):
                    self.trylock(objects, flags, holder, bound)
            elif in_the_way:
                with pytest.raises(IsHeld) as caught:
                    self.trylock(objects, flags, holder, bound)
                assert caught.value.hold.id in {held.id for held in in_the_way}
            else:
                self.events.clear()
                placed = self.trylock(objects, flags, holder, bound)
                assert [hold.flags for hold in placed] == [held.flags for held in wanted]
                for held, hold in zip(wanted, placed, strict=True):
                    held.id = hold.id
                self.holds.all += wanted
                self.try_everything()
        finally:
            for inode in inodes:
                self.mirror.release(inode)

    def is_ambiguous(self, flags: Flags, nodes: list[Node]) -> bool:
        """Whether a file with names in several directories is to be said to lie below one: either answer is right."""
        claimed = [held.node for held in self.holds.all if held.flags & CLAIMS]
        reaching = any(Flags.EXCL_SUBTREE in held.flags for held in self.holds.all) or Flags.EXCL_SUBTREE in flags
        return bool(flags & CLAIMS) and reaching and any(len(self.tree.links(node)) > 1 for node in [*claimed, *nodes])

    def wanted(
        self, named: list[tuple[str, Node]], flags: Flags, holder: str, bound: bool
    ) -> tuple[list[Held], list[Held]]:
        """The holds that should be placed, and the claims that keep one of them out."""
        placed: list[Held] = []
        in_the_way: list[Held] = []
        for path, node in named:
            conflicts = self.holds.in_the_way(path, node, flags, holder)
            given = flags & ~CLAIMS if conflicts else flags
            pinned = self.tree.above(path) if path and Flags.PIN_PATH in flags else []
            connection = self.line(holder).number if bound else None
            placed.append(Held("", node, given, holder, connection, pinned))
            in_the_way += conflicts
        return placed, in_the_way if self.keeper.mode is Mode.ENFORCE else []

    @precondition(lambda self: self.holds.all)
    @rule(which=st.lists(WHICH, min_size=1, max_size=3))
    def unlock(self, which: list[int]) -> None:
        ending = {(held := self.holds.all[number % len(self.holds.all)]).id: held for number in which}
        with pytest.raises(NotPermitted):
            trio.run(partial(self.keeper.unlock, list(ending), requester=STRANGER))
        ended = trio.run(partial(self.keeper.unlock, list(ending), requester=self.process(HOLDERS[0]), break_it=True))
        assert [hold.id for hold in ended] == list(ending)
        self.holds.all = [held for held in self.holds.all if held.id not in ending]
        with pytest.raises(NoSuchHold):
            trio.run(partial(self.keeper.unlock, list(ending), requester=self.process(HOLDERS[0]), break_it=True))

    @precondition(lambda self: self.lines)
    @rule(which=WHICH, heard=st.booleans())
    def die(self, which: int, heard: bool) -> None:
        """From now on nothing is refused because of this holder, whether anybody has heard of its death or not."""
        holder = list(self.lines)[which % len(self.lines)]
        line = self.lines.pop(holder)
        line.alive = False
        self.holds.end_of(line.number)
        if heard:
            del self.keeper.present[Connection(line.number)]
            trio.run(self.keeper.end, Connection(line.number))

    @precondition(lambda self: self.gone)
    @rule(which=WHICH, flags=FLAGS)
    def hold_what_has_gone(self, which: int, flags: Flags) -> None:
        """It fails, in every mode and whoever claims all of where it was seen last."""
        inode = self.gone[which % len(self.gone)]
        before = len(self.keeper.registry)
        with pytest.raises((Gone, BadHold)):
            self.trylock([(inode, "gone")], flags, HOLDERS[0], connected=False)
        assert len(self.keeper.registry) <= before

    @precondition(lambda self: self.keeper.mode is Mode.ENFORCE)
    @rule(which=WHICH, holder=st.sampled_from(HOLDERS), below=st.booleans(), verdict_first=st.booleans())
    def contest(self, which: int, holder: str, below: bool, verdict_first: bool) -> None:
        """A hold that is placed while a removal of the last link is under way: one of the two wins.

        With `below` it is a hold on the names of the directory: then the removal may have been done before.
        """
        last = [found for found in self.tree.walk() if len(self.tree.links(found[2])) == 1 and not found[2].entries]
        if not last:
            return
        path, directory, node = last[which % len(last)]
        operation = Operation.RMDIR if node.is_directory else Operation.UNLINK
        refusing = self.holds.refusing(Victim(operation, node, directory))
        above, _, name = path.rpartition("/")
        held_path, held_node = (above, directory) if below else (path, node)
        inode, victim = (
            self.mirror.resolve(named.encode(), os.geteuid(), os.getegid(), ()) for named in (held_path, path)
        )
        self.nodeid(path)
        unique = self.begin_removal(operation, path)
        question = self.rig.policy.question() if self.is_under_way() else None
        said = self.verdict(question) if question is not None and verdict_first else None
        flags = Flags.NO_REMOVE_BELOW if below else Flags.NO_REMOVE
        placed: tuple[Hold, ...] = ()
        with suppress(Gone):
            placed = self.trylock([(inode, held_path)], flags, holder, connected=False)
        was_there = os.path.lexists(self.place / path)
        if question is not None:
            self.rig.policy.answer(question, self.verdict(question) if said is None else said)
        refused = errno_of(lambda: self.reply(unique))
        self.mirror.release(inode)
        self.mirror.release(victim)
        assert refused in (0, errno.EBUSY)
        assert refused or not placed or not was_there, "it is held, and removed"
        assert placed if below else bool(placed) == bool(refused), "it is neither held nor removed"
        assert refused or not refusing
        if placed:
            self.holds.all.append(Held(placed[0].id, held_node, flags, holder, None, []))
        if not refused:
            del directory.entries[name]
            self.gone.append(victim)
            self.sweep()

    def begin_removal(self, operation: Operation, path: str) -> int:
        """Sends it, and returns when a worker is at it."""
        above, _, name = path.rpartition("/")
        at = self.nodeid(above)
        before = self.mirror.counters()["remove"]
        op = Op.RMDIR if operation is Operation.RMDIR else Op.UNLINK
        unique = self.rig.kernel.ask(op, at, name.encode() + b"\0", pid=REMOVER_PID)
        while self.mirror.counters()["remove"] == before:
            time.sleep(0)
        return unique

    def is_under_way(self) -> bool:
        """Whether the removal asks. If not it is over now, or in the window that a test build has widened."""
        if not WINDOW:
            return self.is_asked()
        channel = self.rig.policy.channel
        ready, _, _ = select.select([self.rig.device, channel], [], [], WINDOW / 4)
        return channel in ready

    # --- the rest -----------------------------------------------------------------------------------------------------

    @rule(mode=st.sampled_from((Mode.ENFORCE, Mode.ENFORCE, Mode.WARN, Mode.OFF)))
    def switch(self, mode: Mode) -> None:
        trio.run(partial(self.keeper.set_mode, mode, requester=self.process(HOLDERS[0])))

    @rule()
    def forget(self) -> None:
        """The kernel forgets every inode; what is held stays known."""
        for nodeid, lookups in self.lookups.items():
            self.rig.kernel.forget(nodeid, lookups)
        self.lookups.clear()
        self.gone.clear()

    @rule()
    def sweep(self) -> None:
        trio.run(self.keeper.sweep)
        ids = {hold.id for hold in self.keeper.registry.all()}
        # A claim that was not enforced has no flags, and so nothing that keeps its inode known.
        self.holds.all = [
            held
            for held in self.holds.all
            if (held.flags or held.id in ids) and (held.node is self.tree.root or self.tree.links(held.node))
        ]

    @rule(which=WHICH)
    def look(self, which: int) -> None:
        path, directory = self.directory(which)
        covering = self.keeper.covering(self.mirror.identify(self.nodeid(path)))
        alive = {held.id for held in self.holds.all}
        assert {hold.id for hold in covering} & alive == {held.id for held in self.holds.covering(directory)}

    @invariant()
    def the_trees_are_the_same(self) -> None:
        kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFCHR: "whiteout"}
        there = {}
        for path in self.place.rglob("*"):
            seen = path.lstat()
            there[str(path.relative_to(self.place))] = (kinds[stat.S_IFMT(seen.st_mode)], seen.st_ino)
        assert there == {path: (node.kind, node.ino) for path, _, node in self.tree.walk()}

    @invariant()
    def the_holds_are_the_same(self) -> None:
        ids = {hold.id for hold in self.keeper.registry.all()}
        assert {held.id for held in self.holds.all} <= ids
        assert self.rig.mirror.counters()["timed_out"] == 0


class ExclfsThatAsksAlways(ExclfsAgainstAPlainTree):
    ask_always = True


LIMITS: Final = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # to explain takes longer than to understand
)
ExclfsAgainstAPlainTree.TestCase.settings = ExclfsThatAsksAlways.TestCase.settings = LIMITS
TestExclfsAgainstAPlainTree = ExclfsAgainstAPlainTree.TestCase
TestExclfsThatAsksAlways = ExclfsThatAsksAlways.TestCase


@pytest.mark.skipif(bool(WINDOW), reason="this is that run")
@pytest.mark.parametrize("lock", [True, False])
def test_only_without_the_lock_something_is_held_and_removed(tmp_path: Path, lock: bool) -> None:
    """The same machine against a mirror whose window is so wide that every trylock comes into it."""
    defines = [f"EXCLFS_TEST_WINDOW_US={WIDE * 1e6:.0f}", *([] if lock else ["EXCLFS_TEST_WITHOUT_STRIPES"])]
    build = variant(*defines)
    run = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "AgainstAPlainTree"],
        cwd=tmp_path,  # where it leaves what it finds
        env={**os.environ, "PYTHONPATH": str(build), "EXCLFS_TEST_WINDOW": str(WIDE), "EXCLFS_PROOF_EXAMPLES": "15"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == (0 if lock else 1), run.stdout
    assert ("it is held, and removed" in run.stdout) is not lock
