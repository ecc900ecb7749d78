"""What is done to an overlayfs, to see that one above a mount does what one above plain directories does."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twins import ALICE, ROOT, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def populate(lower: Path) -> None:
    (lower / "directory/below").mkdir(parents=True)
    for name in ("file", "second", "third", "directory/file", "directory/below/file"):
        (lower / name).write_text(f"lower {name}")
        (lower / name).chmod(0o666)
    for name in (".", "directory", "directory/below"):
        (lower / name).chmod(0o777)
    os.setxattr(lower / "file", "user.test", b"value")
    os.symlink("file", lower / "symlink")


@contextmanager
def overlay(merged: Path, lower: Path, upper: Path, work: Path, options: str = "") -> Iterator[Path]:
    """An overlay, mounted on a directory that is made."""
    merged.mkdir(exist_ok=True)
    words = f"lowerdir={lower},upperdir={upper},workdir={work}" + (f",{options}" if options else "")
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", words, str(merged)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"no overlay above {upper}: {done.stderr}"
    try:
        yield merged
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def append(name: str) -> None:
    with open(name, "a") as file:
        file.write(" and more")


STEPS: list[tuple[User, Callable[[], Any]]] = [
    (ROOT, lambda: os.mkdir("new")),
    (ALICE, lambda: os.mkdir("of alice")),
    (ALICE, lambda: Path("of alice/file").write_text("of alice")),
    (ALICE, lambda: append("file")),  # copy-up
    (ALICE, lambda: append("directory/below/file")),  # copy-up of directories
    (ROOT, lambda: os.unlink("second")),  # whiteout
    (ROOT, lambda: os.rename("third", "renamed")),
    (ROOT, lambda: os.rename("renamed", "directory/file")),
    (ROOT, lambda: shutil.rmtree("directory/below")),
    (ROOT, lambda: os.mkdir("directory/below")),  # opaque
    (ROOT, lambda: os.chmod("directory", 0o750)),
    (ROOT, lambda: os.rename("directory", "moved")),  # EXDEV unless redirect_dir
    (ROOT, lambda: os.link("file", "link")),
    (ROOT, lambda: os.setxattr("file", "user.more", b"more")),
    (ROOT, lambda: os.chown("symlink", 5, 5, follow_symlinks=False)),
    (ALICE, lambda: os.truncate("file", 3)),
    (ALICE, lambda: os.close(os.open(".", os.O_TMPFILE | os.O_RDWR))),
    (ROOT, lambda: sorted(os.listdir("."))),
    (ROOT, lambda: Path("link").read_text()),
]


def without_links(found: dict[str, Any]) -> dict[str, Any]:
    """An overlay counts the links of directories in its own way, and not the same twice."""
    return {name: {key: value for key, value in one.items() if key != "links"} for name, one in found.items()}
