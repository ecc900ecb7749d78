"""`python -m exclfs.cli` is the same as `exclfs`."""

from __future__ import annotations

import sys

from exclfs.cli import main

sys.exit(main())
