"""`recovery delete job`, `recovery delete model` and `recovery rename`: what is taken away, and what it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from service.client import Recovery
from service.client.requests import ModelChanges
from service.commands.options import (
    MODELS_PANEL,
    ApiKey,
    AsJson,
    JobId,
    Url,
    complete_model,
    examples,
    job_id_of,
    model_at,
    print_json,
    print_line,
)

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]
ModelName = Annotated[
    str,
    typer.Argument(
        help="Its id or name; `recovery models` lists them", autocompletion=complete_model, show_default=False
    ),
]

application = typer.Typer()
_delete = typer.Typer(help="Delete a job or a model, for good.", no_args_is_help=True)
application.add_typer(_delete, name="delete", rich_help_panel=MODELS_PANEL)


@_delete.command("job", epilog=examples("recovery delete job 01JD3Z6M3Q4R5S6T7V8W9X0Y1Z", "recovery delete job JOB -y"))
def delete_job(
    job_id: JobId, yes: Yes = False, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Delete a job that has ended, with its events, sample grids and files.

    The model that it trained stays, unless it has no checkpoint.
    """
    with Recovery(url, api_key=api_key) as client:
        job = client.job(job_id_of(client, job_id))
        _confirm(f"Delete {job.kind} job {job.name or job.id} with its events and files?", yes=yes)
        job.delete()
    _deleted(job.id, as_json=as_json)


@_delete.command("model", epilog=examples("recovery delete model 01JD3Z6M3QMDE0N5K7C2B8F4GH"))
def delete_model(
    model: ModelName, yes: Yes = False, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Delete a model that no waiting or running job uses, with its checkpoints and calibrations."""
    with Recovery(url, api_key=api_key) as client:
        found = client.model(model_at(client, model))
        size = f"{len(found.checkpoints)} checkpoints, {sum(one.size_bytes for one in found.checkpoints) / 1e6:.1f} MB"
        _confirm(f"Delete model {found.name or found.id}: {size}?", yes=yes)
        found.delete()
    _deleted(found.id, as_json=as_json)


@application.command(
    rich_help_panel=MODELS_PANEL,
    epilog=examples("recovery rename MODEL wide-digits", "recovery rename MODEL --tag paper --tag seed-0"),
)
def rename(
    model: ModelName,
    name: Annotated[str | None, typer.Argument(help="Its new name; stays if absent", show_default=False)] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="In place of all that it has; may be repeated")
    ] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take all its tags away")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Name a model, and tag it."""
    changes: ModelChanges = {}
    if name is not None:
        changes["name"] = name
    if tags or no_tags:
        changes["tags"] = tags or []
    if not changes:
        raise typer.BadParameter("give a name, --tag or --no-tags")
    with Recovery(url, api_key=api_key) as client:
        found = client.change_model(model_at(client, model), **changes)
    if as_json:
        print_json(found)
    else:
        print_line(" · ".join([found.name or found.id, *found.tags]))


def _confirm(question: str, *, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True, err=True)


def _deleted(found_id: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"deleted": found_id})
    else:
        print_line(f"deleted {found_id}")
