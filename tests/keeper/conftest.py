"""What every test of the keeper has."""

from __future__ import annotations

import pytest
from scene import Scene


@pytest.fixture
def scene() -> Scene:
    """A scene of its own."""
    return Scene()
