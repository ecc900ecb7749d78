"""What the documentation shows can be typed, and what it links to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from markdown_it import MarkdownIt

from exclfs.cli import commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PROMPT = re.compile(r"^[$#] (?:sudo )?(?:\S*/)?exclfs (.*)$")


def tokens(page: Path) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        yield token
        yield from token.children or ()


def shown(language: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for token in tokens(page):
            if token.type == "fence" and token.info == language:
                yield page, token.content


def typed() -> Iterator[tuple[str, str]]:
    for page, content in shown("console"):
        for line in content.replace("\\\n", " ").splitlines():
            if found := PROMPT.match(line):
                yield page.name, found[1]


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for token in tokens(page):
            target = str(token.attrs.get("href", "")) if token.type == "link_open" else ""
            if target and "://" not in target and not target.startswith("#"):
                yield page, target.partition("#")[0]


@pytest.mark.parametrize(("page", "line"), sorted(set(typed())))
def test_a_command_that_is_shown_can_be_typed(page: str, line: str) -> None:
    words = shlex.split(re.split(r"\s[|&>](?:\s|$)", line)[0], comments=True)
    command = None
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], tuple(words[at + 1 :])
    if words[0] not in commands.COMMANDS:
        assert words[0] in ("--version", "--help") or "-o" in words or len(words) == 2  # what mount(8) runs
        return
    commands.parse(words, command)


@pytest.mark.parametrize(("page", "code"), list(shown("python")), ids=lambda value: getattr(value, "name", ""))
def test_python_that_is_shown_is_python(page: Path, code: str) -> None:
    compile(code, str(page), "exec")


@pytest.mark.parametrize(("page", "target"), list(links()), ids=str)
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"


def test_there_is_something_to_look_at() -> None:
    assert len(PAGES) > 10
    assert list(typed())
    assert list(links())
