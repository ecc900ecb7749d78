"""One table of calls, victims, directories and users: on every filesystem and kind of mount all as beside it.

In a plain run each filesystem and kind of mount gets a part of the table of its own, in which every call is.
EXCLFS_CONFORMANCE=N makes every call meet every victim everywhere, each pair in N combinations of a directory and a
user (64 are all); `make filesystems` does.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from calls import CALLS
from comparing import Case, Comparison, Difference, table
from victims import USERS

import filesystems
import needs
from harness import start
from twins import Twins
from user_mounts import NOBODY, mounted_by_nobody

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.timeout(3600)]

EACH = int(os.environ.get("EXCLFS_CONFORMANCE", "0"))
PARTS = 96
"""With EACH of 0, what is tried on one filesystem by one kind of mount is such a part of the pairs."""
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "nopassthrough": {"passthrough": False},
    "ask_always": {"ask_always": True},
}
SECONDARY = {"nopassthrough", "ask_always"}
"""Kinds of mounts that in a plain run are tried on ext4 alone."""
USERS_OWN = {"owner": NOBODY, "member": NOBODY}
"""In the mount of an ordinary user that one is alone: owner of the victim, or a member of its group."""


@pytest.fixture(scope="module", params=filesystems.KINDS)
def each_filesystem(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A new filesystem of each kind."""
    kind = request.param
    if filesystems.kernel_lacks(kind):
        pytest.skip(f"the kernel has no {kind}")
    if obstacle := filesystems.obstacle(kind):
        needs.unmet(obstacle)
    with filesystems.filesystem(kind) as place:
        yield kind, place


@contextmanager
def compared(place: Path, name: str, **options: Any) -> Iterator[Comparison]:
    """A mount of root's there, beside its twin."""
    directory = place / name
    directory.mkdir()
    with start(directory, **options) as mounted:
        (directory / "shadow").mkdir()
        for top in (mounted.backing, directory / "shadow"):
            top.chmod(0o777)
        yield from at_work(Comparison(Twins(mounted.path, mounted.backing, directory / "shadow"), USERS))


@contextmanager
def compared_users_mount(place: Path, name: str) -> Iterator[Comparison]:
    """A mount of an ordinary user's there, beside a twin that is nosuid and nodev as well."""
    directory = place / name
    directory.mkdir()
    shadow = directory / "shadow"
    with mounted_by_nobody(directory) as mounted:
        subprocess.run(["mount", "--bind", shadow, shadow], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,nosuid,nodev", shadow], check=True)
            yield from at_work(Comparison(Twins(mounted.path, mounted.backing, shadow), USERS_OWN, NOBODY))
        finally:
            subprocess.run(["umount", shadow], check=True)


def at_work(comparison: Comparison) -> Iterator[Comparison]:
    """Until all is compared."""
    try:
        yield comparison
    finally:
        comparison.leave()


def cases_for(kind: str, number: int, users: dict[str, Any]) -> list[Case]:
    """What is tried by this kind of mount on the filesystem of that number."""
    if EACH:
        return [case for case in table(EACH) if case.user in users]
    cases = table(1, number * 4 + [*KINDS, "user"].index(kind), PARTS)
    return cases if users is USERS else [attrs.evolve(case, user=own(case.user)) for case in cases]


def is_known(kind: str, case: Case) -> bool:
    """Of a limit that limits.md tells and another test shows."""
    return kind == "user" and case.call == "map" and case.victim in {"setuid", "setgid"}


def own(user: str) -> str:
    """Which of its two parts an ordinary user plays."""
    return "owner" if user in {"root", "owner"} else "member"


def told(differences: list[Difference]) -> str:
    """The first of them."""
    return "\n".join([f"{len(differences)} differences:", *(str(one) for one in differences[:40])])


@pytest.mark.kinds
@pytest.mark.parametrize("kind", [*KINDS, "user"])
def test_no_call_tells_the_mount_from_the_tree(
    each_filesystem: tuple[str, Path], kind: str, request: pytest.FixtureRequest
) -> None:
    filesystem, place = each_filesystem
    if kind in SECONDARY and filesystem != "ext4" and not EACH:
        pytest.skip("only at length: make filesystems")
    number = filesystems.KINDS.index(filesystem)
    users = USERS_OWN if kind == "user" else USERS
    making = compared_users_mount(place, kind) if kind == "user" else compared(place, kind, **KINDS[kind])
    with making as comparison:
        cases = [case for case in cases_for(kind, number, users) if not is_known(kind, case)]
        differences = comparison.differences(cases)
    said = f"{filesystem}, {kind}: {len(cases)} cases, {comparison.compared} comparisons"
    said += "".join(f"\nonly once: {difference}" for difference in comparison.once)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{said}")
    assert comparison.compared > 50 * len(cases), "something was compared"
    assert not differences, told(differences)


def test_a_mirror_that_keeps_setuid_bits_is_told_from_the_tree(tmp_path: Path, untrue: Path) -> None:
    """Of the stranger's calls on such files those that write differ, and no others."""
    cases = [Case(call, "setuid", "everybody's", "stranger") for call in CALLS]
    with compared(tmp_path, "mount", passthrough=False, environment={"PYTHONPATH": str(untrue)}) as comparison:
        differing = {difference.case.call for difference in comparison.differences(cases)}
    assert {"write", "append", "truncate 2", "open wronly|trunc", "copy_file_range"} <= differing
    assert not {call for call in differing if call.startswith(("chmod", "rename", "mk", "stat", "utime"))}
