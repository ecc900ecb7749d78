"""Overlays with layers on a mount, all features on: as on plain directories, also after both were mounted again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import attrs
import pytest

import exclfs
from harness import Mounted, start
from overlays import STEPS, append, overlay, populate, without_links
from twins import ALICE, ROOT, Twins, User, handle_of, open_handle, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root]


@attrs.frozen
class Variant:
    """What lies on the mount, and with which options the overlay is mounted."""

    name: str
    on_mount: frozenset[str]
    options: str
    stays: bool = True
    """Whether it can be mounted again after the mount was: handles of directories, which only nfs_export keeps in the
    upper layer, are not found again then, and overlayfs takes the directories for gone."""


VARIANTS = [
    Variant("all", frozenset({"upper"}), "index=on,redirect_dir=on,metacopy=on,xino=on"),
    Variant("exported", frozenset({"upper"}), "index=on,nfs_export=on,redirect_dir=on", stays=False),
    Variant("lower", frozenset({"lower"}), "index=on,redirect_dir=on,metacopy=on,xino=on"),
    Variant("lower-exported", frozenset({"lower"}), "index=on,nfs_export=on"),
    Variant("both", frozenset({"upper", "lower"}), "index=on,redirect_dir=on,metacopy=on"),
    Variant("user", frozenset({"upper"}), "userxattr"),
]


def place(variant: Variant, layer: str, mounted: Path, plain: Path) -> Path:
    kind = "lower" if layer == "lower" else "upper"
    return (mounted if kind in variant.on_mount else plain) / f"{variant.name}-{layer}"


def prepare(tree: Path, plain: Path, shadow: Path) -> None:
    """Makes the layers of every overlay, and of each its like."""
    for variant in VARIANTS:
        for mounted, beside in ((tree, plain), (shadow, shadow)):
            lower = place(variant, "lower", mounted, beside)
            lower.mkdir()
            populate(lower)
            os.link(lower / "file", lower / "directory/link")
            for layer in ("upper", "work"):
                place(variant, layer, mounted, beside).mkdir()
            place(variant, "upper", mounted, beside).chmod(0o777)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The tree, and two plain directories: for the layers that are not in it, and for the overlays that are alike."""
    tree, plain, shadow = tmp_path / "tree", tmp_path / "plain", tmp_path / "shadow"
    for directory in (tree, plain, shadow):
        directory.mkdir()
    prepare(tree, plain, shadow)
    return tree, plain, shadow


def mount_all(
    stack: ExitStack, mounted: Mounted, plain: Path, shadow: Path, *, again: bool = False
) -> dict[str, Twins]:
    overlays = {}
    for variant in VARIANTS:
        if again and not variant.stays:
            continue
        merged = []
        for name, tree, beside in (("mount", mounted.path, plain), ("shadow", shadow, shadow)):
            layers = [place(variant, layer, tree, beside) for layer in ("lower", "upper", "work")]
            mounting = overlay(plain / f"merged-{name}-{variant.name}", *layers, variant.options)
            merged.append(stack.enter_context(mounting))
        overlays[variant.name] = Twins(merged[0], place(variant, "upper", mounted.backing, plain), merged[1])
    return overlays


def rename_a_directory() -> None:
    os.rename("moved", "moved again") if os.path.exists("moved") else os.rename("directory", "moved again")


AFTER: list[tuple[User, Callable[[], Any]]] = [
    (ROOT, lambda: Path("file").read_text()),
    (ROOT, lambda: sorted(os.listdir("."))),
    (ROOT, lambda: Path("link").read_text()),
    (ALICE, lambda: append("link")),
    (ROOT, lambda: os.stat("file").st_nlink),
    (ROOT, lambda: os.path.samefile("file", "link")),
    (ROOT, rename_a_directory),
    (ROOT, lambda: Path("second").write_text("where there was a whiteout")),
    (ROOT, lambda: os.unlink("link")),
    (ROOT, lambda: os.mkdir("last")),
    (ALICE, lambda: append("of alice/file")),
    (ROOT, lambda: shutil.rmtree("of alice")),
]


def must_be_equal(overlays: Twins) -> dict[str, Any]:
    found = without_links(snapshot(overlays.mount))
    assert found == without_links(snapshot(overlays.shadow))
    return found


@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "nopassthrough"])
def test_overlays_survive_that_they_and_the_mount_are_mounted_again(
    tmp_path: Path, places: tuple[Path, Path, Path], passthrough: bool
) -> None:
    tree, plain, shadow = places
    before = {}
    with start(tmp_path, source=tree, passthrough=passthrough) as mounted, ExitStack() as stack:
        for name, overlays in mount_all(stack, mounted, plain, shadow).items():
            for user, step in STEPS:
                overlays.both(step, user)
            before[name] = must_be_equal(overlays)
    with start(tmp_path, source=tree, passthrough=passthrough) as mounted:
        for _ in range(2):
            with ExitStack() as stack:
                for name, overlays in mount_all(stack, mounted, plain, shadow, again=True).items():
                    assert must_be_equal(overlays) == before[name], name
        with ExitStack() as stack:
            for overlays in mount_all(stack, mounted, plain, shadow, again=True).values():
                for user, step in AFTER:
                    overlays.both(step, user)
                must_be_equal(overlays)


def test_an_overlay_that_can_be_exported(tmp_path: Path, places: tuple[Path, Path, Path]) -> None:
    """File handles of the overlay lead to its files, as long as there are any."""
    tree, plain, shadow = places

    def through_handles() -> list[Any]:
        handles = {name: handle_of(Path(name)) for name in ("file", "third", "directory/below/file", "new")}
        append("third")  # copied up
        os.rename("directory/below/file", "moved-file")
        os.unlink("new")
        return [outcome(lambda: read(handle)) for handle in handles.values()]  # noqa: B023

    def read(handle: Any) -> bytes:
        fd = open_handle(Path(), handle)
        try:
            return os.read(fd, 100)
        finally:
            os.close(fd)

    def outcome(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except OSError as error:
            return error.strerror

    with start(tmp_path, source=tree) as mounted, ExitStack() as stack:
        overlays = mount_all(stack, mounted, plain, shadow)
        for name in ("exported", "lower-exported"):
            overlays[name].succeed(lambda: Path("new").write_text("new"))
            said = overlays[name].succeed(through_handles)
            assert said == [b"lower file", b"lower third and more", b"lower directory/below/file", "Stale file handle"]


def test_of_a_file_with_two_names_the_one_that_was_seen_first_is_to_stay(tmp_path: Path) -> None:
    """overlayfs asks FUSE for the name by which it saw a file first, also for its others, until it is mounted again."""
    for name in ("lower", "tree"):
        (tmp_path / name).mkdir()
    with start(tmp_path) as mounted:
        upper, work, lower = mounted.setup("upper"), mounted.setup("work"), tmp_path / "lower"
        (upper / "first").write_text("text")
        os.link(upper / "first", upper / "second")
        with overlay(tmp_path / "merged", lower, upper, work) as merged:
            assert (merged / "first").read_text() == (merged / "second").read_text()
            (merged / "first").unlink()
            with pytest.raises(OSError, match="Stale file handle"):
                (merged / "second").read_text()
        with overlay(tmp_path / "merged", lower, upper, work) as merged:
            assert (merged / "second").read_text() == "text"


WORKER = """
import os, random, sys
os.chdir(sys.argv[1])
mine, rounds = sys.argv[2], int(sys.argv[3])
os.mkdir(mine)
for number in range(rounds):
    name = f"{mine}/{number}"
    with open(name, "w") as file: file.write(name)
    os.link(name, name + "-link")
    os.rename(name, f"{mine}/moved{number}")
    with open(f"many/{random.randrange(100)}", "a") as file: file.write("more")  # copied up by whoever is first
    os.mkdir(name)
    os.rename(name, name + "-directory")
    os.stat(f"many/{random.randrange(100)}")
    os.listdir("many" if number % 20 == 0 else mine)
    os.unlink(name + "-link")
    os.rmdir(name + "-directory")
    assert open(f"{mine}/moved{number}").read() == name
"""
ROUNDS = int(os.environ.get("EXCLFS_OVERLAY_ROUNDS", "60"))


def test_nothing_goes_stale_under_load_and_holds_of_the_roots_refuse(
    tmp_path: Path, places: tuple[Path, Path, Path]
) -> None:
    """A held upper or work directory cannot be taken away; the overlay above goes on to work."""
    tree, plain, _ = places
    variant = VARIANTS[0]
    (plain / "all-lower/many").mkdir()
    for number in range(100):
        (plain / f"all-lower/many/{number}").write_text(f"lower {number}")
    with start(tmp_path, source=tree) as mounted, ExitStack() as stack:
        mounted.expect("refused")
        upper, work = mounted.path / "all-upper", mounted.path / "all-work"
        merged = stack.enter_context(overlay(tmp_path / "merged", plain / "all-lower", upper, work, variant.options))
        with exclfs.hold(upper, holder="overlay"), exclfs.hold(work, holder="overlay"):
            workers = [
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, merged, str(number), str(ROUNDS)], stderr=subprocess.PIPE, text=True
                )
                for number in range(3)
            ]
            try:
                while any(worker.poll() is None for worker in workers):
                    for held in (upper, work):
                        with pytest.raises(OSError, match="busy"):
                            held.rename(mounted.path / "elsewhere")
                        with pytest.raises(OSError, match="busy"):
                            held.rmdir()
            finally:
                said = [worker.communicate()[1] for worker in workers]
            assert said == [""] * 3
            assert {worker.returncode for worker in workers} == {0}
        assert sorted(os.listdir(merged / "1")) == sorted(f"moved{number}" for number in range(ROUNDS))


INSIDE = r"""
set -u
cd "$1"
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr merged || exit 3
cd merged
exec 2>&1
echo more >> file; cat file
rm second; ls
echo new > new; ln new link; stat -c '%n %h %u %a' new link
rm -r directory/below; mkdir directory/below; ls directory directory/below
mv directory moved && ls moved
chmod 600 third; touch -d @1000000000.5 third; stat -c '%a %.9Y' third
mkdir -m 2775 setgid; touch setgid/file; stat -c '%a' setgid setgid/file
setfattr -n user.test -v value file; getfattr --only-values -n user.test file; echo
setfacl -m u:0:r file; getfacl -cn file
cd ..; umount merged
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr merged || exit 4
find merged -printf '%P %y %m %n %s\n' | sort
find upper -printf '%P %y %m %n\n' | sort
umount merged
"""


def in_a_user_namespace(directory: Path, user: User) -> str:
    """What the script prints, run by this user as root of a user namespace and a mount namespace of his own."""
    words = ["setpriv", "--reuid", str(user.uid), "--regid", str(user.gid), "--clear-groups"]
    words += ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", INSIDE, "sh", str(directory)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespaces for users: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def layers_of(user: User, directory: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (directory / name).mkdir()
    populate(directory / "lower")
    shutil.rmtree(directory / "lower/directory/below")
    (directory / "lower/directory/below").mkdir()
    (directory / "lower/symlink").unlink()
    subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", str(directory)], check=True)


def test_an_overlay_of_a_user_in_a_user_namespace(world: Path) -> None:
    """With userxattr and no privilege at all, above root's mount."""
    with start(world) as mounted:
        (world / "shadow").mkdir()
        for directory in (mounted.backing, world / "shadow"):
            layers_of(ALICE, directory)
        said = in_a_user_namespace(mounted.path, ALICE)
        assert said == in_a_user_namespace(world / "shadow", ALICE)
        assert "lower file\nmore" in said or "lower filemore" in said


@pytest.fixture
def world() -> Iterator[Path]:
    """A directory that everybody may enter."""
    with TemporaryDirectory(prefix="exclfs-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)
