"""The command line with all its subcommands imported, for forks of it (tests/program.py)."""

from __future__ import annotations

import importlib

from exclfs.cli import advice, commands, helper, main, output

__all__ = ["advice", "helper", "main", "output"]

for _name in commands.COMMANDS:
    importlib.import_module(f"exclfs.cli.{_name}")
commands.application("status")  # which imports the parts of cyclopts
