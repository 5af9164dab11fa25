"""How samples of a checkpoint are drawn: by the quality that is asked for, by numbers, or as the model would itself."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from model.config import ChainStart
from model.errors import ConfigError
from model.frontier import Frontier, Quality
from service.bodies.models import UsedQuality
from service.http.errors import field_problem
from service.stores import Stores
from worker.storage.artifacts import ArtifactMissing


@dataclass(frozen=True)
class Chosen:
    """The settings of a request, None where the model's own hold."""

    quality: UsedQuality
    start: ChainStart | None = None
    num_steps: int | None = None


def chosen(
    stores: Stores, model_id: str, step: int, *, quality: Quality | None, steps: int | None, is_plain: bool
) -> Chosen:
    """Return the settings for `quality`, `standard` if nothing is asked, from the checkpoint's frontier.

    The model's own hold beside `steps` of the request, for a checkpoint that was not tuned, and for requests that are
    not plain: chains of another kernel, or on products of labels, are not what was measured. Raises Problem 422 for
    both a quality and steps.
    """
    if steps is not None and quality is not None:
        raise field_problem(
            ["body", "quality"],
            f"quality {quality!r} decides the steps, but steps is {steps} too; give one of them",
        )
    if steps is None and is_plain:
        with contextlib.suppress(ArtifactMissing, ConfigError):  # not tuned, or by a later version
            wanted = quality or "standard"
            setting = Frontier.from_dict(stores.artifacts.get_frontier(model_id, step)).setting(wanted)
            return Chosen(wanted, setting.start, setting.num_steps)
    return Chosen("own", num_steps=steps)
