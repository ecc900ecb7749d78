"""A mirror that is not true, to show that the tests here see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness import SANITIZED, build_variant

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def untrue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where to import an exclfs from that leaves setuid bits on what a stranger writes to."""
    if SANITIZED:
        pytest.skip("builds its own mirror")
    return build_variant(tmp_path_factory.mktemp("untrue"), "EXCLFS_TEST_KEEPS_SETUID")
