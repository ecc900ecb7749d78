"""What the kit offers by name, and what its import costs those who do not use it."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

CODE: Final = """
import sys
import exclfs.testing, exclfs.testing.plugin
heavy = {"trio", "pyfuse3", "cattrs", "rich", "exclfs.mirror", "exclfs.client", "exclfs.testing.mounting"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
for name in exclfs.testing.__all__:
    getattr(exclfs.testing, name)
assert "exclfs.testing.mounting" in sys.modules
"""


def test_the_kit_is_cheap_to_import_and_has_its_names() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)
