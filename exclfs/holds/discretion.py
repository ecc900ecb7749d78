"""What is told of a process to whom.

The rule that this module owns: who a holder is, is for everybody who can reach what it holds; which program it runs is
for root and its own user, as the kernel has it (readlink(2) of /proc/PID/exe, proc_pid_exe(5)).
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from attrs import evolve, fields, has

from exclfs.holds.holder import Process

T = TypeVar("T")


def as_seen_by(uid: int, value: T) -> T:
    """The value, whatever processes it tells of, as this user may see it. The same object if that is all of it."""
    if uid == 0:
        return value
    if isinstance(value, Process):
        own = value.uid if value.own_uid is None else value.own_uid
        return value if own == uid or value.exe is None else evolve(value, exe=None)
    seen: Any = value
    if isinstance(value, tuple):
        items = tuple(as_seen_by(uid, item) for item in value)
        if any(new is not old for new, old in zip(items, value, strict=True)):
            seen = items
    elif has(type(seen)):
        before = {field.name: getattr(value, field.name) for field in fields(type(seen))}
        after = {name: as_seen_by(uid, part) for name, part in before.items()}
        changed = {name: part for name, part in after.items() if part is not before[name]}
        if changed:
            seen = evolve(seen, **changed)
    return cast("T", seen)
