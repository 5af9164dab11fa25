"""Where a request goes, by what the samplers say of themselves."""

from __future__ import annotations

import time

from worker.ids import new_id
from worker.queue.loads import SamplerLoad, fresh_loads, own_queue, packed, warm_queue

MODEL = new_id()


def _load(name: str, *, warm: bool, backlog_s: float = 0.0, age_s: float = 0.0) -> SamplerLoad:
    models = [f"{MODEL}@5"] if warm else [f"{MODEL}@4"]
    return SamplerLoad(
        name,
        models,
        num_chains=1,
        num_waiting=2,
        backlog_s=backlog_s,
        num_evaluations=0,
        num_row_evaluations=0,
        told_at=time.time() - age_s,
    )


def test_the_least_busy_sampler_that_has_the_model_is_chosen() -> None:
    loads = [
        _load("a", warm=True, backlog_s=3),
        _load("b", warm=True, backlog_s=2.5),
        _load("c", warm=False, backlog_s=1),
    ]
    assert warm_queue(loads, MODEL, 5) == own_queue("b")


def test_a_sampler_that_is_much_busier_than_another_is_not_preferred() -> None:
    assert warm_queue([_load("a", warm=True, backlog_s=9), _load("b", warm=False)], MODEL, 5) is None


def test_any_sampler_will_do_when_none_has_the_model_or_there_is_one() -> None:
    assert warm_queue([_load("a", warm=False), _load("b", warm=False)], MODEL, 5) is None
    assert warm_queue([_load("a", warm=True)], MODEL, 5) is None
    assert warm_queue([], MODEL, 5) is None


def test_what_a_sampler_said_long_ago_is_not_believed() -> None:
    fresh, old = _load("a", warm=True), _load("b", warm=True, age_s=60)
    entries = {load.name.encode(): packed(load).encode() for load in (fresh, old)}
    assert fresh_loads(entries) == [fresh]
