"""The checked TrainConfig that a training request asks for. A wrong field is a Problem 422 that says what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.config import TrainConfig, from_dict, to_dict
from model.errors import ConfigError, DataError
from model.event_kinds.registry import kind_of, taken_by
from model.fields import merged, types_of
from model.intake.limits import Summary
from model.planning import DEFAULT_MINUTES, IMAGES_PRESET, Machine, overlaid, plan
from model.presets import PRESETS, override, preset
from service.bodies.fields import random_seed
from service.bodies.jobs import TrainRequest
from service.http.errors import FieldProblem, Problem, field_problem
from worker.datasets.names import require_dataset
from worker.jobs.kinds import PlanRequest
from worker.settings import Settings
from worker.storage.bucket import Bucket

_OVERRIDES = [name for name in TrainRequest.model_fields if name in types_of(TrainConfig)]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a request asks for."""

    config: TrainConfig
    """the configuration, or what is known of it before the trainer plans it"""
    plan: PlanRequest | None = None
    """None unless the trainer is to plan it"""
    reasons: tuple[str, ...] = ()
    """of the plan, as far as it is known, a sentence each"""


def training(request: TrainRequest, settings: Settings, bucket: Bucket) -> Training:
    """Return the preset, with the request's configuration laid over it, and its single fields over that.

    A seed is drawn unless one is given. The uploaded datasets are looked up in the bucket.
    """
    if request.preset is None and request.config is None:
        raise field_problem(["body", "preset"], f"give `preset` (one of {', '.join(PRESETS)}) or `config`")
    if request.preset == IMAGES_PRESET:
        return _planned(request, settings, bucket)
    if request.minutes is not None:
        raise field_problem(["body", "minutes"], f"minutes are for preset '{IMAGES_PRESET}'; give `steps` instead")
    return Training(config=_train_config(request, settings, bucket))


def _planned(request: TrainRequest, settings: Settings, bucket: Bucket) -> Training:
    """Return a training that the trainer plans: what the data tell of it is told here, what a step costs is not."""
    steps = request.steps or (request.config or {}).get("steps")
    if request.minutes is not None and steps is not None:
        told = f"minutes {request.minutes:g} and steps {steps} both say when the training ends; give one of them"
        raise field_problem(["body", "minutes"], told)
    config = _train_config(request, settings, bucket)
    changes = merged(request.config or {}, {"seed": config.seed, **_overrides(request)})
    minutes = DEFAULT_MINUTES if request.minutes is None else request.minutes
    wish = PlanRequest(minutes=minutes, changes=changes)
    found = _known_dataset(config, settings, bucket)
    if found is None:  # only the trainer reads it
        return Training(config=config, plan=wish)
    likely = Machine(device="cuda" if request.device == "cuda" else "cpu", num_threads=request.num_gpus)
    try:
        found_plan = plan(found, likely, config.dataset)
        return Training(config=overlaid(found_plan.config, changes), plan=wish, reasons=found_plan.reasons)
    except ConfigError as error:
        raise _refusal(error, changes) from None


def _train_config(request: TrainRequest, settings: Settings, bucket: Bucket) -> TrainConfig:
    config = _base(request)
    changes = _overrides(request)
    if "seed" not in changes and "seed" not in (request.config or {}):
        changes["seed"] = random_seed()
    config = _checked_override(config, changes)
    dataset = _known_dataset(config, settings, bucket)
    _require_matching_network(config, dataset)
    _require_labels(config, dataset)
    return config


def _overrides(request: TrainRequest) -> dict[str, Any]:
    return {name: value for name in _OVERRIDES if (value := getattr(request, name)) is not None}


def with_steps(values: Mapping[str, Any], steps: int) -> TrainConfig:
    """Return a stored configuration with another number of steps; the score-matching phase is cut to it if longer."""
    config = from_dict(TrainConfig, values)
    matching = replace(config.score_matching, steps=min(config.score_matching.steps, steps))
    return _checked_override(config, {"steps": steps, "score_matching": matching})


def _base(request: TrainRequest) -> TrainConfig:
    start: dict[str, Any] = {}
    if request.preset is not None:
        try:
            start = to_dict(preset(request.preset))
        except ConfigError as error:
            raise field_problem(["body", "preset"], str(error)) from None
    return _parse(merged(start, request.config or {}))


def _parse(values: Mapping[str, Any]) -> TrainConfig:
    try:
        return from_dict(TrainConfig, values)
    except ConfigError as error:
        raise _refusal(error, []) from None


def _checked_override(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    try:
        return override(config, **changes)
    except ConfigError as error:
        raise _refusal(error, changes) from None


def _refusal(error: ConfigError, changes: Collection[str]) -> Problem:
    """Return a 422 that says where each wrong field stands, among the request's own fields or in its configuration."""
    fields = []
    for one in error.problems:
        within = [] if one.field in changes else ["config"]
        location: list[str | int] = ["body", *within, *filter(None, one.field.split("."))]
        fields.append(FieldProblem(location=location, message=str(one), type="value_error"))
    told = "; ".join(f"{'.'.join(map(str, field.location))}: {field.message}" for field in fields[:5])
    return Problem(422, "invalid-request", told, errors=fields)


def _known_dataset(config: TrainConfig, settings: Settings, bucket: Bucket) -> Summary | None:
    try:
        return require_dataset(config.dataset, settings, bucket, config.label_column)
    except DataError as error:
        raise field_problem(["body", "dataset"], str(error)) from None


def _require_matching_network(config: TrainConfig, dataset: Summary | None) -> None:
    if dataset is None or config.network.kind in (kind := kind_of(dataset.event_shape)).networks:
        return
    raise field_problem(
        ["body", "dataset"],
        f"{config.dataset} holds {kind.name} and network.kind '{config.network.kind}' takes "
        f"{taken_by(config.network.kind)}; use preset '{kind.preset}', or network.kind '{kind.networks[0]}'",
    )


def _require_labels(config: TrainConfig, dataset: Summary | None) -> None:
    if config.conditional and dataset is not None and not dataset.labels:
        raise field_problem(
            ["body", "dataset"],
            f"conditional is true, but nobody said of which classes the items of {config.dataset} are; upload it with "
            "labels (a folder for each class, or `label_column`), or leave conditional out",
        )
