"""The command `recovery doctor`, which says what is there, what is missing and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.client.address import DEFAULT_FOLDER
from service.commands.options import EXIT_FAILED, ApiKey, AsJson, Url, examples, print_json
from service.stack.doctor import Finding, examine

EXAMPLES = examples("recovery doctor", "recovery doctor --url https://recovery.example.org --json")
_MARKS = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "wrong": "[red]wrong[/]"}


def doctor(
    data: Annotated[Path, typer.Option(help="Folder of a `recovery up` whose stores are looked at")] = DEFAULT_FOLDER,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Look at this machine, the service, its workers and its stores, and say what to fix.

    The exit status is 1 if something is wrong.
    """
    console = Console(highlight=False, soft_wrap=True)
    found = []
    with Console(stderr=True).status("looking"):
        for finding in examine(url, api_key, data):
            found.append(finding)
            if not as_json:
                _print(console, finding)
    wrong = sum(finding.state == "wrong" for finding in found)
    if as_json:
        print_json({"wrong": wrong, "findings": [finding.model_dump() for finding in found]})
    else:
        told = f"{wrong} of {len(found)} are wrong" if wrong else f"all {len(found)} are well"
        console.print(told, style="bold")
    if wrong:
        raise typer.Exit(EXIT_FAILED)


def _print(console: Console, finding: Finding) -> None:
    console.print(f"{_MARKS[finding.state]} {finding.area:8}", end="")
    console.print(f"{finding.what}: {finding.detail}", markup=False)
    if finding.remedy is not None:
        console.print(
            f"               → {finding.remedy}", markup=False, style="bold" if finding.state == "wrong" else ""
        )
