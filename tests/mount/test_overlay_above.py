"""An overlayfs whose upper and work directories lie on a mount does what one on a plain directory does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from twins import ALICE, ROOT, Twins, User, as_user, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root]


def populate(lower: Path) -> None:
    (lower / "directory/below").mkdir(parents=True)
    for name in ("file", "second", "third", "directory/file", "directory/below/file"):
        (lower / name).write_text(f"lower {name}")
        (lower / name).chmod(0o666)
    for name in (".", "directory", "directory/below"):
        (lower / name).chmod(0o777)
    os.setxattr(lower / "file", "user.test", b"value")
    os.symlink("file", lower / "symlink")


@pytest.fixture(params=["", "redirect_dir=on", "metacopy=on,redirect_dir=on", "index=on"])
def overlays(twins: Twins, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """Two overlays: `mount` above the mount, `shadow` above the plain directory; `behind` is the first's upper."""
    lower = tmp_path / "lower"
    lower.mkdir()
    populate(lower)
    merged = []
    for number, directory in enumerate((twins.mount, twins.shadow)):
        for name in ("upper", "work"):
            as_user(ROOT, lambda: os.mkdir(name), cwd=directory)  # noqa: B023
        os.chmod(directory / "upper", 0o777)
        merged.append(tmp_path / f"merged{number}")
        merged[-1].mkdir()
        options = f"lowerdir={lower},upperdir={directory}/upper,workdir={directory}/work"
        options += f",{request.param}" if request.param else ""
        done = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(merged[-1])], capture_output=True, text=True
        )
        if done.returncode:
            for path in merged[:-1]:
                subprocess.run(["umount", str(path)], check=True)
            assert number == 0 or "unknown" in done.stderr, done.stderr
            pytest.fail(f"no overlay above {directory}: {done.stderr}")
    try:
        yield Twins(merged[0], twins.behind / "upper", merged[1])
    finally:
        for path in merged:
            subprocess.run(["umount", str(path)], check=True)


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


def test_everything_that_an_overlay_does(overlays: Twins) -> None:
    for user, step in STEPS:
        overlays.both(step, user)
        expected, found = snapshot(overlays.shadow), snapshot(overlays.mount)
        assert without_links(found) == without_links(expected)
    assert overlays.both(lambda: sorted(os.listdir("."))) == sorted(os.listdir(overlays.mount))
    whiteout = os.lstat(overlays.behind / "second")
    assert whiteout.st_rdev == 0
    assert oct(whiteout.st_mode).startswith("0o2")


def without_links(found: dict[str, Any]) -> dict[str, Any]:
    """An overlay counts the links of directories in its own way, and not the same twice."""
    return {name: {key: value for key, value in one.items() if key != "links"} for name, one in found.items()}
