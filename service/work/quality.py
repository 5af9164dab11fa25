"""How samples of a checkpoint are drawn: by the quality that is asked for, by numbers, or as the model would itself."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.config import ChainStart
from model.errors import ConfigError
from model.frontier import Frontier, Quality
from service.http.errors import field_problem
from service.stores import Stores
from worker.storage.artifacts import ArtifactMissing


@dataclass(frozen=True)
class Chosen:
    """The settings of a request."""

    quality: Quality | Literal["own"]
    """`own` stands for the model's configuration, and for numbers of the request"""
    start: ChainStart | None
    """None is the model's own"""
    num_steps: int | None
    """None is the model's own"""


def chosen(
    stores: Stores, model_id: str, step: int, config: Mapping[str, Any], *, quality: Quality | None, steps: int | None
) -> Chosen:
    """Return the settings for `quality`, `standard` if nothing is asked, from the checkpoint's frontier.

    `steps` of the request, or a checkpoint that was not tuned, leave the model's `config`. Raises Problem 422 for both.
    """
    if steps is not None and quality is not None:
        raise field_problem(
            ["body", "quality"],
            f"quality {quality!r} decides the steps, but steps is {steps} too; give one of them",
        )
    own = config.get("sampling", {})
    if steps is None:
        with contextlib.suppress(ArtifactMissing, ConfigError):  # not tuned, or by a later version
            frontier = Frontier.from_dict(stores.artifacts.get_frontier(model_id, step))
            setting = frontier.setting(quality or "standard")
            return Chosen(quality or "standard", setting.start, setting.num_steps)
        steps = own.get("num_steps")
    return Chosen("own", own.get("start"), steps)
