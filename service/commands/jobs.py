"""The commands about jobs: `recovery train`, `jobs`, `watch`, `cancel`, `resume`, `calibrate` and `submit`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.bodies.jobs import CalibrateRequest, TrainRequest, TuneRequest
from service.client import ClientError, Job, Recovery, RefusedError
from service.client.call import Json
from service.client.progress import Bar, health_in_words
from service.commands import terminal_image
from service.commands.frontier import print_frontier
from service.commands.options import (
    JOBS_PANEL,
    ApiKey,
    AsJson,
    JobId,
    ModelAt,
    Url,
    complete_dataset,
    complete_job,
    complete_preset,
    examples,
    job_id_of,
    model_at,
    print_json,
    print_line,
    print_note,
    print_table,
)
from service.commands.request_options import complete_setting, takes_fields

Wait = Annotated[bool, typer.Option("--wait", help="Follow the job to its end")]

application = typer.Typer()


@application.command(
    rich_help_panel=JOBS_PANEL,
    epilog=examples(
        "recovery train digits --wait",
        "recovery train digits --upload pictures/ --name cats --wait",
        "recovery train density-2d --upload points.csv --label-column kind --conditional",
        "recovery train density-2d --dataset two_moons --steps 2000 --seed 0",
        "recovery train digits --set schedule.num_levels=10 --set chain.num_steps=8",
    ),
)
@takes_fields(TrainRequest, leave_out=("preset", "config"), dataset=complete_dataset)
def train(
    preset: Annotated[
        str, typer.Argument(help="Name of the configuration to start from", autocompletion=complete_preset)
    ] = "digits",
    *,
    options: Json,
    upload: Annotated[
        Path | None,
        typer.Option(help="Upload this and train on it: a folder or .zip of images, a .npy, .npz or .csv", exists=True),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML or JSON file that is laid over the preset", exists=True, dir_okay=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One field of the configuration, field.field=value; may be repeated. Completion knows all fields, "
            "and /docs what they mean",
            autocompletion=complete_setting,
        ),
    ] = None,
    wait: Wait = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Start a training job, and print its id."""
    if upload is not None and options["dataset"] is not None:
        raise typer.BadParameter("give --dataset or --upload, not both")
    changes = _changes(config, settings or [])
    with Recovery(url, api_key=api_key) as client:
        if upload is not None:
            found = client.upload_dataset(upload, label_column=options.pop("label_column"))
            options["dataset"] = found.id
            print_note(f"uploaded {found.count} {found.kind} as dataset {found.id}")
            for note in found.notes:
                print_note(note)
        job = client.train(preset, config=changes or None, **options)
        _started(job, wait=wait, as_json=as_json)


@application.command(
    rich_help_panel=JOBS_PANEL, epilog=examples("recovery jobs", "recovery jobs --status running --json")
)
def jobs(
    job_id: Annotated[
        str | None,
        typer.Argument(help="Id or name of a job to look at instead", autocompletion=complete_job, show_default=False),
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="List only jobs in this state: queued, running, succeeded, failed or cancelled")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List jobs, newest first, or look at one."""
    with Recovery(url, api_key=api_key) as client:
        found: Job | list[Job] = client.job(job_id_of(client, job_id)) if job_id else client.jobs(status=status)
    if as_json:
        print_json(found)
    elif isinstance(found, Job):
        print_table(["field", "value"], _fields(found))
    else:
        print_table(["id", "kind", "name", "status", "done", "error"], [_row(job) for job in found])


def _row(job: Job) -> list[str]:
    return [job.id, job.kind, job.name or "", job.status, f"{job.progress.percent:.0f} %", job.error or ""]


def _fields(job: Job) -> list[list[str]]:
    """Return (name, value) rows of a job's fields without its configuration, which --json shows."""
    found = job.model_dump(mode="json", exclude={"config", "progress"}, exclude_none=True)
    if job.health is not None:
        found["health"] = health_in_words(found["health"])
    done = job.progress.model_dump(exclude_none=True)
    return [[name, str(value)] for name, value in (found | done).items()]


@application.command(
    rich_help_panel=JOBS_PANEL,
    epilog=examples("recovery watch 01JD3Z6M3Q4R5S6T7V8W9X0Y1Z", "recovery watch JOB --json | jq ."),
)
def watch(job_id: JobId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Follow a job with a progress bar until it ends; with --json print its events, one a line.

    The exit status is 4 if the job fails or is cancelled.
    """
    with Recovery(url, api_key=api_key) as client:
        # The job is asked for first, which says plainly that there is no such job or server; a stream is tried again.
        _follow(client.job(job_id_of(client, job_id)), as_json=as_json)


@application.command(rich_help_panel=JOBS_PANEL, epilog=examples("recovery cancel 01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"))
def cancel(job_id: JobId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Cancel a job that waits or runs; its checkpoints stay."""
    with Recovery(url, api_key=api_key) as client:
        _changed(client.cancel(job_id_of(client, job_id)), as_json=as_json)


@application.command(
    rich_help_panel=JOBS_PANEL,
    epilog=examples("recovery resume 01JD3Z6M3Q4R5S6T7V8W9X0Y1Z", "recovery resume JOB --steps 8000 --wait"),
)
def resume(
    job_id: JobId,
    steps: Annotated[int | None, typer.Option(help="New total number of training steps")] = None,
    wait: Wait = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Continue a failed or cancelled job."""
    with Recovery(url, api_key=api_key) as client:
        job = client.resume(job_id_of(client, job_id), steps=steps)
        if wait:
            _follow(job, as_json=as_json)
        else:
            _changed(job, as_json=as_json)


@application.command(
    rich_help_panel=JOBS_PANEL,
    epilog=examples("recovery calibrate MODEL --wait", "recovery calibrate MODEL@2000 --num-chains 1024"),
)
@takes_fields(CalibrateRequest, leave_out=("model",))
def calibrate(
    model: ModelAt,
    *,
    options: Json,
    wait: Wait = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Estimate log Z of a checkpoint, which log-density needs, and print the job's id."""
    with Recovery(url, api_key=api_key) as client:
        job = client.calibrate(model_at(client, model), **options)
        _started(job, wait=wait, as_json=as_json)


@application.command(
    rich_help_panel=JOBS_PANEL,
    epilog=examples("recovery tune MODEL --wait", "recovery tune MODEL@2000 --num-samples 5000 --max-steps 32"),
)
@takes_fields(TuneRequest, leave_out=("model",))
def tune(
    model: ModelAt,
    *,
    options: Json,
    wait: Wait = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Measure what samples of a checkpoint cost and how good they are, and print the job's id, then a table."""
    with Recovery(url, api_key=api_key) as client:
        job = client.tune(model_at(client, model), **options)
        _started(job, wait=wait, as_json=as_json)
        if wait and not as_json:
            print_frontier(job.model(), job.model_step)


@application.command(
    rich_help_panel=JOBS_PANEL,
    epilog=examples("recovery submit calibrate --set model=MODEL --set num_chains=1024 --wait"),
)
def submit(
    kind: Annotated[str, typer.Argument(help="Kind of job, as in POST /jobs/KIND", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One field of the request, field=value; may be repeated")
    ] = None,
    wait: Wait = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Start a job of any kind that the service knows, and print its id."""
    with Recovery(url, api_key=api_key) as client:
        job = client.submit(kind, **_changes(None, settings or []))
        _started(job, wait=wait, as_json=as_json)


def _started(job: Job, *, wait: bool, as_json: bool) -> None:
    if not as_json:
        print_line(job.id)
    if wait:
        follow(job, as_json=False)
        job.refresh()
    if as_json:
        print_json(job)
    if wait:
        job.require_success()


def _changed(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        print_line(job.status)


def _follow(job: Job, *, as_json: bool) -> None:
    follow(job, as_json=as_json)
    job.refresh()
    job.require_success()


def follow(job: Job, *, as_json: bool) -> None:
    """Follow a job to its end, with its events as lines of JSON or with a progress bar.

    A terminal that can show pictures also gets the last sample grid.
    """
    if as_json:
        for event in job.events():
            typer.echo(json.dumps(event))
        return
    with Bar(Console(stderr=True, highlight=False)) as bar:
        for event in job.events():
            bar.show(event)
    if job.kind == "train" and terminal_image.can_show():
        _show_grid(job)


def _show_grid(job: Job) -> None:
    try:
        terminal_image.show(job.model().samples_png())
    except RefusedError as error:  # a training too short to have drawn one
        print_note(error)


def _changes(path: Path | None, settings: Sequence[str]) -> dict[str, Any]:
    """Return the configuration to lay over the preset. Raises ClientError, typer.BadParameter."""
    changes: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text()
            changes = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except ValueError as error:
            raise ClientError(f"{path} cannot be read as {path.suffix[1:].upper() or 'TOML'}: {error}") from None
    for one in settings:
        names, equals, text = one.partition("=")
        *outer, last = names.split(".")
        if not (equals and last):
            raise typer.BadParameter(f"--set {one!r} is not field=value, like chain.num_steps=8")
        target = changes
        for name in outer:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise typer.BadParameter(f"--set {one!r} names a field of {name}, which was set to {target!r}")
        target[last] = _value(text)
    return changes


def _value(text: str) -> Any:
    """Read a value as JSON (a number, true, null, a list), and as text where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text
