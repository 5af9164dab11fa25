"""The engine: many requests in one batch, each as if it were alone; nobody waits for nobody's sake, nothing leaks."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from model.chains.sampling import Samples, sample
from model.composition import Composition, in_turn
from model.config import ChainConfig, NetworkConfig, SamplingConfig, ScheduleConfig, TrainConfig
from model.energies.energy_model import EnergyModel
from model.errors import ConfigError, ShapeError
from tests.servers import PATIENCE_S, wait_until
from worker.engine.engine import Engine
from worker.engine.tickets import Cancelled, DeadlinePassed, DrawTicket, EngineBusy, EngineStopped
from worker.queue.tasks import DrawOrder
from worker.sampler.metrics import EngineCollector

CONFIG = TrainConfig(
    schedule=ScheduleConfig(kind="log_snr", num_levels=4, log_snr_max=5.0, log_snr_min=-4.0),
    network=NetworkConfig(kind="mlp", width=8, num_blocks=1, activation="silu", spectral_norm=False),
    energy="gaussian",
    chain=ChainConfig(kernel="mala", num_steps=5, step_size=0.8),
    sampling=SamplingConfig(num_steps=5, denoise=True),
)


def load_model(key: str) -> EnergyModel:
    """A model that its key decides."""
    torch.manual_seed(sum(key.encode()))
    return EnergyModel(CONFIG, (3,))


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One that runs."""
    found = Engine(load_model, max_rows=64)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def still() -> Engine:
    """One whose steps the test takes."""
    return Engine(load_model, max_rows=8)


def run(engine: Engine, ticket: DrawTicket) -> Samples:
    """Steps until the ticket has ended."""
    for _ in range(10_000):
        if not ticket.is_open:
            return ticket.future.result()
        assert engine.step()
    raise AssertionError("it did not end")


def test_an_image_is_the_same_alone_among_others_and_on_another_engine(engine: Engine) -> None:
    alone = engine.draw("a", DrawOrder(num_images=1, seed=7)).future.result(PATIENCE_S)
    others = [engine.draw("a", DrawOrder(num_images=3, seed=k, num_steps=k % 4)) for k in range(20)]
    among = engine.draw("a", DrawOrder(num_images=64, seed=7))
    leaving = [engine.draw("a", DrawOrder(num_images=9, seed=k)) for k in range(5)]
    for ticket in leaving:
        engine.cancel(ticket)
    late = engine.draw("a", DrawOrder(num_images=1, seed=7), first=40)
    x = among.future.result(PATIENCE_S).x
    for ticket in others:
        ticket.future.result(PATIENCE_S)
    second = Engine(load_model, max_rows=3)
    there = run(second, second.draw("a", DrawOrder(num_images=5, seed=7)))

    torch.testing.assert_close(x[:1], alone.x, atol=1e-4, rtol=0)
    torch.testing.assert_close(x[40:41], late.future.result(PATIENCE_S).x, atol=1e-4, rtol=0)
    torch.testing.assert_close(x[:5], there.x, atol=1e-4, rtol=0)
    torch.testing.assert_close(x, sample(load_model("a"), 64, seed=7).x, atol=1e-4, rtol=0)


def test_plain_guided_and_composed_requests_draw_the_same_in_one_batch_as_alone() -> None:
    """The samples of a request take its labels in turn, from wherever its part of the stream begins."""
    torch.manual_seed(1)
    labelled = EnergyModel(replace(CONFIG, conditional=True), (3,), ("a", "b", "c"))
    labelled.get_parameter("network.head.weight").data.mul_(10)
    guided = tuple(Composition.of_label(k, guidance=1.0) for k in range(3))
    product, mixture = Composition(all_of=((0, 1.0), (2, -0.5))), Composition(any_of=(1, 2))
    orders = [DrawOrder(num_images=5, seed=3, labels=labels) for labels in ((), guided, (product,), (mixture, product))]
    together = Engine(lambda _: labelled, max_rows=16)
    tickets = [together.draw("m", order, first=1) for order in orders]
    for order, ticket in zip(orders, tickets, strict=True):
        among = run(together, ticket).x
        single = Engine(lambda _: labelled, max_rows=2)
        torch.testing.assert_close(among, run(single, single.draw("m", order, first=1)).x, atol=1e-4, rtol=0)
        labels = [in_turn(order.labels, index) for index in range(1, 6)]
        torch.testing.assert_close(among, sample(labelled, 5, seed=3, first=1, labels=labels).x, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="label is 3"):
        together.draw("m", DrawOrder(num_images=1, seed=0, labels=(Composition.of_label(3),)))


def test_its_samples_have_the_distribution_of_the_librarys(engine: Engine) -> None:
    """Independent seeds: only the distribution can agree."""
    here = torch.cat(
        [engine.draw("a", DrawOrder(num_images=250, seed=k)).future.result(PATIENCE_S).x for k in range(8)]
    )
    there = sample(load_model("a"), 2000, seed=99).x
    for axis in range(3):
        assert stats.ks_2samp(here[:, axis].numpy(), there[:, axis].numpy()).pvalue > 0.01


def test_no_evaluation_is_wasted(still: Engine) -> None:
    tickets = [still.draw("a", DrawOrder(num_images=n, seed=n, num_steps=k)) for n, k in ((5, 2), (11, 5), (1, 0))]
    expected = sum(
        t.order.num_images * sample(load_model("a"), 1, seed=0, num_steps=t.order.num_steps).gradient_evaluations
        for t in tickets
    )
    for ticket in tickets:
        assert run(still, ticket).gradient_evaluations == ticket.cost
    assert still.load().num_row_evaluations == expected
    assert not still.step()


def test_chains_join_at_the_next_step_and_the_batch_stays_full(still: Engine) -> None:
    first = still.draw("a", DrawOrder(num_images=8, seed=0))
    for _ in range(3):
        still.step()
    second = still.draw("a", DrawOrder(num_images=2, seed=1))
    occupancy = []
    while first.is_open or second.is_open:
        before = still.load().num_row_evaluations
        still.step()
        occupancy.append(still.load().num_row_evaluations - before)
    assert set(occupancy) == {8, 2}
    assert occupancy == sorted(occupancy, reverse=True)


def test_small_requests_are_not_held_up_by_large_ones(still: Engine) -> None:
    large = still.draw("a", DrawOrder(num_images=200, seed=0))
    small = [still.draw("a", DrawOrder(num_images=1, seed=k)) for k in range(3)]
    for ticket in small:
        run(still, ticket)
    assert large.is_open
    assert still.load().num_evaluations <= 3 * small[0].cost
    still.cancel(large)


def test_a_client_that_leaves_frees_its_chains_at_the_next_step(still: Engine) -> None:
    leaving = still.draw("a", DrawOrder(num_images=20, seed=0))
    staying = still.draw("a", DrawOrder(num_images=2, seed=1))
    for _ in range(4):
        still.step()
    still.cancel(leaving)
    before = still.load().num_row_evaluations
    still.step()
    assert still.load().num_row_evaluations - before == 2
    with pytest.raises(Cancelled):
        leaving.future.result(0)
    torch.testing.assert_close(run(still, staying).x, sample(load_model("a"), 2, seed=1).x, atol=1e-4, rtol=0)
    still.cancel(staying)  # too late
    assert not still.step()
    assert (still.load().num_chains, still.load().num_waiting) == (0, 0)


def test_a_request_ends_at_its_deadline_running_or_waiting(still: Engine) -> None:
    soon = time.time() + 0.3
    running = still.draw("a", DrawOrder(num_images=8, seed=0, num_steps=10_000), deadline=soon)
    waiting = still.draw("a", DrawOrder(num_images=8, seed=1, num_steps=10_000), deadline=soon)
    while running.is_open:
        still.step()
    for ticket in (running, waiting):
        with pytest.raises(DeadlinePassed):
            ticket.future.result(0)
    assert soon < time.time() < soon + 5
    assert not still.step()


def test_models_get_equal_time(still: Engine) -> None:
    """By time, not by turns: the one with the small batch takes more of them."""
    many = still.draw("a", DrawOrder(num_images=8, seed=0, num_steps=10_000))
    one = still.draw("b", DrawOrder(num_images=1, seed=0, num_steps=10_000))
    for _ in range(400):
        still.step()
    spent = [lane.spent_s for lane in still._lanes.values()]
    assert 0.7 < spent[0] / spent[1] < 1.4
    for ticket in (many, one):
        still.cancel(ticket)


def test_a_model_that_was_idle_does_not_claim_the_time_it_missed(still: Engine) -> None:
    run(still, still.draw("b", DrawOrder(num_images=1, seed=0)))
    busy = still.draw("a", DrawOrder(num_images=8, seed=0, num_steps=10_000))
    for _ in range(300):
        still.step()
    back = still.draw("b", DrawOrder(num_images=1, seed=0, num_steps=10_000))
    before = still._lanes["a"].num_evaluations
    for _ in range(60):
        still.step()
    assert still._lanes["a"].num_evaluations - before > 5
    for ticket in (busy, back):
        still.cancel(ticket)


def test_levels_come_as_they_are_reached_and_stay_in_the_result(engine: Engine) -> None:
    ticket = engine.draw("a", DrawOrder(num_images=3, seed=4, levels=(4, 2, 0)))
    whole = sample(load_model("a"), 3, seed=4, levels=(4, 2, 0))
    reached = list(ticket.levels_reached())
    assert [one.level for one in reached] == [4, 2, 0]
    for one in reached:
        np.testing.assert_allclose(one.x, whole.levels[one.level], atol=1e-4)
        np.testing.assert_array_equal(one.x, ticket.future.result(0).levels[one.level])


def test_work_on_a_model_takes_turns_with_its_chains(still: Engine) -> None:
    def count(model: EnergyModel) -> Generator[None, None, int]:
        for _ in range(5):
            yield
        return 5 * model.num_levels

    ticket = still.draw("a", DrawOrder(num_images=1, seed=0))
    counting = still.work("a", count)
    for _ in range(12):
        still.step()
    assert counting.future.result(0) == 20
    assert still.load().num_evaluations == 6
    run(still, ticket)


def test_an_error_in_work_is_its_own(still: Engine) -> None:
    def fail(_model: EnergyModel) -> Generator[None, None, Any]:
        yield
        raise ShapeError("not this shape")

    ticket = still.draw("a", DrawOrder(num_images=1, seed=0))
    failing = still.work("a", fail)
    run(still, ticket)
    with pytest.raises(ShapeError):
        failing.future.result(0)


def test_a_model_that_breaks_fails_its_own_requests_and_works_again(still: Engine) -> None:
    lost = still.draw("a", DrawOrder(num_images=12, seed=0))
    kept = still.draw("b", DrawOrder(num_images=2, seed=0))
    still.step()
    still.step()
    weight = still._lanes["a"].model.step_size
    still._lanes["a"].model.step_size = weight[:1]  # out of range at the next level
    while lost.is_open:
        still.step()
    with pytest.raises(IndexError):
        lost.future.result(0)
    still._lanes["a"].model.step_size = weight
    run(still, kept)
    again = run(still, still.draw("a", DrawOrder(num_images=2, seed=0)))
    torch.testing.assert_close(again.x, sample(load_model("a"), 2, seed=0).x, atol=1e-4, rtol=0)


def test_idle_models_are_dropped_least_recently_used_first_and_busy_ones_never() -> None:
    loads: list[str] = []

    def load(key: str) -> EnergyModel:
        loads.append(key)
        return load_model(key)

    engine = Engine(load, max_models=2, max_rows=4)
    busy = engine.draw("a", DrawOrder(num_images=1, seed=0, num_steps=10_000))
    for key in ("b", "c", "b"):
        run(engine, engine.draw(key, DrawOrder(num_images=1, seed=0, num_steps=0)))
    assert engine.load().models == ["a", "b"]
    assert loads == ["a", "b", "c", "b"]
    engine.cancel(busy)
    engine.step()
    small = Engine(load, max_models=9, max_bytes=1, max_rows=4)
    run(small, small.draw("a", DrawOrder(num_images=1, seed=0)))
    assert small.load().models == []
    assert small.load().num_row_evaluations == sample(load_model("a"), 1, seed=0).gradient_evaluations


def test_a_full_queue_refuses_with_the_time_after_which_there_is_room() -> None:
    engine = Engine(load_model, queue_s=0.5)
    ticket = engine.draw("a", DrawOrder(num_images=64, seed=0, num_steps=50))
    run(engine, ticket)
    rate = engine._lanes["a"].rate
    assert rate > 0
    first = engine.draw("a", DrawOrder(num_images=math_ceil(3 * rate / ticket.cost), seed=0, num_steps=50))
    engine.step()
    with pytest.raises(EngineBusy) as refused:
        engine.draw("a", DrawOrder(num_images=1, seed=0))
    assert 1 < refused.value.retry_after_s < 5
    engine.cancel(first)
    engine.step()
    run(engine, engine.draw("a", DrawOrder(num_images=1, seed=0)))


def math_ceil(value: float) -> int:
    """For counts of images."""
    return int(np.ceil(value))


def test_requests_out_of_range_and_models_that_do_not_load_are_refused_at_once(still: Engine) -> None:
    with pytest.raises(ConfigError, match="from 0 to 4"):
        still.draw("a", DrawOrder(num_images=1, seed=0, levels=(9,)))

    def missing(key: str) -> EnergyModel:
        raise LookupError(key)

    with pytest.raises(LookupError):
        Engine(missing).draw("x", DrawOrder(num_images=1, seed=0))
    assert still._lanes["a"].in_flight == 0


def test_stopping_answers_everybody() -> None:
    engine = Engine(load_model, max_rows=4)
    engine.start()
    tickets = [engine.draw("a", DrawOrder(num_images=9, seed=k, num_steps=10_000)) for k in range(3)]
    wait_until(lambda: engine.load().num_evaluations > 5, "some evaluations")
    engine.stop()
    for ticket in tickets:
        with pytest.raises(EngineStopped):
            ticket.future.result(PATIENCE_S)
    with pytest.raises(EngineStopped):
        engine.draw("a", DrawOrder(num_images=1, seed=0))


def test_the_langevin_kernel_and_the_papers_energy_are_served_too() -> None:
    config = replace(CONFIG, energy="step_size", chain=ChainConfig(kernel="langevin", num_steps=4, step_size=0.02))
    torch.manual_seed(1)
    model = EnergyModel(config, (3,))
    engine = Engine(lambda _key: model, max_rows=8)
    found = run(engine, engine.draw("a", DrawOrder(num_images=6, seed=3, noise_scale=0.9)))
    torch.testing.assert_close(found.x, sample(model, 6, seed=3, noise_scale=0.9).x, atol=1e-4, rtol=0)


def test_its_numbers_are_scraped(still: Engine) -> None:
    run(still, still.draw("a", DrawOrder(num_images=3, seed=0)))
    run(still, still.draw("a", DrawOrder(num_images=1, seed=0)))
    found = {family.name: family.samples[0].value for family in EngineCollector(still.load).collect()}
    rows, batches = found["recovery_engine_gradient_evaluations"], found["recovery_engine_evaluations"]
    assert rows == 4 * batches / 2 > 0
    assert found["recovery_engine_row_capacity"] % batches == 0
    assert found["recovery_engine_row_capacity"] >= rows
    assert 0 < found["recovery_engine_busy_seconds"] < 60
    assert (found["recovery_engine_model_loads"], found["recovery_engine_model_hits"]) == (1, 1)
    assert (found["recovery_engine_chains"], found["recovery_engine_models"]) == (0, 1)


def test_what_a_model_did_is_still_counted_when_it_is_dropped() -> None:
    engine = Engine(load_model, max_models=1)
    for key in ("a", "b"):
        run(engine, engine.draw(key, DrawOrder(num_images=2, seed=0)))
    load = engine.load()
    assert load.num_row_evaluations == 2 * load.num_evaluations
    assert (load.num_model_loads, load.num_model_evictions, len(load.models)) == (2, 1, 1)
    assert load.num_row_capacity >= load.num_row_evaluations
