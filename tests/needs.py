"""What a test needs of the machine. Where it is missing, the test is skipped and says why; CI must have it."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

CI = bool(os.environ.get("CI"))


def unmet(what: str) -> NoReturn:
    """Ends the test, for want of this."""
    if CI:
        pytest.fail(f"{what}, and CI must have it", pytrace=False)
    pytest.skip(what)


def programs(*names: str) -> None:
    """These in PATH, or by their own paths."""
    for name in names:
        if not shutil.which(name):
            unmet(f"needs {name}")
