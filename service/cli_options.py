"""What the files of the `recovery` command share: options, and how a list is shown."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.client import KEY_VARIABLE, URL_VARIABLE

Url = Annotated[
    str,
    typer.Option(envvar=URL_VARIABLE, help="Where the service listens", show_default=True, rich_help_panel="Server"),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar=KEY_VARIABLE,
        help="Where the service asks for one; other users of this machine see what is given here, not the variable",
        show_envvar=True,
        rich_help_panel="Server",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]


def show(
    found: list[dict[str, Any]] | dict[str, Any], headings: list[str], rows: list[list[str]], *, as_json: bool
) -> None:
    """Print what was found: as it came for scripts, as a table for people."""
    console = Console(highlight=False)
    if as_json:
        console.print(json.dumps(found, indent=2), markup=False, soft_wrap=True)
        return
    first, *others = headings
    table = Table()
    table.add_column(first, no_wrap=True)  # an id is to be copied
    for heading in others:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    console.print(table)
