"""Fenced blocks of the documents: what they are, and what is done with each.

    ```sh                 commands, run by bash
    ```console            a transcript: lines after `$ ` are run, what follows them is compared with the answer
    ```python             run by one interpreter a page
    ```console not-run="the reason"    a person's business, or another machine's; every reason is listed in REASONS
    ```text, ```json ...  data, not run

A shown answer must be in the real one, from its first to its last word, where `…` stands for anything, a number for any
number and an id for any id; the ids of a page then stand for the real ones in all its later commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("sh", "console", "python")
DATA = ("text", "json", "toml", "yaml", "")
REASONS = {
    "installs the project": "the tests run in an installed one",
    "takes minutes": "`make demo`, `make test` and the benchmarks are run by themselves",
    "runs until Ctrl-C": "the pages run beside a stack that is up already",
    "opens the service to others": "a test must not",
    "needs a cluster": "there is none here",
    "needs the hub": "no test reaches it",
    "needs a notebook": "docs/notebook.ipynb is executed by a test of its own",
}
_FENCE = re.compile(r"^```(\w*)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
_KEY = r"rk_[a-z2-9]{8}_\S+"
_TOKEN = re.compile(
    rf"(?P<any>…)|(?P<id>{_ID})|(?P<key>{_KEY})|(?P<time>\d{{4}}-\d\d-\d\dT[\d:.]+Z?)"
    r"|(?P<status>\"status\": ?\d{3})|(?P<number>[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?)|(?P<space>\s+)"
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    not_run: str | None
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a transcript and what it is said to answer."""

    text: str
    answer: str


def blocks_of(page: Path) -> Iterator[Block]:
    """All of a page. Raises ValueError for an info string that is not understood."""
    content = page.read_text()
    for found in _FENCE.finditer(content):
        line = content.count("\n", 0, found.start()) + 1
        info = found[2] or ""
        reason = re.fullmatch(r'not-run="([^"]+)"', info)
        if info and reason is None:
            raise ValueError(f'{page.name}:{line}: {info!r} is not understood; expected not-run="REASON"')
        yield Block(page, line, found[1], reason[1] if reason else None, found[3])


def commands_of(text: str) -> list[Command]:
    """Those of a transcript. A line that ends in a backslash goes on."""
    commands: list[Command] = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        end = next(index for index, line in enumerate(lines) if not line.endswith("\\")) + 1
        commands.append(Command("\n".join(lines[:end]), "\n".join(lines[end:]).strip()))
    return commands


def pattern_of(answer: str) -> tuple[re.Pattern[str], list[str]]:
    """(what a real answer must hold, the ids of the shown one in the order of the pattern's groups)."""
    pieces, ids, at = [], [], 0
    for token in _TOKEN.finditer(answer):
        pieces.append(re.escape(answer[at : token.start()]))
        at = token.end()
        match token.lastgroup:
            case "any":
                pieces.append(".*?")
            case "id":
                ids.append(token[0])
                pieces.append(f"({_ID})")
            case "key":
                pieces.append(_KEY)
            case "time":
                pieces.append(r"[\dT:.\-]+Z?")
            case "status":
                pieces.append(re.escape(token[0]).replace(r"\ ", r"\s*"))
            case "number":
                pieces.append(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
            case _:
                pieces.append(r"\s*")
    pieces.append(re.escape(answer[at:]))
    return re.compile("".join(pieces), re.DOTALL), ids
