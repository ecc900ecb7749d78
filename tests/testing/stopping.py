"""What the tests of stopped programs have in common: a tree that stands for a mount, and programs that try it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from exclfs.gating import Selection
from exclfs.testing.programs import Program

if TYPE_CHECKING:
    from pathlib import Path


def python(tree: Path, code: str, *arguments: str, **options: Any) -> Program:
    """A Python program, not yet running, that works in this tree, with nothing mounted."""
    return Program(
        [sys.executable, "-I", "-S", "-c", code, *arguments],
        root=options.pop("root", tree),
        backing=options.pop("backing", tree),
        **{"cwd": tree, **options},
    )


def selection(operations: str | tuple[str, ...], pattern: str = "**", **more: Any) -> Selection:
    """What a gate is for."""
    return Selection(operations=operations, pattern=pattern, **more)
