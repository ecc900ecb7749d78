"""Whose an inode is, and whom it lets do what, in words."""

from __future__ import annotations

import grp
import os
import pwd
import stat

from exclfs.host.names import printable


def user(uid: int) -> str:
    """The name of a user; `uid 61001` of one without."""
    try:
        return printable(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return f"uid {uid}"


def owned(status: os.stat_result) -> str:
    """`owned by root, group adm, mode 0750`."""
    return f"owned by {user(status.st_uid)}, group {_group(status.st_gid)}, mode {stat.S_IMODE(status.st_mode):04o}"


def has_acl(descriptor: int) -> bool:
    """Whether there is more to its permissions than the mode: an access control list (acl(5)). O_PATH will do."""
    try:
        return bool(os.getxattr(f"/proc/self/fd/{descriptor}", "system.posix_acl_access"))
    except OSError:
        return False


def _group(gid: int) -> str:
    try:
        return printable(grp.getgrgid(gid).gr_name)
    except (KeyError, OverflowError):
        return f"gid {gid}"
