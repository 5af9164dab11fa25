"""The command `recovery capacity`, which says how many samplers and trainers a load needs."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.options import AsJson, print_json, print_note, print_table
from service.stack.capacity import (
    CapacityError,
    Fleet,
    mean_wait_h,
    measured_duration_h,
    measured_sampler_rate,
    samplers,
    trainers,
)


class Precision(StrEnum):
    """The precision of the training that was measured."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def capacity(
    images_per_second: Annotated[
        float, typer.Option(min=0, help="Samples that are asked for each second, on average")
    ] = 0.0,
    jobs_per_day: Annotated[float, typer.Option(min=0, help="Trainings that are started each day, on average")] = 0.0,
    sampler_rate: Annotated[
        float | None, typer.Option(help="Images per second of one sampler; taken from --serve if absent")
    ] = None,
    serve: Annotated[Path, typer.Option(help="File that `make bench-serve` wrote on such a machine")] = Path(
        "bench-results/serve.json"
    ),
    evaluations: Annotated[
        int | None, typer.Option(help="Gradient evaluations per image of your model (X-NFE), for --serve")
    ] = None,
    job_hours: Annotated[
        float | None, typer.Option(help="Hours that one training takes; taken from --train and --job-steps if absent")
    ] = None,
    train: Annotated[Path, typer.Option(help="File that `make bench-train` wrote on such a machine")] = Path(
        "bench-results/train.json"
    ),
    job_steps: Annotated[int | None, typer.Option(help="Steps of one training, for --train")] = None,
    precision: Annotated[Precision, typer.Option(help="Precision of a training, for --train")] = Precision.float32,
    utilisation: Annotated[
        float, typer.Option(help="Share of their time, from 0 to 1, that samplers may be busy")
    ] = 0.7,
    spare: Annotated[
        int, typer.Option(min=0, help="Number of samplers that may be lost before the others fall behind")
    ] = 1,
    max_wait_hours: Annotated[
        float, typer.Option(help="Hours that a training may wait before it begins, on average")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Say how many samplers and trainers a load needs: deploy/README.md has the formulas."""
    rate = hours = None
    if images_per_second or sampler_rate is not None:
        rate = sampler_rate if sampler_rate is not None else measured_sampler_rate(serve, evaluations)
    if jobs_per_day:
        hours = _duration_h(job_hours, job_steps, train, precision)
    found: dict[str, Any] = {}
    rows = []
    if rate is not None:
        fleet = samplers(images_per_second, rate, utilisation=utilisation, spare=spare)
        found["samplers"] = _told(fleet) | {"images_per_s_each": rate}
        rows.append(["samplers", f"{images_per_second:g} images/s", f"{rate:.3g} images/s", *_row(fleet), ""])
    if hours is not None:
        fleet = trainers(jobs_per_day, hours, max_wait_h=max_wait_hours)
        found["trainers"] = _told(fleet) | {"duration_h": hours, "mean_wait_h": fleet.mean_wait_h}
        rows.append(
            ["trainers", f"{jobs_per_day:g} jobs/day", f"{hours:.3g} h a job", *_row(fleet), _waits(fleet, hours)]
        )
    if not rows:
        raise CapacityError("no load given; say --images-per-second, --jobs-per-day, or both")
    if as_json:
        print_json(found)
        return
    print_table(["kind", "load", "one does", "needed", "busy", "mean wait"], rows)
    if "trainers" in found:
        print_note("in brackets: with one trainer less")


def _duration_h(job_hours: float | None, job_steps: int | None, train: Path, precision: Precision) -> float:
    if job_hours is not None:
        return job_hours
    if job_steps is None:
        raise CapacityError(
            "how long is a training? give --job-hours, or --job-steps with what `make bench-train` wrote"
        )
    return measured_duration_h(train, job_steps, precision)


def _told(fleet: Fleet) -> dict[str, Any]:
    return {"needed": fleet.num_needed, "utilisation": fleet.utilisation, "offered_load": fleet.offered_load}


def _row(fleet: Fleet) -> list[str]:
    return [str(fleet.num_needed), f"{fleet.utilisation:.0%}"]


def _waits(fleet: Fleet, hours: float) -> str:
    fewer = mean_wait_h(fleet.num_needed - 1, fleet.offered_load, hours)
    return f"{fleet.mean_wait_h:.2g} h ({'never ends' if math.isinf(fewer) else f'{fewer:.2g} h'})"
