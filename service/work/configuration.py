"""The checked TrainConfig that a training request asks for. A wrong field is a Problem 422 that says what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from model.config import TrainConfig, from_dict, to_dict
from model.errors import ConfigError, DataError
from model.event_kinds.registry import kind_of, taken_by
from model.fields import types_of
from model.intake.limits import Summary
from model.presets import PRESETS, override, preset
from service.bodies.fields import random_seed
from service.bodies.jobs import TrainRequest
from service.http.errors import FieldProblem, Problem, field_problem
from worker.datasets.names import require_dataset
from worker.settings import Settings
from worker.storage.bucket import Bucket

_OVERRIDES = [name for name in TrainRequest.model_fields if name in types_of(TrainConfig)]


def train_config(request: TrainRequest, settings: Settings, bucket: Bucket) -> TrainConfig:
    """Return the preset, with the request's configuration laid over it, and its single fields over that.

    A seed is drawn unless one is given. The uploaded datasets are looked up in the bucket.
    """
    if request.preset is None and request.config is None:
        raise field_problem(["body", "preset"], f"give `preset` (one of {', '.join(PRESETS)}) or `config`")
    config = _base(request)
    changes = {name: value for name in _OVERRIDES if (value := getattr(request, name)) is not None}
    if "seed" not in changes and "seed" not in (request.config or {}):
        changes["seed"] = random_seed()
    config = _checked_override(config, changes)
    dataset = _known_dataset(config, settings, bucket)
    _require_matching_network(config, dataset)
    _require_labels(config, dataset)
    return config


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
    return _parse(_merged(start, request.config or {}))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, object by object."""
    result = dict(base)
    for name, value in changes.items():
        below = result.get(name)
        result[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


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
