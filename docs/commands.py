"""The commands that README.md and docs/ give a reader: every `ebmtraj ...` line of their code blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name != "cli.md"))
INLINE = re.compile(r"`(ebmtraj [^`]+)`")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


class Block(NamedTuple):
    """A code block of a page."""

    page: Path
    language: str
    text: str


class Command(NamedTuple):
    """A command line of a page, without `ebmtraj`, as a shell would split it."""

    page: Path
    words: tuple[str, ...]


def blocks() -> Iterator[Block]:
    """Every code block of every page."""
    for page in PAGES:
        for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            yield Block(page, language, text)


def commands() -> Iterator[Command]:
    """Every command in a code block of a page."""
    for page, language, text in blocks():
        if language in ("", "sh", "bash", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith("ebmtraj "):
                    yield Command(page, tuple(shlex.split(line, comments=True))[1:])


def inline_commands() -> Iterator[Command]:
    """Those in running text and under tables, between backticks; not those that leave something out or name no command."""
    for page in PAGES:
        for said in INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            words = tuple(shlex.split(said.replace("\n", " ")))[1:]
            if not any("..." in word or word.isupper() for word in words):
                yield Command(page, words)
