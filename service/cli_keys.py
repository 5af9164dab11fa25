"""`recovery keys`: make, list and revoke API keys. Works on the file of hashes; needs no running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.keys import KeyFile, Scope

KEYS_FILE_VARIABLE = "RECOVERY_KEYS_FILE"

application = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
File = Annotated[
    Path,
    typer.Option(
        "--file", envvar=KEYS_FILE_VARIABLE, help="Where the hashes are; by default those of `recovery up`'s own folder"
    ),
]
_DEFAULT_FILE = Path("recovery-data") / "keys.json"


@application.command()
def create(
    name: Annotated[str, typer.Argument(help="For people: who or what will use it")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do, once for each scope; read, sample and train if absent. admin is all"),
    ] = None,
    file: File = _DEFAULT_FILE,
) -> None:
    """Make a key and print it, once: only its hash is kept. From the first key on every request needs one."""
    text, key = KeyFile(file).create(name, scope or [Scope.read, Scope.sample, Scope.train])
    print_line = Console(highlight=False, soft_wrap=True, markup=False).print
    print_line(text)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    errors.print(f"key {key.id} may {', '.join(key.scopes)}; it is not shown again. Its hash is in {file}")


@application.command("list")
def list_keys(file: File = _DEFAULT_FILE) -> None:
    """List keys: their ids, never their secrets."""
    table = Table("id", "name", "scopes", "made")
    for key in KeyFile(file).read():
        table.add_row(key.id, key.name, " ".join(key.scopes), f"{key.created_at:%Y-%m-%d %H:%M} UTC")
    Console(highlight=False, markup=False).print(table)


@application.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Its id; `recovery keys list` shows them")], file: File = _DEFAULT_FILE
) -> None:
    """Take a key away; a running service refuses it from its next request on."""
    key = KeyFile(file).revoke(key_id)
    Console(highlight=False, soft_wrap=True, markup=False).print(f"revoked {key.id} ({key.name})")
