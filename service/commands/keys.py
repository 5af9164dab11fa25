"""The commands `recovery keys ...`, which make, list and revoke API keys.

They work on the file of hashes and need no running service.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.client.address import DEFAULT_FOLDER
from service.commands.options import AsJson, examples, print_json, print_line, print_note, print_table
from service.door.keys import Key, KeyFile, Scope

KEYS_FILE_VARIABLE = "RECOVERY_KEYS_FILE"

application = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
File = Annotated[
    Path,
    typer.Option(
        "--file",
        envvar=KEYS_FILE_VARIABLE,
        help="File with the hashes of the keys; by default the one in `recovery up`'s own folder",
    ),
]
_DEFAULT_FILE = DEFAULT_FOLDER / "keys.json"


@application.command(epilog=examples("recovery keys create laptop", "recovery keys create viewer --scope read"))
def create(
    name: Annotated[str, typer.Argument(help="A name for people, such as who or what will use the key")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="Scope of the key; may be repeated. read, sample and train if absent; admin is all"),
    ] = None,
    file: File = _DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it this once; only its hash is kept. From the first key on every request needs one."""
    text, key = KeyFile(file).create(name, scope or [Scope.read, Scope.sample, Scope.train])
    if as_json:
        print_json({"key": text, **_public(key)})
        return
    print_line(text)
    print_note(f"key {key.id} may {', '.join(key.scopes)}; it is not shown again. Its hash is in {file}")


@application.command("list")
def list_keys(file: File = _DEFAULT_FILE, as_json: AsJson = False) -> None:
    """List the keys by their ids, never their secrets."""
    keys = KeyFile(file).read()
    if as_json:
        print_json({"keys": [_public(key) for key in keys]})
        return
    rows = [[key.id, key.name, " ".join(key.scopes), f"{key.created_at:%Y-%m-%d %H:%M} UTC"] for key in keys]
    print_table(["id", "name", "scopes", "made"], rows)


@application.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key; `recovery keys list` shows all ids")],
    file: File = _DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Revoke a key; a running service refuses it from its next request on."""
    key = KeyFile(file).revoke(key_id)
    if as_json:
        print_json({"revoked": _public(key)})
    else:
        print_line(f"revoked {key.id} ({key.name})")


def _public(key: Key) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"sha256"})
