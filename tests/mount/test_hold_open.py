"""Files that are open are held against other processes (hold_open), and not a moment longer than they are open."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_overlay_above import STEPS, populate
from test_refusals import EXCHANGE, rename2

import exclfs
from exclfs.holds.flags import Operation
from harness import start, variant
from program import exclfs as run_exclfs
from program import logged
from twins import ALICE, BOB, ROOT, User, link_descriptor, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

WINDOW_US = 300

AGENT = """
import ctypes, json, os, socket, sys
names = {"os": os, "socket": socket, "ctypes": ctypes}
for line in sys.stdin:
    wish = json.loads(line)
    try:
        answer = {"value": eval(wish["code"], names | wish["names"], names)}
    except OSError as error:
        answer = {"errno": error.errno}
    print(json.dumps(answer, default=lambda value: None), flush=True)
"""


class Other:
    """Another process, which does what it is told."""

    def __init__(self, *prefix: str, **named: Any) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", AGENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **named,
        )
        self.pid = self.do("os.getpid()")

    def do(self, code: str, **names: object) -> Any:
        """The value of an expression there, where `:=` names what later ones use; raises its OSError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"code": code, "names": names}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer["value"]

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int:
        return int(self.do("os.open(path, flags)", path=str(path), flags=flags))

    def close(self, fd: int) -> None:
        self.do("os.close(fd)", fd=fd)

    def unlink(self, path: Path) -> None:
        self.do("os.unlink(path)", path=str(path))

    @property
    def comm(self) -> str:
        return Path(f"/proc/{self.pid}/comm").read_text().removesuffix("\n")

    def kill(self) -> None:
        """SIGKILL, and waits."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def others() -> Iterator[Callable[..., Other]]:
    """Makes other processes, which end with the test."""
    with ExitStack() as stack:

        def make(*prefix: str, **named: Any) -> Other:
            made = Other(*prefix, **named)
            stack.callback(made.end)
            return made

        yield make


@pytest.fixture
def other(others: Callable[..., Other]) -> Other:
    return others()


@pytest.fixture(scope="module")
def mount_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """Overrides the one of all other modules."""
    with start(tmp_path_factory.mktemp("shared"), hold_open="all") as mounted:
        mounted.expect("refused")
        yield mounted


@pytest.fixture
def file(mounted: Mounted) -> Path:
    path = mounted.path / "file"
    path.write_text("content")
    return path


def refused(removal: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        removal()
    assert caught.value.errno == errno.EBUSY, caught.value


def new(path: Path) -> Path:
    path.write_text("new")
    return path


# --- what is refused, to whom, and what they are told -----------------------------------------------------------------

REMOVALS: dict[Operation, Callable[[Path], object]] = {
    Operation.UNLINK: lambda path: path.unlink(),
    Operation.RENAME: lambda path: path.rename(path.with_name("moved")),
    Operation.REPLACE: lambda path: new(path.with_name("replacement")).rename(path),
    Operation.EXCHANGE: lambda path: rename2(new(path.with_name("partner")), path, EXCHANGE),
    Operation.WHITEOUT: lambda path: rename2(path, path.with_name("whited"), 4),
}


@pytest.mark.parametrize("operation", REMOVALS)
def test_what_another_process_has_open_stays(file: Path, other: Other, operation: Operation) -> None:
    fd = other.open(file)
    inode = file.stat().st_ino
    refused(lambda: REMOVALS[operation](file))
    assert file.stat().st_ino == inode
    assert file.read_text() == "content"
    other.close(fd)
    for name in ("replacement", "partner"):
        file.with_name(name).unlink(missing_ok=True)
    REMOVALS[operation](file)


def test_by_every_name(file: Path, other: Other) -> None:
    link = file.with_name("link")
    link.hardlink_to(file)
    fd = other.open(file)
    refused(link.unlink)
    other.close(fd)
    link.unlink()


def test_also_when_the_name_by_which_it_was_opened_has_gone(mounted: Mounted, file: Path, other: Other) -> None:
    first = file.with_name("first")
    first.hardlink_to(file)
    fd = other.open(first)
    other.unlink(first)
    refused(file.unlink)
    (mounted.backing / "file").rename(mounted.backing / "moved")  # behind the mount
    refused((mounted.path / "moved").unlink)
    other.close(fd)
    (mounted.path / "moved").unlink()


def test_by_descriptors_for_reading_for_writing_and_to_append(file: Path, other: Other) -> None:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
        fd = other.open(file, flags)
        refused(file.unlink)
        other.close(fd)
    fd = other.open(file, os.O_PATH)
    file.unlink()  # a path is no open file
    other.close(fd)


def test_a_file_is_open_from_its_creation(mounted: Mounted, other: Other) -> None:
    path = mounted.path / "file"
    fd = other.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    refused(path.unlink)
    other.close(fd)
    path.unlink()


def test_only_removals_are_refused(file: Path, other: Other) -> None:
    other.open(file, os.O_RDWR)
    file.write_text("other content")
    file.chmod(0o600)
    os.truncate(file, 3)
    file.with_name("link").hardlink_to(file)
    assert other.do("os.read(3, 10).decode()") == "oth"


def test_all_four_ways_to_find_out_say_who_has_it_open(mounted: Mounted, file: Path, other: Other) -> None:
    with exclfs.events(file) as events:
        other.open(file)
        refused(file.unlink)
        event = next(events)
    assert isinstance(event, exclfs.Refused)
    (hold,) = event.holds
    assert (hold.id, hold.flags) == (f"open-{other.pid}-{file.stat().st_ino}", exclfs.Flags.NO_REMOVE)
    assert (hold.holder.name, hold.holder.process.pid, hold.holder.process.uid) == (other.comm, other.pid, 0)
    assert (hold.reason, hold.ends) == (f"opened by pid {other.pid} ({other.comm})", (exclfs.Close(),))
    assert (hold.path, hold.inode.ino) == (str(file), file.stat().st_ino)
    assert [found.id for found in exclfs.holds(file)] == [hold.id]

    cause, *others = exclfs.why(file).causes
    assert cause.kind == "open file"
    assert set(cause.blocks) == {"unlink", "rename"}
    assert [(other_cause.kind, other_cause.blocks) for other_cause in others] == [("descriptor", ())]
    said = f"opened by {other.comm} (pid {other.pid}"
    assert said in cause.text
    assert "by other processes" in cause.text
    assert said in os.getxattr(file, "user.exclfs.why").decode()
    assert said in run_exclfs("why", file).stdout.replace("\n", " ")

    (told,) = json.loads(os.getxattr(file, "user.exclfs.holders"))["holds"]
    assert told["holder"]["name"] == other.comm
    assert told["ends"] == [{"kind": "close", "pid": None, "at": None}]
    assert f'holder_reason="opened by pid {other.pid} ({other.comm})"' in logged(mounted, "refused", str(file))


def test_several_openers_are_named_once_each_the_first_first(file: Path, others: Callable[..., Other]) -> None:
    first, second = others(), others()
    for process in (first, second, first, second):
        process.open(file)
    found = exclfs.holds(file)
    assert [hold.holder.process.pid for hold in found] == [first.pid, second.pid]
    assert found[0].since <= found[1].since
    refused(lambda: first.unlink(file))  # its own does not matter, the second's does


def test_an_open_file_is_closed_and_not_released(mounted: Mounted, file: Path, other: Other) -> None:
    mounted.expect("unlock_bad")
    fd = other.open(file)
    (hold,) = exclfs.holds(file)
    with exclfs.connect(file) as client:
        for break_it in (False, True):
            with pytest.raises(exclfs.NotPermitted, match="ends when the file is closed"):
                client.release(hold, break_it=break_it)
    refused(file.unlink)
    other.close(fd)


def test_it_claims_nothing(file: Path, other: Other) -> None:
    other.open(file)
    with exclfs.hold(file, holder="us"):
        assert [hold.holder.name for hold in exclfs.holds(file)] == ["us", other.comm]


@pytest.mark.parametrize("name", [b"a\nb", b"\x1b[31mred", b"\xff\xfe", b'a=b "c"', b""])
def test_a_comm_may_hold_anything(mounted: Mounted, file: Path, other: Other, name: bytes) -> None:
    other.do("ctypes.CDLL(None).prctl(15, bytes(name), 0, 0, 0)", name=list(name))
    other.open(file)
    refused(file.unlink)
    (hold,) = exclfs.holds(file)
    assert hold.holder.name.isprintable()
    assert hold.reason.isprintable()
    assert exclfs.why(file).blocked
    assert f"holder_pid={other.pid}" in logged(mounted, "refused", str(file))
    assert run_exclfs("why", file).stdout


# --- who is never refused ---------------------------------------------------------------------------------------------


def test_what_the_opener_does_itself_is_never_refused(file: Path) -> None:
    with open(file):
        file.rename(file.with_name("moved"))
        new(file).rename(file.with_name("moved"))
    with open(file.with_name("moved")):
        file.with_name("moved").unlink()


def in_thread(work: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def working() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=working)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_nor_what_any_of_its_threads_does(file: Path) -> None:
    with open(file):
        in_thread(lambda: file.rename(file.with_name("moved")))
    opened: list[int] = []
    moved = file.with_name("moved")
    in_thread(lambda: opened.append(os.open(moved, os.O_RDONLY)))
    moved.rename(file)  # by another thread than the one that opened it, and has ended
    in_thread(file.unlink)
    os.close(opened[0])


def test_temporary_files_are_renamed_into_place_by_many_threads(mounted: Mounted) -> None:
    """Whether they are still open or not, and while the target is being read: all in one process."""
    target = new(mounted.path / "target")

    def write(number: int) -> None:
        temporary = mounted.path / f"temporary{number}"
        for turn in range(100):
            with open(temporary, "x") as out:
                out.write("written")
                if turn % 2:
                    os.rename(temporary, target)
            if not turn % 2:
                os.rename(temporary, target)
            assert target.read_text() in ("new", "", "written")

    failures: list[BaseException] = []

    def writing(number: int) -> None:
        try:
            write(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=writing, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert os.listdir(mounted.backing) == ["target"]


def test_directories_do_not_count(mounted: Mounted, other: Other) -> None:
    directory = mounted.setup("directory")
    other.open(directory)
    other.do("os.listdir(path)", path=str(directory))
    other.do("os.chdir(path)", path=str(directory))
    directory.rename(mounted.path / "moved")
    (mounted.path / "moved").rmdir()


def test_a_directory_above_can_be_renamed(mounted: Mounted, other: Other) -> None:
    path = new(mounted.setup("directory") / "file")
    other.open(path)
    (mounted.path / "directory").rename(mounted.path / "moved")
    refused((mounted.path / "moved" / "file").unlink)


@pytest.mark.parametrize("hold_open", ["off", "own"])
def test_unless_it_is_asked_for_nobody_is_refused(
    mount: Callable[..., Mounted], others: Callable[..., Other], hold_open: str
) -> None:
    mounted = mount(hold_open=hold_open)
    mounted.path.chmod(0o777)
    for number, opener in enumerate((ROOT, ALICE, BOB)):
        path = new(mounted.path / f"file{number}")
        path.chmod(0o644)
        os.chown(path, ALICE.uid, ALICE.gid)
        opened_by(others, opener, path)
        if hold_open == "own" and opener is not BOB:
            mounted.expect("refused")
            refused(path.unlink)
        else:
            path.unlink()


def opened_by(others: Callable[..., Other], user: User, path: Path) -> Other:
    """Another process of this user, which has the path open; opened as root, since pytest lets nobody else through."""
    other = others()
    directory = other.open(path.parent, os.O_DIRECTORY)
    other.do("os.setresgid(gid, gid, gid)", gid=user.gid)
    other.do("os.setresuid(uid, uid, uid)", uid=user.uid)
    other.do("os.open(name, os.O_RDONLY, dir_fd=directory)", name=path.name, directory=directory)
    return other


def test_root_is_refused_like_anybody(mounted: Mounted, file: Path, others: Callable[..., Other]) -> None:
    opened_by(others, BOB, file)
    refused(file.unlink)
    (hold,) = exclfs.holds(file)
    assert hold.holder.process.uid == BOB.uid


# --- until when -------------------------------------------------------------------------------------------------------


def test_closed_here_it_can_be_removed_there_at_once(mounted: Mounted, other: Other) -> None:
    path = mounted.path / "file"
    for _ in range(1000):
        path.write_text("content")
        other.unlink(path)


def test_until_the_last_duplicate_is_closed(file: Path, other: Other) -> None:
    fd = other.open(file)
    copy = other.do("os.dup(fd)", fd=fd)
    other.close(fd)
    refused(file.unlink)
    other.close(copy)
    file.unlink()


def test_until_a_child_that_has_it_too_closes_it(file: Path, other: Other) -> None:
    """It is its opener's, as long as that lives."""
    fd = other.open(file)
    other.do("(pipe := os.pipe()) and (child := os.fork()) or (os.read(pipe[0], 1), os._exit(0))")
    other.close(fd)
    refused(file.unlink)
    (hold,) = exclfs.holds(file)
    assert hold.holder.process.pid == other.pid
    other.unlink(file)
    other.do("os.write(pipe[1], b'x') and os.waitpid(child, 0)")


@pytest.mark.parametrize("waited_for", [True, False])
def test_not_after_its_opener_has_died(file: Path, other: Other, waited_for: bool) -> None:
    """A child has it still; but nobody is refused because of a holder that is dead."""
    other.open(file)
    child = other.do("(pipe := os.pipe()) and (child := os.fork()) or (os.read(pipe[0], 1), os._exit(0))")
    pidfd = os.pidfd_open(child if isinstance(child, int) else other.do("child"))
    refused(file.unlink)
    other.process.kill()
    if waited_for:
        other.process.wait()
    else:
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert exclfs.holds(file) == ()
        file.unlink()
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def test_killed_and_waited_for_it_holds_nothing_any_more(mounted: Mounted, others: Callable[..., Other]) -> None:
    for number in range(30):
        path, opener = new(mounted.path / str(number)), others()
        opener.open(path)
        refused(path.unlink)
        opener.kill()
        path.unlink()


def test_through_exec(file: Path) -> None:
    code = "import os, sys; os.set_inheritable(os.open(sys.argv[1], os.O_RDONLY), True); os.execvp('cat', ['cat'])"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert os.read(process.stdout.fileno(), 1) == b"x", "it is cat now"
        refused(file.unlink)
        (hold,) = exclfs.holds(file)
        assert (hold.holder.name, hold.holder.process.pid) == ("cat", process.pid)
        process.communicate()
    file.unlink()


def test_a_program_that_runs_is_open(mounted: Mounted) -> None:
    program = mounted.path / "program"
    shutil.copy("/bin/cat", program)
    with subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        refused(program.unlink)
        (hold,) = exclfs.holds(program)
        assert (hold.holder.name, hold.holder.process.pid) == ("program", process.pid)
        process.communicate()
    program.unlink()


def test_a_file_without_a_name_gets_one(mounted: Mounted, others: Callable[..., Other]) -> None:
    opener = others(cwd=mounted.path)
    fd = opener.open(Path("."), os.O_TMPFILE | os.O_RDWR)
    opener.do(
        "ctypes.CDLL(None, use_errno=True).linkat(-100, f'/proc/self/fd/{fd}'.encode(), -100, b'file', 0x400)", fd=fd
    )
    path = mounted.path / "file"
    refused(path.unlink)
    opener.close(fd)
    path.unlink()


def test_our_own_file_without_a_name(mounted: Mounted) -> None:
    fd = os.open(mounted.path, os.O_TMPFILE | os.O_RDWR)
    link_descriptor(fd, str(mounted.path / "file"))
    (mounted.path / "file").unlink()
    os.close(fd)


def test_passed_on_it_is_still_its_openers(file: Path, others: Callable[..., Other]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        sender, receiver = others(pass_fds=[ours.fileno()]), others(pass_fds=[theirs.fileno()])
        fd = sender.open(file)
        sender.do("socket.send_fds(socket.socket(fileno=os.dup(end)), [b'x'], [fd])", end=ours.fileno(), fd=fd)
        sender.close(fd)
        refused(file.unlink)  # it is on its way
        passed = receiver.do("socket.recv_fds(socket.socket(fileno=os.dup(end)), 1, 1)[1][0]", end=theirs.fileno())
        refused(file.unlink)
        refused(lambda: receiver.unlink(file))
        (hold,) = exclfs.holds(file)
        assert hold.holder.process.pid == sender.pid
        receiver.close(passed)
        file.unlink()


@pytest.mark.parametrize("passthrough", [True, False])
def test_a_mapping_outlives_the_descriptor(mount: Callable[..., Mounted], other: Other, passthrough: bool) -> None:
    """With passthrough the kernel maps the backing file, of which the mount hears nothing (docs: limits)."""
    mounted = mount(hold_open="all", passthrough=passthrough)
    path = new(mounted.path / "file")
    fd = other.open(path)
    # Python's own mmap keeps a duplicate of the descriptor.
    other.do("(libc := ctypes.CDLL(None)) and setattr(libc.mmap, 'restype', ctypes.c_void_p)")
    mapping = other.do("libc.mmap(None, ctypes.c_size_t(4096), 1, 2, fd, ctypes.c_long(0))", fd=fd)  # read, private
    assert mapping != 2**64 - 1
    other.close(fd)
    if passthrough:
        path.unlink()
    else:
        mounted.expect("refused")
        refused(path.unlink)
        assert other.do("libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(4096))", at=mapping) == 0
        path.unlink()


def test_what_is_read_ahead_keeps_nothing_open(mount: Callable[..., Mounted], other: Other) -> None:
    mounted = mount(hold_open="all", passthrough=False)
    behind, path = mounted.backing / "file", mounted.path / "file"
    for _ in range(300):
        behind.write_bytes(bytes(1_000_000))
        with open(path, "rb", buffering=0) as file:
            file.read(4096)
            file.read(4096)  # reads ahead, and does not wait for it
        other.unlink(path)


# --- at what price ----------------------------------------------------------------------------------------------------


def test_data_goes_by_passthrough(mount: Callable[..., Mounted]) -> None:
    mounted = mount(hold_open="all")
    path = mounted.path / "file"
    with open(path, "wb", buffering=0) as file:
        file.writelines(bytes(4096) for _ in range(100))
    assert len(path.read_bytes()) == 409_600
    with exclfs.connect(mounted.path) as client:
        status = client.status()
    assert status.passthrough
    assert status.hold_open is exclfs.OpenFiles.ALL
    assert (status.requests["read"], status.requests["write"]) == (0, 0)


# --- an overlay above -------------------------------------------------------------------------------------------------


@contextmanager
def overlay(mounted: Mounted, directory: Path) -> Iterator[Path]:
    lower, merged = directory / "lower", directory / "merged"
    lower.mkdir()
    merged.mkdir()
    populate(lower)
    for name in ("upper", "work"):
        (mounted.path / name).mkdir()
    (mounted.path / "upper").chmod(0o777)
    options = f"lowerdir={lower},upperdir={mounted.path}/upper,workdir={mounted.path}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def test_an_overlay_above_does_its_work(mount: Callable[..., Mounted], tmp_path: Path) -> None:
    mounted = mount(hold_open="all")
    with overlay(mounted, tmp_path) as merged:
        for user, step in STEPS:
            assert outcome_of(user, step, merged) != "EBUSY"


def test_what_is_open_through_an_overlay_stays(mount: Callable[..., Mounted], tmp_path: Path, other: Other) -> None:
    mounted = mount(hold_open="all")
    mounted.expect("refused")
    with overlay(mounted, tmp_path) as merged:
        (merged / "file").write_text("copied up")
        fd = other.open(merged / "file")
        refused((merged / "file").unlink)
        (hold,) = exclfs.holds(mounted.path / "upper" / "file")
        assert hold.holder.process.pid == other.pid
        other.close(fd)
        (merged / "file").unlink()


# --- that these tests can fail ----------------------------------------------------------------------------------------


def closed_here_and_removed_there(directory: Path, build: Path, other: Other, rounds: int) -> int:
    """How many removals were refused."""
    busy = 0
    with start(directory, environment={"PYTHONPATH": str(build)}, hold_open="all") as mounted:
        mounted.expect("refused")
        for number in range(rounds):
            path = new(mounted.path / str(number))
            with suppress(OSError):
                other.unlink(path)
            busy += path.exists()
    return busy


@pytest.mark.kinds
@pytest.mark.parametrize("reading", [True, False])
def test_a_release_is_counted_where_it_is_read(tmp_path: Path, other: Other, reading: bool) -> None:
    """Served a good while after it was read: nobody is refused, unless it is counted only then."""
    defines = [f"EXCLFS_TEST_WINDOW_US={WINDOW_US}"] + ([] if reading else ["EXCLFS_TEST_WITHOUT_READING"])
    busy = closed_here_and_removed_there(tmp_path, variant(*defines), other, 300)
    assert (busy == 0) == reading, f"{busy} of 300 were refused"
