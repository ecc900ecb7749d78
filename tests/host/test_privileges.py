from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from exclfs.host import owners, privileges
from predicted import CONTAINED, in_a_child
from predicted import become as becomes
from twins import ALICE, ROOT, User, acl_for, as_user

pytestmark = pytest.mark.root


def in_place_of(user: User, what: str, *arguments: object) -> object:
    """What this function of privileges says in a process of the user's."""

    def run() -> dict[str, object]:
        if user != ROOT:
            becomes(user)
        return {"said": getattr(privileges, what)(*arguments)}

    return in_a_child(run)["said"]


@pytest.mark.parametrize("name", ["CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"])
def test_a_capability_is_of_the_process_and_not_of_the_uid(name: str) -> None:
    assert in_place_of(ROOT, "capable", name) is True
    assert in_place_of(ALICE, "capable", name) is False
    assert in_place_of(CONTAINED, "capable", name) is True


def test_a_capability_is_of_the_thread() -> None:
    assert privileges.capable("CAP_FOWNER")
    assert as_user(ALICE, lambda: privileges.capable("CAP_FOWNER")) is False
    assert privileges.capable("CAP_FOWNER")


def test_a_capability_reaches_whom_the_namespace_has(tmp_path: Path) -> None:
    (tmp_path / "hers").touch()
    (tmp_path / "roots").touch()
    os.chown(tmp_path / "hers", ALICE.uid, ALICE.gid)
    descriptors = [os.open(tmp_path / name, os.O_PATH) for name in ("hers", "roots")]
    try:

        def reaches() -> dict[str, object]:
            becomes(CONTAINED)
            return {"said": [privileges.capable_over("CAP_FOWNER", os.stat(each)) for each in descriptors]}

        assert in_a_child(reaches) == {"said": [True, False]}
        assert all(privileges.capable_over("CAP_FOWNER", os.stat(each)) for each in descriptors)
    finally:
        for each in descriptors:
            os.close(each)


def test_whoever_is_called_so_is_unmapped_only_in_a_namespace() -> None:
    overflow = privileges.overflow_id("uid")
    assert in_place_of(ROOT, "is_unmapped", "uid", overflow) is False
    assert in_place_of(CONTAINED, "is_unmapped", "uid", overflow) is True
    assert in_place_of(CONTAINED, "is_unmapped", "uid", 0) is False


def test_the_kernel_says_what_may_be_done(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir(mode=0o755)
    descriptor = os.open(directory, os.O_PATH)
    try:

        def writing() -> int:
            return privileges.refusal(descriptor, os.W_OK | os.X_OK)

        assert writing() == 0
        assert as_user(ALICE, writing) == errno.EACCES
        assert not owners.has_acl(descriptor)
        os.setxattr(directory, "system.posix_acl_access", acl_for(ALICE.uid, 7))
        assert owners.has_acl(descriptor)
        assert as_user(ALICE, writing) == 0
    finally:
        os.close(descriptor)


def test_owners_are_named_as_far_as_they_have_names(tmp_path: Path) -> None:
    thing = tmp_path / "thing"
    thing.touch(mode=0o640)
    assert owners.owned(thing.stat()) == "owned by root, group root, mode 0640"
    os.chown(thing, 61999, 61998)
    thing.chmod(0o4751)
    assert owners.owned(thing.stat()) == "owned by uid 61999, group gid 61998, mode 4751"
