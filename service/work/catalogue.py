"""The models and checkpoints that requests name: found, or refused with the call that lists or makes them."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from service.bodies.models import CalibrationBody, FrontierBody
from service.http.errors import Problem, field_problem
from service.stores import Stores
from worker.queue.messages import not_calibrated
from worker.storage.artifacts import ArtifactMissing


def describe(stores: Stores, model_id: str) -> dict[str, Any]:
    """Return model.json of a model. Raises Problem 404 saying how to list them."""
    try:
        return stores.artifacts.get_model(model_id)
    except ArtifactMissing:
        raise Problem(404, "unknown-model", f"there is no model {model_id}; GET /models lists them") from None


def parse_model(text: str) -> tuple[str, int | None]:
    """Split `id` or `id@step`; the step is None when the text names none. Raises Problem 422."""
    model_id, at, step = text.partition("@")
    if not at:
        return model_id, None
    if not (step.isascii() and step.isdecimal() and len(step) < 10):
        raise field_problem(["body", "model"], f"{text!r} is not a model; expected an id, or id@step with a number")
    return model_id, int(step)


def checkpoint_step(stores: Stores, model_id: str, step: int | None) -> int:
    """Return `step` if it is a checkpoint's, the newest for None. Raises Problem 404, or 409 when there is none."""
    steps = [checkpoint.step for checkpoint in stores.artifacts.list_checkpoints(model_id)]
    if not steps:
        raise Problem(
            409, "no-checkpoint", f"model {model_id} has no checkpoint yet; follow its job until the first is committed"
        )
    if step is not None and step not in steps:
        some = ", ".join(map(str, steps[-10:]))
        raise Problem(404, "unknown-checkpoint", f"model {model_id} has no checkpoint of step {step}; there are {some}")
    return steps[-1] if step is None else step


def calibration_of(stores: Stores, model_id: str, step: int) -> CalibrationBody:
    """Return the calibration of a checkpoint. Raises Problem 409 naming the call that makes one."""
    try:
        return CalibrationBody.model_validate(stores.artifacts.get_calibration(model_id, step))
    except ArtifactMissing:
        others = [f"{model_id}@{other}" for other in stores.artifacts.list_calibrations(model_id)]
        more = f"; calibrated are {', '.join(others)}" if others else ""
        raise Problem(409, "not-calibrated", not_calibrated(model_id, step) + more) from None


def frontier_of(stores: Stores, model_id: str, step: int) -> FrontierBody | None:
    """Return what was measured of a checkpoint's samples; None if it was deleted, or a later version wrote it."""
    try:
        return FrontierBody.model_validate(stores.artifacts.get_frontier(model_id, step))
    except (ArtifactMissing, ValidationError):
        return None
