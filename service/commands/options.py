"""What the modules of the `recovery` command share: options, completion, examples, and how an answer is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from model.presets import PRESET_SUMMARIES
from service.client import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE, ClientError, Recovery
from worker.ids import InvalidId, checked_id

RUN_PANEL = "Run the service"
JOBS_PANEL = "Train"
MODELS_PANEL = "Use models"
DATA_PANEL = "Bring data and models"

EXIT_FAILED = 1
EXIT_UNREACHABLE = 3
EXIT_JOB_FAILED = 4
EXIT_INTERRUPTED = 130

Url = Annotated[
    str | None,
    typer.Option(
        envvar=URL_VARIABLE,
        help=f"Address of the service; else the one in ~/.config/recovery/config.toml, else {DEFAULT_URL}",
        rich_help_panel="Server",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar=KEY_VARIABLE,
        help="API key, if the service asks for one; other users of this machine can see it here, but not in the "
        "variable or the file",
        show_envvar=True,
        rich_help_panel="Server",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]


def examples(*lines: str) -> str:
    """Return the text below the help of a command, with one example a line."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


def print_line(text: object) -> None:
    """Print one line of the answer as it is, however narrow the terminal."""
    Console(highlight=False, soft_wrap=True).print(str(text), markup=False)


def print_note(text: object) -> None:
    """Print one line for people on standard error, because standard output is for what scripts take."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(str(text), markup=False, style="dim")


def print_json(found: BaseModel | Mapping[str, Any] | Sequence[BaseModel]) -> None:
    """Print an answer as JSON, for scripts."""
    match found:
        case BaseModel():
            plain: object = found.model_dump(mode="json")
        case Mapping():
            plain = found
        case _:
            plain = [one.model_dump(mode="json") for one in found]
    typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows for people; the first column is never cut, since it is to be copied."""
    first, *others = headings
    table = Table()
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def complete_preset(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a preset."""
    return [(name, told) for name, told in PRESET_SUMMARIES.items() if name.startswith(incomplete)]


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of a job of the service that the environment or the configuration file names."""
    try:
        with Recovery() as client:
            found = [(job.id, f"{job.status} {job.name or job.kind}") for job in client.jobs()]
    except ClientError:  # an error has no place on the line that somebody is typing
        return []
    return [(job_id, told) for job_id, told in found if job_id.startswith(incomplete)]


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of a model of that service."""
    try:
        with Recovery() as client:
            found = [(model.id, model.name or model.dataset or "") for model in client.models()]
    except ClientError:
        return []
    return [(model_id, told) for model_id, told in found if model_id.startswith(incomplete)]


def complete_dataset(incomplete: str) -> list[tuple[str, str]]:
    """Complete the id, or the name, of a dataset of that service."""
    try:
        with Recovery() as client:
            found = [(one.id, one.name or one.source) for one in client.datasets()]
    except ClientError:
        return []
    return [(name, told) for name, told in found if name.startswith(incomplete)]


def _is_id(text: str) -> bool:
    try:
        checked_id(text)
    except InvalidId:
        return False
    return True


def job_id_of(client: Recovery, text: str) -> str:
    """Return the id of the job that `text` means: an id as it is, or the newest job of that name.

    Raises ClientError when there is none.
    """
    if _is_id(text):
        return text
    found = next((job.id for job in client.jobs() if job.name == text), None)
    if found is None:
        raise ClientError(f"there is no job of the id or name {text!r}; `recovery jobs` lists them")
    return found


def model_at(client: Recovery, text: str) -> str:
    """Return `id` or `id@step` of the model that `text` means; a name in place of the id means its newest model.

    Raises ClientError when there is none.
    """
    name, at, step = text.partition("@")
    if _is_id(name):
        return text
    found = next((model.id for model in client.models() if model.name == name), None)
    if found is None:
        raise ClientError(f"there is no model of the id or name {name!r}; `recovery models` lists them")
    return f"{found}{at}{step}"


JobId = Annotated[
    str,
    typer.Argument(
        help="Id or name of the job; `recovery jobs` lists all jobs", autocompletion=complete_job, show_default=False
    ),
]
ModelAt = Annotated[
    str,
    typer.Argument(
        help="Id or name of a model, or id@step; `recovery models` lists all models",
        autocompletion=complete_model,
        show_default=False,
    ),
]
