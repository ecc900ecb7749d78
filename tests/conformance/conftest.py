"""A mirror that is not true, to show that the tests here see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness import SANITIZED, variant

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def untrue() -> Path:
    """Where to import an exclfs from that leaves setuid bits on what a stranger writes to."""
    if SANITIZED:
        pytest.skip("builds its own mirror")
    return variant("EXCLFS_TEST_KEEPS_SETUID")
