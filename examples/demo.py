"""What `make demo` runs: real cleaners against a real tree, part of which is in use.

A few thousand files that the machine has anyway are copied to a temporary directory and mounted through exclfs. One
process holds some of them. Then come the cleaners, each to its own part of the tree: find -delete, rm -rf,
systemd-tmpfiles and shutil.rmtree. Every step says what was promised and checks it; the exit status is 1 if a promise
was not kept, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HOLDER = "build-42"
REASON = "linking against it"
EBUSY = os.strerror(16)
FEW_THOUSAND = range(2000, 20000)
SHOWN_LINES = 8
PATIENCE = 60
"""Seconds after which a command that should be quick counts as hung."""


class NotAsPromised(Exception):
    """A step of the demonstration did not do what it was said to do."""


# --- what is seen on the terminal ----------------------------------------------------------------------------------


def folded(line: str, indent: str = "") -> list[str]:
    """A line in pieces of some width, broken at spaces only."""
    return textwrap.wrap(line, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


class Screen:
    """Titles, commands, output and verdicts, in colour where that is wanted."""

    def __init__(self) -> None:
        """Colours only for a person: a terminal, and no NO_COLOR (no-color.org)."""
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.step = 0
        self.checks = 0

    def paint(self, code: str, text: str) -> str:
        """The text in this SGR colour."""
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def title(self, text: str) -> None:
        """Begin a step."""
        self.step += 1
        print("\n" + self.paint("1", f"{self.step}. {text}"), flush=True)

    def typed(self, command: Sequence[str], *, end: str = "") -> None:
        """Show a command as it would be typed."""
        lines = folded(f"$ {shlex.join(command)}{end}", "      ")
        for line in lines[:-1]:
            print("   " + self.paint("36", f"{line} \\"))
        print("   " + self.paint("36", lines[-1]), flush=True)

    def output(self, text: str) -> None:
        """Show what a command said, long lines folded; the middle of much is left out, and that is said."""
        lines = text.rstrip("\n").split("\n") if text.strip() else []
        if len(lines) > SHOWN_LINES:
            left_out = len(lines) - SHOWN_LINES + 1
            lines[SHOWN_LINES // 2 : -SHOWN_LINES // 2 + 1] = [f"… {left_out} more lines …"]
        for line in lines:
            for part in folded(line) or [""]:
                print(f"   {part}", flush=True)

    def note(self, text: str) -> None:
        """Show something that no command said."""
        print(f"   {self.paint('2', text)}", flush=True)

    def check(self, kept: object, promise: str) -> None:
        """Tell whether a promise was kept.

        Raises:
            NotAsPromised: it was not.
        """
        self.checks += 1
        if not kept:
            print("   " + self.paint("31;1", f"✗ {promise}"), flush=True)
            raise NotAsPromised(promise)
        print("   " + self.paint("32", f"✓ {promise}"), flush=True)


# --- the tree ------------------------------------------------------------------------------------------------------


def number_of_files(tree: Path) -> int:
    """How many files are in a tree."""
    return sum(len(files) for _, _, files in os.walk(tree))


def a_real_tree() -> Path:
    """A tree of a few thousand files that this machine has; else the biggest there is.

    Raises:
        NotAsPromised: there is none with any files in it.
    """
    candidates = [Path(sysconfig.get_path("purelib")), Path("/usr/share/doc"), Path(sysconfig.get_path("stdlib"))]
    sizes = {tree: number_of_files(tree) for tree in candidates if tree.is_dir()}
    fitting = [tree for tree, size in sizes.items() if size in FEW_THOUSAND]
    if fitting:
        return fitting[0]
    if not any(sizes.values()):
        raise NotAsPromised("this machine has a tree of some files to copy")
    return max(sizes, key=lambda tree: sizes[tree])


def deal(tree: Path, parts: Sequence[Path]) -> None:
    """Copy a tree, shared out among several directories: the biggest first, each to the part that has least."""
    sizes = {path: number_of_files(path) if path.is_dir() else 1 for path in tree.iterdir() if not path.is_symlink()}
    totals = dict.fromkeys(parts, 0)
    for part in parts:
        part.mkdir()
    for path in sorted(sizes, key=lambda path: sizes[path], reverse=True):
        part = min(totals, key=lambda part: totals[part])
        totals[part] += sizes[path]
        if path.is_dir():
            shutil.copytree(path, part / path.name, symlinks=True, ignore_dangling_symlinks=True)
        else:
            shutil.copy2(path, part / path.name)


def choose(part: Path) -> list[Path]:
    """What will be in use of a part: one directory with files in it, and two files of other directories.

    Those two levels down and with short paths come first, to be read with ease.
    """
    found = {Path(where): sorted(files) for where, _, files in os.walk(part) if files and Path(where) != part}
    if not found:
        raise NotAsPromised(f"{part.name} has a directory with files in it")
    depth = len(part.parts) + 2
    directory, *others = sorted(
        found, key=lambda path: (len(path.parts) != depth, "_" in str(path), len(str(path)), path)
    )
    return [directory, *(path / found[path][0] for path in others[:2])]


def everything_in(part: Path) -> set[Path]:
    """Every path of a tree, its root included; the empty set if it is gone."""
    if not part.is_dir():
        return set()
    return {part} | {Path(where, name) for where, dirs, files in os.walk(part) for name in dirs + files}


def with_parents(paths: Sequence[Path], part: Path) -> set[Path]:
    """The paths and every directory between them and the root of their part: none of these can be removed empty."""
    return {path for held in paths for path in (held, *held.parents) if path.is_relative_to(part)}


def content(paths: Sequence[Path]) -> dict[Path, str]:
    """The digests of those that are files."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


# --- the demonstration ---------------------------------------------------------------------------------------------


@dataclass
class Demonstration:
    """The temporary directory, what runs in it, and how all of it is put away."""

    screen: Screen
    top: Path
    held: dict[str, list[Path]] = field(default_factory=dict)
    holder: subprocess.Popen[bytes] | None = None

    @property
    def mount(self) -> Path:
        """Where the tree is seen through exclfs."""
        return self.top / "mnt"

    def short(self, path: Path) -> str:
        """A path as it is typed here."""
        return str(path.relative_to(self.top))

    def run(self, *command: str, show: bool = True) -> subprocess.CompletedProcess[str]:
        """Type a command, and show what it says and how it ends.

        Raises:
            NotAsPromised: it hung.
        """
        if show:
            self.screen.typed(command)
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=self.top, stdout=pipe, stderr=pipe, text=True, errors="replace") as process:
            try:
                said, complained = process.communicate(timeout=PATIENCE)
            except BaseException as interruption:
                # Not killed at once: `exclfs mount` takes back what it has begun.
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
                if isinstance(interruption, subprocess.TimeoutExpired):
                    raise NotAsPromised(f"{shlex.join(command)} ends within {PATIENCE} s") from None
                raise
        if show:
            self.screen.output(said + complained)
            if process.returncode:
                self.screen.note(f"(exit status {process.returncode})")
        return subprocess.CompletedProcess(command, process.returncode, said, complained)

    # --- the steps, in their order

    def mount_a_tree(self) -> None:
        """Copy and mount."""
        tree = a_real_tree()
        self.screen.title("A real tree, mounted through exclfs")
        (self.top / "tree").mkdir()
        self.mount.mkdir()
        deal(tree, [self.top / "tree" / name for name in ("find", "rm", "tmpfiles", "rmtree")])
        self.screen.note(f"{number_of_files(self.top / 'tree')} files of {tree}, copied to {self.top}/tree")
        result = self.run("exclfs", "mount", "tree", "mnt", "--log", str(self.top / "exclfs.log"))
        self.screen.check(result.returncode == 0 and self.mount.is_mount(), "mnt is a mount, and it serves")
        self.screen.check(
            number_of_files(self.mount) == number_of_files(self.top / "tree"), "all files are seen through it"
        )

    def start_a_holder(self) -> None:
        """Let one process hold a directory and two files of each part."""
        self.screen.title("A process that uses some of it, and says so")
        self.held = {part.name: choose(part) for part in sorted(self.mount.iterdir())}
        paths = [self.short(path) for held in self.held.values() for path in held]
        command = ["exclfs", "hold", *paths, "--holder", HOLDER, "--reason", REASON, "--", "sleep", "3600"]
        self.screen.typed(command, end=" &")
        self.holder = subprocess.Popen(
            command, cwd=self.top, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        for _ in self.until(f"all of these are held: {', '.join(paths)}"):
            listed = self.run("exclfs", "holds", "mnt", "--json", show=False)
            if listed.returncode == 0 and number_of_holds(json.loads(listed.stdout)) == len(paths):
                break
            if self.holder.poll() is not None:
                raise NotAsPromised("the holder goes on running")
        result = self.run("exclfs", "inuse", paths[0])
        self.screen.check(
            result.returncode == 0 and HOLDER in result.stdout, f"{HOLDER} holds all {len(paths)} of them"
        )

    def let_clean(
        self, name: str, title: str, *command: str, stops_at_the_first: bool = False, rules: Path | None = None
    ) -> None:
        """Send a cleaner to a part, and look at what it has left.

        Args:
            name: the part's directory.
            title: of the step.
            command: the cleaner, which is to remove the whole part.
            stops_at_the_first: the cleaner gives up when one removal fails, so more than what is held survives.
            rules: the cleaner's configuration, to be shown.
        """
        part, held = self.mount / name, self.held[name]
        before, count = content(held), len(everything_in(part))
        self.screen.title(title)
        if rules is not None:
            self.run("cat", self.short(rules))
        result = self.run(*command)
        left = everything_in(part)
        kept = with_parents(held, part)
        self.screen.note(f"left are {len(left)} of {count}, and among them what is held:")
        for path in held:
            self.screen.note(f"  {self.short(path)}{'/' if path.is_dir() else ''}")
        self.screen.check(EBUSY in result.stdout + result.stderr, f"the cleaner was told: {EBUSY}")
        if stops_at_the_first:
            self.screen.check(kept <= left, "what is held is there; this cleaner stopped at its first refusal")
        else:
            self.screen.check(left == kept, "what is left is what is held, and the way to it; all else is gone")
        self.screen.check(content(held) == before, "the held files are what they were, byte for byte")

    def let_tmpfiles_clean(self) -> None:
        """The cleaner that every systemd machine runs once a day; where there is none, say so."""
        if shutil.which("systemd-tmpfiles") is None:
            self.screen.title("systemd-tmpfiles")
            self.screen.note("not installed here: left out")
            return
        rules = self.top / "clean.conf"
        rules.write_text(f"e {self.mount / 'tmpfiles'} - - - 0\n")
        title = "systemd-tmpfiles, with a rule that says: of any age"
        self.let_clean("tmpfiles", title, "systemd-tmpfiles", "--clean", str(rules), rules=rules)

    def ask_why(self) -> None:
        """Ask in the three ways there are: the command, the xattr, the log."""
        directory = self.held["find"][0]
        self.screen.title("Device or resource busy: but why?")
        result = self.run("exclfs", "why", self.short(directory))
        self.screen.check(
            result.returncode == 0 and HOLDER in result.stdout and REASON in result.stdout,
            "exclfs why names the holder and the reason",
        )
        if shutil.which("getfattr") is None:
            self.screen.note("getfattr is not installed here: the xattr is read by Python instead")
            said = os.getxattr(directory, "user.exclfs.why").decode()
            self.screen.output(said)
        else:
            said = self.run("getfattr", "--only-values", "-n", "user.exclfs.why", self.short(directory)).stdout
        self.screen.check(HOLDER in said and REASON in said, "so does the xattr, with no tool of exclfs at all")
        holds = json.loads(os.getxattr(directory, "user.exclfs.holders"))
        self.screen.check(HOLDER in json.dumps(holds), "user.exclfs.holders has the same as JSON")
        pattern = f"refused.*/{directory.name} "
        for _ in self.until("the refusal is logged"):  # the log never delays a refusal: it may come after it
            if self.run("grep", "-m1", pattern, "exclfs.log", show=False).returncode == 0:
                break
        line = self.run("grep", "-m1", pattern, "exclfs.log").stdout
        self.screen.check(
            all(word in line for word in ("find", HOLDER, REASON)), "the log has both sides: who asked, and who holds"
        )

    def kill_the_holder(self) -> None:
        """End the holder without a chance to release anything, and remove the same directory."""
        assert self.holder is not None
        directory = self.held["find"][0]
        self.screen.title("The holder is killed: nothing stays behind")
        result = self.run("rmdir", self.short(directory))
        self.screen.check(result.returncode != 0 and EBUSY in result.stderr, "while it lives, rmdir is refused")
        self.screen.typed(["kill", "-KILL", f"-{self.holder.pid}"])
        self.end_holder()
        result = self.run("rm", "-rf", self.short(directory))
        self.screen.check(
            result.returncode == 0 and not directory.exists(), "the same directory can be removed, at once"
        )
        result = self.run("rm", "-rf", *(self.short(self.mount / name) for name in self.held))
        self.screen.check(result.returncode == 0 and not any(self.mount.iterdir()), "and so can all the rest")
        self.screen.check(not any((self.top / "tree").iterdir()), "it is gone from the tree behind the mount, too")

    def unmount(self) -> None:
        """End the server as anybody would."""
        self.screen.title("Unmount")
        status = self.run("exclfs", "status", "mnt", "--json", show=False)
        result = self.run("exclfs", "umount", "mnt")
        self.screen.check(result.returncode == 0 and not self.mount.is_mount(), "mnt is a plain directory again")
        server = json.loads(status.stdout)["pid"]
        for _ in self.until("the server has ended"):
            if not Path(f"/proc/{server}").exists():
                break
        self.screen.check(True, "the server has ended")

    def play(self) -> None:
        """The whole of it."""
        self.mount_a_tree()
        self.start_a_holder()
        self.let_clean("find", "find -delete", "find", "mnt/find", "-delete")
        self.ask_why()
        self.let_clean("rm", "rm -rf", "rm", "-rf", "mnt/rm")
        self.let_tmpfiles_clean()
        self.let_clean(
            "rmtree",
            "shutil.rmtree",
            "python3",
            "-c",
            "import shutil, sys; shutil.rmtree(sys.argv[1])",
            "mnt/rmtree",
            stops_at_the_first=True,
        )
        self.kill_the_holder()
        self.unmount()

    # --- waiting and putting away

    def until(self, promise: str) -> Iterator[None]:
        """Try again, ten times a second, for as long as patience lasts.

        Raises:
            NotAsPromised: it has run out.
        """
        for _ in range(PATIENCE * 10):
            yield
            time.sleep(0.1)
        raise NotAsPromised(promise)

    def end_holder(self) -> None:
        """Kill the holder and the command it runs."""
        if self.holder is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.holder.pid, signal.SIGKILL)
            self.holder.wait()

    def put_away(self) -> None:
        """Leave nothing behind, whatever happened. Nothing is deleted as long as the mount is there."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.end_holder()
        for command in (["exclfs", "umount", "--force"], ["fusermount3", "-u", "-z"], ["umount", "-l"]):
            if not is_mounted(self.mount):
                break
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run([*command, str(self.mount)], capture_output=True, timeout=PATIENCE, check=False)
        if is_mounted(self.mount):
            raise NotAsPromised(f"{self.mount} can be unmounted; it is left there, and so is {self.top}")
        for _ in self.until(f"{self.top} can be removed"):  # a server that is about to end may still write its log
            shutil.rmtree(self.top, ignore_errors=True)
            if not self.top.exists():
                break


def is_mounted(path: Path) -> bool:
    """Whether something is mounted there; asked of mountinfo, since a dead mount cannot be asked itself."""
    name = str(path).replace("\\", "\\134").replace(" ", "\\040")
    return any(line.split()[4] == name for line in Path("/proc/self/mountinfo").read_text().splitlines())


def number_of_holds(listed: dict[str, Any]) -> int:
    """How many holds `exclfs holds --json` lists."""
    return sum(len(mount["holds"]) for mount in listed["mounts"])


def stop(number: int, _frame: object) -> NoReturn:
    """End on a signal by way of the clean-up."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    """Play the demonstration; 0 if every promise was kept."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["LC_ALL"] = "C.UTF-8"
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    screen = Screen()
    if not Path("/dev/fuse").exists():
        print("demo: there is no /dev/fuse here, so nothing can be mounted", file=sys.stderr)
        return 1
    demonstration = Demonstration(screen, Path(tempfile.mkdtemp(prefix="exclfs-demo-")).resolve())
    try:
        try:
            demonstration.play()
        finally:
            demonstration.put_away()
    except NotAsPromised as broken:
        print(f"\ndemo: not as promised: {broken}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: stopped; nothing is left behind", file=sys.stderr)
        return 130
    print("\n" + screen.paint("1", f"All {screen.checks} promises were kept, and nothing is left behind."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
