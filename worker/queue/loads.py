"""How busy each sampler says it is: a Redis hash that samplers write and the service reads. No torch."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from worker.redis_keys import SAMPLER_QUEUES

_LOADING_S = 2.0
"""A sampler that has the model may be so much busier than another before the other loads it too."""
_FRESH_S = 5.0
"""A load that is older says nothing."""


@dataclass(frozen=True)
class SamplerLoad:
    """How busy one sampler process said it was."""

    name: str
    models: list[str]
    """loaded, as `id@step`"""
    num_chains: int
    num_waiting: int
    backlog_s: float
    """seconds to do everything it has accepted"""
    num_evaluations: int
    num_row_evaluations: int
    """gradient evaluations since its start: of batches, and of the chains in them"""
    told_at: float
    """Unix time"""


def packed(load: SamplerLoad) -> str:
    """As it stands in the hash."""
    return json.dumps(asdict(load))


def fresh_loads(entries: dict[bytes, bytes]) -> list[SamplerLoad]:
    """Those of the hash that are of the last seconds."""
    loads = [SamplerLoad(**json.loads(entry)) for entry in entries.values()]
    return [load for load in loads if time.time() - load.told_at < _FRESH_S]


def own_queue(name: str) -> str:
    """Of one sampler, beside the one that all share."""
    return SAMPLER_QUEUES.of(name)


def warm_queue(loads: list[SamplerLoad], model_id: str, step: int | None) -> str | None:
    """Queue of the least busy sampler that has the model loaded; None when any sampler does as well."""
    warm = [load for load in loads if f"{model_id}@{step}" in load.models]
    if not warm or len(loads) == 1:
        return None
    chosen = min(warm, key=lambda load: load.backlog_s)
    if chosen.backlog_s > min(load.backlog_s for load in loads) + _LOADING_S:
        return None
    return own_queue(chosen.name)
