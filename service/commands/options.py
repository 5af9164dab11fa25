"""What the files of the `recovery` command share: options, completion, examples, and how an answer is shown."""

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
        help=f"Where the service listens; else of ~/.config/recovery/config.toml, else {DEFAULT_URL}",
        rich_help_panel="Server",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar=KEY_VARIABLE,
        help="Where the service asks for one; other users of this machine see what is given here, not the variable or "
        "the file",
        show_envvar=True,
        rich_help_panel="Server",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]


def examples(*lines: str) -> str:
    """Below the help of a command: one example a line."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


def print_line(text: object) -> None:
    """One line of the answer, as it is, however narrow the terminal."""
    Console(highlight=False, soft_wrap=True).print(str(text), markup=False)


def print_note(text: object) -> None:
    """One line for people, on standard error: standard output is for what scripts take."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(str(text), markup=False, style="dim")


def print_json(found: BaseModel | Mapping[str, Any] | Sequence[BaseModel]) -> None:
    """An answer for scripts."""
    match found:
        case BaseModel():
            plain: object = found.model_dump(mode="json")
        case Mapping():
            plain = found
        case _:
            plain = [one.model_dump(mode="json") for one in found]
    typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows for people; the first column is never cut, since it is to be copied."""
    first, *others = headings
    table = Table()
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def complete_preset(incomplete: str) -> list[tuple[str, str]]:
    """Names of presets."""
    return [(name, told) for name, told in PRESET_SUMMARIES.items() if name.startswith(incomplete)]


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """Ids of the jobs of the service that the environment or the configuration file names."""
    try:
        with Recovery() as client:
            found = [(job.id, f"{job.status} {job.name or job.kind}") for job in client.jobs()]
    except ClientError:  # while somebody types there is nobody to tell
        return []
    return [(job_id, told) for job_id, told in found if job_id.startswith(incomplete)]


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """Ids of its models."""
    try:
        with Recovery() as client:
            found = [(model.id, model.name or model.dataset or "") for model in client.models()]
    except ClientError:
        return []
    return [(model_id, told) for model_id, told in found if model_id.startswith(incomplete)]


def complete_dataset(incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of its datasets."""
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
    """An id as it is; a name is the newest job's that has it. Raises ClientError when there is none."""
    if _is_id(text):
        return text
    found = next((job.id for job in client.jobs() if job.name == text), None)
    if found is None:
        raise ClientError(f"there is no job of the id or name {text!r}; `recovery jobs` lists them")
    return found


def model_at(client: Recovery, text: str) -> str:
    """`id` or `id@step`; a name in place of the id is the newest model's that has it. Raises ClientError."""
    name, at, step = text.partition("@")
    if _is_id(name):
        return text
    found = next((model.id for model in client.models() if model.name == name), None)
    if found is None:
        raise ClientError(f"there is no model of the id or name {name!r}; `recovery models` lists them")
    return f"{found}{at}{step}"


JobId = Annotated[
    str,
    typer.Argument(help="Its id or name; `recovery jobs` lists them", autocompletion=complete_job, show_default=False),
]
ModelAt = Annotated[
    str,
    typer.Argument(
        help="Id or name of a model, or id@step; `recovery models` lists them",
        autocompletion=complete_model,
        show_default=False,
    ),
]
