"""Who may place, release, break and list, on a real mount: every kind of user, directory and name (DESIGN section 6).

What the kernel lets somebody remove, the kernel is asked: on the backing tree, with something that is just like it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import exclfs
from contained import contained
from exclfs import Flags, Held, NotPermitted
from exclfs.client.errors import Disconnected
from exclfs.holds.errors import BadHold
from exclfs.holds.events import Broken
from exclfs.holds.mode import Mode
from harness import start
from program import logged, mounted_by_program
from twins import ROOT, SHARED, User, as_user, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from contained import Contained
    from exclfs import Hold
    from exclfs.client.sync_client import Client
    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

OWNER: Final = User("owner", 61001, 61001)
"""Of the files."""
LANDLORD: Final = User("landlord", 61002, 61002)
"""Of the directory that they are in."""
MEMBER: Final = User("member", 61003, 61003, (SHARED,))
"""Of the group that files and directory have."""
STRANGER: Final = User("stranger", 61004, 61004)
EVERYBODY: Final = (ROOT, OWNER, LANDLORD, MEMBER, STRANGER)
KINDS: Final = ("file", "linked", "directory")
MODES: Final = (0o755, 0o775, 0o777, 0o1777, 0o1775, 0o2775)

everybody = pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.name)


@pytest.fixture(scope="module")
def stage() -> Iterator[Path]:
    """A directory that everybody can enter, as pytest's own are not."""
    directory = Path(tempfile.mkdtemp(prefix="exclfs-authority-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module", params=[None, SHARED], ids=["no group", "a group"])
def with_and_without_group(stage: Path, request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A mount, and another with -o holders=GROUP."""
    with mount_on(stage, holders=request.param) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def mounted(stage: Path) -> Iterator[Mounted]:
    with mount_on(stage) as mounted:
        yield mounted


@contextmanager
def mount_on(stage: Path, **options: Any) -> Iterator[Mounted]:
    directory = Path(tempfile.mkdtemp(dir=stage))
    directory.chmod(0o755)
    with start(directory, **options) as mounted:
        mounted.expect("unlock_bad", "broken", "refused")
        yield mounted


numbers = itertools.count()


def make(mounted: Mounted, mode: int = 0o755) -> Path:
    """The landlord's directory, with the owner's things; of "linked" the stranger has a link in a directory of his."""
    directory = mounted.backing / f"directory{next(numbers)}"
    directory.mkdir()
    (directory / "file").touch()
    (directory / "linked").touch()
    (directory / "directory").mkdir()
    (directory / "strangers").mkdir()
    os.link(directory / "linked", directory / "strangers/linked")
    for name in KINDS:
        os.chown(directory / name, OWNER.uid, SHARED)
        (directory / name).chmod(0o750 if name == "directory" else 0o640)
    os.chown(directory / "strangers", STRANGER.uid, STRANGER.gid)
    os.chown(directory, LANDLORD.uid, SHARED)
    directory.chmod(mode)
    return mounted.path / directory.name


def kernel_lets_remove(mounted: Mounted, who: User, thing: Path) -> bool:
    name = mounted.backing / thing.relative_to(mounted.path)
    moved = name.with_name("moved")
    if outcome_of(who, lambda: os.rename(name, moved), mounted.backing) is not None:
        return False
    moved.rename(name)
    return True


def kernel_lets_read(who: User, thing: Path) -> bool:
    def read() -> None:
        os.close(os.open(thing, os.O_RDONLY))

    return outcome_of(who, read, thing.parent) is None


# --- ways to place a hold ---------------------------------------------------------------------------------------------


def by_descriptor(thing: Path, *, claim: bool) -> bool:
    with exclfs.connect(thing) as client:
        try:
            client.hold(thing, claim=claim)
        except NotPermitted:
            return False
        return True


def by_path(thing: Path, *, claim: bool) -> bool:
    with exclfs.connect(thing) as client:
        root = client.mountpoint
    wanted = {
        "objects": [{"path": str(thing.relative_to(root))}],
        "flags": ["NO_REMOVE", *(["EXCL_INUSE"] if claim else [])],
        "holder": "by path",
        "reason": "",
    }
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(os.getxattr(root, "user.exclfs.socket"))
        line.sendall(json.dumps({"method": "org.exclfs.Hold", "parameters": wanted}).encode() + b"\0")
        answer = json.loads(line.recv(65536).rstrip(b"\0"))
    assert answer.get("error") in (None, "org.exclfs.NotPermitted"), answer
    return "error" not in answer


def by_xattr(thing: Path, *, claim: bool) -> bool:
    try:
        os.setxattr(thing, "system.exclfs.hold", json.dumps({"claim": claim}).encode())
    except PermissionError:
        return False
    os.removexattr(thing, "system.exclfs.hold")
    return True


WAYS: Final[tuple[Callable[..., bool], ...]] = (by_descriptor, by_path, by_xattr)


@everybody
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_who_may_place(with_and_without_group: Mounted, who: User, way: Callable[..., bool]) -> None:
    mounted = with_and_without_group
    grouped = "a group" in os.environ.get("PYTEST_CURRENT_TEST", "")
    for mode, kind, claim in itertools.product(MODES, KINDS, (False, True)):
        thing = make(mounted, mode) / kind
        may = who in (ROOT, OWNER)
        may |= kind != "linked" and kernel_lets_remove(mounted, who, thing)
        may |= grouped and who is MEMBER and not claim and kernel_lets_read(who, thing)
        assert as_user(who, lambda: way(thing, claim=claim)) == may, (oct(mode), kind, claim)  # noqa: B023
        if not may:
            assert exclfs.holds(thing) == ()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_link_in_ones_own_directory_gives_no_right(mounted: Mounted, way: Callable[..., bool]) -> None:
    link = make(mounted, 0o777) / "strangers/linked"
    assert kernel_lets_remove(mounted, STRANGER, link)
    assert not as_user(STRANGER, lambda: way(link, claim=False))
    (mounted.backing / link.relative_to(mounted.path).parent.parent / "linked").unlink()
    assert as_user(STRANGER, lambda: way(link, claim=False)), "now it is the only one"


@everybody
def test_who_may_pin_a_path(mounted: Mounted, who: User) -> None:
    """Who may rename each directory on it, and hold what it leads to."""
    for root, mode in itertools.product((0o755, 0o1777, 0o777), MODES):
        mounted.backing.chmod(root)
        thing = make(mounted, mode) / "directory"
        below = mounted.backing / thing.relative_to(mounted.path) / "below"
        below.touch()
        os.chown(below, OWNER.uid, OWNER.gid)
        thing.chmod(0o777)
        may = all(kernel_lets_remove(mounted, who, one) for one in (thing, thing.parent))
        with suppress(NotPermitted):
            hold = as_user(who, lambda: place(thing / "below", flags=Flags.PIN_PATH))  # noqa: B023
            assert may, (oct(root), oct(mode))
            assert hold.flags == Flags.PIN_PATH
            continue
        assert not may, (oct(root), oct(mode))
    mounted.backing.chmod(0o755)


def test_a_path_is_not_pinned_by_right_of_another_link(mounted: Mounted) -> None:
    mounted.backing.chmod(0o1777)
    directory = make(mounted)
    own = mounted.backing / "own"
    own.mkdir()
    os.chown(own, OWNER.uid, OWNER.gid)
    os.link(mounted.backing / directory.name / "linked", own / "linked")
    assert as_user(OWNER, lambda: place(mounted.path / "own/linked", flags=Flags.PIN_PATH))
    with pytest.raises(NotPermitted, match="PIN_PATH"):
        as_user(OWNER, lambda: place(directory / "linked", flags=Flags.PIN_PATH))
    mounted.backing.chmod(0o755)


def place(thing: Path, **wanted: Any) -> Hold:
    """Holds it for a moment."""
    with exclfs.hold(thing, **wanted) as hold:
        return hold


# --- releasing and breaking -------------------------------------------------------------------------------------------


@everybody
@pytest.mark.parametrize("kind", KINDS)
def test_who_may_release_and_who_may_break(mounted: Mounted, who: User, kind: str) -> None:
    thing = make(mounted, 0o777) / kind
    with connected(OWNER, thing) as held:
        (hold,) = held.hold(thing, until_unmount=True)

        def release(*, break_it: bool) -> bool:
            with exclfs.connect(thing) as client:
                try:
                    client.release(hold, break_it=break_it, reason=f"for {who.name}")
                except NotPermitted:
                    return False
                return True

        assert as_user(who, lambda: release(break_it=False)) == (who is OWNER)
        if who is OWNER:
            return
        may = who is ROOT or (who is LANDLORD and kind != "linked")
        assert as_user(who, lambda: release(break_it=True)) == may
        assert held.holds(thing) == (() if may else (hold,))
        if may:
            assert who.name in logged(mounted, "broken", hold.id)
        else:
            logged(mounted, "unlock_bad", hold.id)
            held.release(hold)


def test_by_connection_a_hold_is_its_process_alone(mounted: Mounted) -> None:
    """Another process of the same user breaks it, on the record."""
    thing = make(mounted) / "file"
    with connected(OWNER, thing) as client, contained(mounted.path, OWNER.uid, {OWNER.uid: OWNER.uid}) as another:
        (hold,) = client.hold(thing)
        assert another.do("call", "Release", {"ids": [hold.id]}) == "NotPermitted"
        assert client.holds(thing) == (hold,)
        reply = another.do("call", "Release", {"ids": [hold.id], "break_it": True})
        assert [released["id"] for released in reply["released"]] == [hold.id]
        assert client.holds(thing) == ()
        logged(mounted, "broken", hold.id)


def test_the_holder_is_told_who_broke_its_hold_and_why(mounted: Mounted) -> None:
    thing = make(mounted) / "file"
    with connected(OWNER, thing) as client:
        (hold,) = client.hold(thing)
        with client.events(own=True) as events:
            as_user(LANDLORD, lambda: exclfs.release(thing, break_it=True, reason="it blocks the move"))
            broken = next(events)
    assert isinstance(broken, Broken)
    assert (broken.hold.id, broken.requester.uid, broken.reason) == (hold.id, LANDLORD.uid, "it blocks the move")
    assert "it blocks the move" in logged(mounted, "broken", hold.id)


@contextmanager
def connected(who: User, thing: Path) -> Iterator[Client]:
    """A client who is somebody, and stays it whoever uses it: the kernel knows who has connected."""
    with as_user(who, lambda: exclfs.connect(thing)) as client:
        yield client


# --- listing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hidden(mounted: Mounted) -> Path:
    """The owner's file, in a directory that only the landlord and the group may enter."""
    thing = make(mounted, 0o770) / "file"
    (mounted.backing / thing.parent.name).chmod(0o750)
    return thing


@everybody
def test_who_may_list(mounted: Mounted, hidden: Path, who: User) -> None:
    """Who can reach it; who asks for what is held anywhere is told of their own and of what they can reach."""
    reaches = who in (ROOT, LANDLORD, MEMBER)
    public, own = make(mounted) / "file", make(mounted) / "file"
    with connected(ROOT, public) as root, connected(OWNER, own) as owner, connected(who, public) as client:
        holds = {path: one.hold(path)[0].id for one, path in ((root, hidden), (root, public), (owner, own))}
        (mounted.backing / own.parent.name).chmod(0)
        told = {hold.id for hold in client.holds()} & set(holds.values())
    knows = {public, *([hidden] if reaches else []), *([own] if who in (ROOT, OWNER) else [])}
    assert told == {holds[path] for path in knows}
    for look in (lambda: exclfs.holds(hidden), lambda: exclfs.why(hidden)):
        assert (outcome_of(who, look, mounted.path) == "EACCES") is not reaches


@everybody
def test_who_is_told_of_refusals_and_events(mounted: Mounted, hidden: Path, who: User) -> None:
    """Who sees everything, and who has part in it: as the holder, or as the one who is refused."""
    last = make(mounted) / who.name
    last.touch()
    os.chown(last, who.uid, who.gid)
    with connected(who, last) as client, as_user(who, client.events) as events:
        with connected(ROOT, mounted.path) as root:
            root.hold(hidden)
            assert outcome_of(LANDLORD, lambda: os.unlink(hidden), mounted.path) == "EBUSY"
        as_user(who, lambda: place(last, holder="the last"))
        told = list(itertools.takewhile(lambda event: "the last" not in repr(event), events))
        refused = [refusal for refusal in client.status().last_refusals if refusal.path == str(hidden)]
    expected = {ROOT.name: ["locked", "refused", "unlocked"], LANDLORD.name: ["refused"]}.get(who.name, [])
    assert [event.name for event in told] == expected
    assert len(refused) == ("refused" in expected)


@everybody
def test_of_another_users_process_nothing_is_told_that_the_kernel_would_not(mounted: Mounted, who: User) -> None:
    """Its pid and its comm are for everybody; which program it is, readlink(2) of /proc/PID/exe tells its own user."""
    thing = make(mounted) / "file"
    with connected(OWNER, thing) as owner, connected(who, thing) as client:
        owner.hold(thing)
        by_xattr = as_user(who, lambda: json.loads(os.getxattr(thing, "system.exclfs.holders")))
        told = [hold.holder.process for hold in (*client.holds(thing), *client.holds())]
        told += [cause.hold.holder.process for cause in client.why(thing).causes if cause.hold]
        if who is OWNER:
            with pytest.raises(Held) as caught:
                client.hold(thing)
            told.append(caught.value.hold.holder.process)
    may = who in (ROOT, OWNER)
    assert {(process.pid, process.comm is None) for process in told} == {(os.getpid(), False)}
    assert {process.exe is not None for process in told} == {may}
    assert (by_xattr["holds"][0]["holder"]["exe"] is not None) == may


# --- in a container ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root_inside(mounted: Mounted) -> Iterator[Contained]:
    """The owner, who is root in a user namespace, and 1 in a pid namespace."""
    with contained(mounted.path, 0, {0: OWNER.uid, 1: LANDLORD.uid}) as inside:
        assert inside.do("ids") == [1, 0]
        yield inside


@pytest.fixture(scope="module")
def user_inside(mounted: Mounted) -> Iterator[Contained]:
    """The landlord, who has another number inside."""
    with contained(mounted.path, 1, {0: OWNER.uid, 1: LANDLORD.uid}) as inside:
        assert inside.do("ids") == [1, 1]
        yield inside


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_in_a_container_everybody_is_who_they_are_outside(
    mounted: Mounted, root_inside: Contained, user_inside: Contained, mode: int, kind: str
) -> None:
    thing = make(mounted, mode) / kind
    held = root_inside.do("hold", thing, "NO_REMOVE")
    assert (held["holder"]["uid"], held["holder"]["pid"]) == (OWNER.uid, root_inside.pid)
    assert root_inside.do("set", thing) is None
    may = kind != "linked"
    assert isinstance(user_inside.do("hold", thing, "NO_REMOVE"), dict) == may
    assert user_inside.do("set", thing) == (None if may else "PermissionError")
    assert user_inside.do("call", "Release", {"ids": [held["id"]]}) == "NotPermitted"
    broken = user_inside.do("call", "Release", {"ids": [held["id"]], "break_it": True})
    assert isinstance(broken, dict) == may


def test_root_in_a_container_is_not_root(mounted: Mounted, root_inside: Contained) -> None:
    thing = make(mounted) / "roots"
    thing.touch()
    with connected(ROOT, thing) as root:
        (hold,) = root.hold(thing)
        assert root_inside.do("hold", thing, "NO_REMOVE") == "NotPermitted"
        assert root_inside.do("set", thing) == "PermissionError"
        assert root_inside.do("call", "Release", {"ids": [hold.id], "break_it": True}) == "NotPermitted"
        assert root_inside.do("call", "Mode", {"mode": "off"}) == "NotPermitted"
        assert root.mode() is Mode.ENFORCE


def test_a_process_of_a_container_is_named_by_a_descriptor(mounted: Mounted, root_inside: Contained) -> None:
    """A number in another pid namespace would be another process's here."""
    thing = make(mounted) / "file"
    assert root_inside.do("hold", thing, pid=1) == "BadHold"
    with contained(mounted.path, 0, {0: OWNER.uid}) as other:
        held = other.do("hold", thing, pidfd=True)
        assert held["ends"] == [{"kind": "process", "pid": other.pid, "at": None}]
        assert outcome_of(LANDLORD, lambda: os.unlink(thing), mounted.path) == "EBUSY"
        os.kill(other.pid, signal.SIGKILL)
    assert outcome_of(LANDLORD, lambda: os.unlink(thing), mounted.path) is None


def test_whoever_is_nobody_outside_is_nobody(mounted: Mounted) -> None:
    """A user whose number is another's inside has that other's rights nowhere."""
    thing = make(mounted) / "file"
    with contained(mounted.path, OWNER.uid, {OWNER.uid: STRANGER.uid}) as inside:
        assert inside.do("ids") == [1, OWNER.uid]
        assert inside.do("hold", thing, "NO_REMOVE") == "NotPermitted"
        assert inside.do("set", thing) == "PermissionError"


# --- how much ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(stage: Path) -> Iterator[Path]:
    """A mount with small limits, as the command line makes one."""
    directory = Path(tempfile.mkdtemp(dir=stage))
    directory.chmod(0o755)
    limits = "max_holds=3,max_reason=5,max_ttl=1m,max_connections=4"
    for name in ("tree", "mnt"):
        (directory / name).mkdir()
    (directory / "tree").chmod(0o777)
    with mounted_by_program(directory / "tree", directory / "mnt", "-o", limits):
        yield directory / "mnt"


@pytest.fixture
def owners(limited: Path, request: pytest.FixtureRequest) -> list[Path]:
    """Five files of the owner."""
    files = [limited / f"{request.node.name}{number}" for number in range(5)]
    for file in files:
        file.touch()
        os.chown(file, OWNER.uid, OWNER.gid)
    return files


def test_one_user_has_so_many_holds_and_root_any_number(owners: list[Path]) -> None:
    with connected(OWNER, owners[0]) as client, connected(OWNER, owners[0]) as another:
        client.hold(owners[:2], claim=False)
        with pytest.raises(NotPermitted, match="limit is 3"):
            another.hold(owners[:2], claim=False)
        another.hold(owners[0], claim=False)
        for _ in range(2):
            with pytest.raises(NotPermitted, match="limit is 3"):
                client.hold(owners[0], claim=False)
            with pytest.raises(PermissionError):
                as_user(OWNER, lambda: os.setxattr(owners[0], "system.exclfs.hold", b"more"))
        with connected(ROOT, owners[0]) as root:
            root.hold(owners, claim=False)
        client.release(client.holds(owners[1]))
        client.hold(owners[0], claim=False)


@pytest.mark.parametrize("who", [ROOT, OWNER], ids=lambda who: who.name)
def test_a_reason_is_so_long(owners: list[Path], who: User) -> None:
    with connected(who, owners[0]) as client:
        client.hold(owners[0], reason="12345")
        with pytest.raises(BadHold, match="at most 5"):
            client.hold(owners[1], reason="123456")
        with pytest.raises(BadHold, match="at most 5"):
            client.release(path=owners[0], break_it=True, reason="123456")


def test_a_time_is_so_long_and_roots_any(owners: list[Path]) -> None:
    with connected(OWNER, owners[0]) as client, connected(ROOT, owners[0]) as root:
        hold = client.hold(owners[0], ttl=60)
        with pytest.raises(NotPermitted, match="60 s"):
            client.hold(owners[1], ttl=61)
        with pytest.raises(NotPermitted, match="60 s"):
            client.renew(hold, 61)
        root.release(root.hold(owners[1], ttl=1e8))
        client.release(hold)


def test_one_user_has_so_many_connections(owners: list[Path]) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(OWNER, owners[0])) for _ in range(4)]
        assert [client.holds() for client in clients] == [()] * 4
        fifth = stack.enter_context(connected(OWNER, owners[0]))
        with pytest.raises((NotPermitted, Disconnected), match=r"4 connections|closed"):
            fifth.holds()
        other = stack.enter_context(connected(STRANGER, owners[0]))
        assert other.holds() == ()
