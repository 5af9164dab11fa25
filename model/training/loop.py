"""The training loop: an iterator of events over one mutable state.

Source: DRL algorithm 1. A run may begin with steps of score matching on the energy's gradient; then every step
diffuses a batch to pairs (x_t, x_{t+1}), draws y⁻ by a chain on p(y | x_{t+1}) under frozen weights, and descends the
contrastive loss. The weights used for sampling are an exponential moving average.

The randomness of step n comes from (seed, n) alone and the order of the data from (seed, epoch), so that a run resumed
from any checkpoint continues as if it had never stopped (bit for bit on the CPU in float32).

A run that diverges goes back to its last regular checkpoint. The number of times it did so decides the noise and the
learning rate and is saved with the state, so that this, too, happens in the same way whenever the run is interrupted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.chains.kernels import adapt_step_size
from model.chains.sampling import sample
from model.checkpoints.checkpoint import Snapshot, load_weights
from model.conditions import At
from model.config import TrainConfig
from model.data.augmentation import augment
from model.data.datasets import Dataset
from model.data.events import Events
from model.energies.energy_model import EnergyModel
from model.errors import CheckpointError, ConfigError, DivergenceError, ShapeError
from model.event_kinds.images import IMAGES
from model.events import BatchEvent, CheckpointEvent, DoneEvent, RollbackEvent, SampleEvent, TrainEvent
from model.health import Health
from model.networks.freezing import iterate_power
from model.noise import SharedNoise, derive_seed, make_generator
from model.training.memory import with_batch_size
from model.training.meter import Meter, sums_by_level
from model.training.objective import stratified_levels
from model.training.ranks import ALONE, Ranks
from model.training.state import (
    ORDER_STREAM,
    PREVIEW_STREAM,
    STEP_STREAM,
    TrainState,
    class_names,
    make_optimizer,
    resume,
    start,
)

_MAX_LOSS = 1e4
"""A larger loss is a divergence. It is on the network's output scale, where a healthy run stays within a few units;
DRL's release gives up at −1e6."""
_SCORED_EVENTS = 2000
"""The held-out events whose energies a checkpoint of a conditional model tells of."""
MAX_ROLLBACKS = 3
"""How often a run goes back to a checkpoint before it gives up."""


def train(
    config: TrainConfig,
    dataset: Dataset,
    *,
    snapshot: Snapshot | None = None,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    stop_fn: Callable[[], bool] = lambda: False,
    earlier_fn: Callable[[int], Snapshot | None] = lambda _: None,
) -> Iterator[TrainEvent]:
    """Train to `config.steps`, from the start or from `snapshot`, and stop after any step once `stop_fn()` is true.

    Events come in the order of steps: a StepEvent every `log_every`, a SampleEvent every `sample_every`, a
    CheckpointEvent every `checkpoint_every` and at the end, and a DoneEvent last. A BatchEvent comes before all others
    if the batch was measured. A HealthEvent comes when the training becomes less healthy, and at `config.steps` if
    there is a verdict. After a RollbackEvent the order starts over from its `to_step`. `earlier_fn(step)` finds
    the stored checkpoint to go back to if `snapshot` was taken between two regular ones; without it the run goes back
    to `snapshot`.

    Several `ranks` must all call this with the same configuration, data and snapshot, and call `earlier_fn` together.
    Each yields the same events, but only the leading one draws samples; any of them can stop all.
    Raises DivergenceError (the fourth time), CheckpointError, ConfigError, ShapeError, RankError.
    """
    config, decision = _decided(config, dataset, snapshot, device, ranks)
    if decision is not None:
        yield decision
    state = resume(snapshot, config, device, ranks) if snapshot else start(config, dataset, device, ranks)
    good, data = snapshot, _Data.of(dataset, config, device)
    meter, health = Meter(state.model.num_levels, device), Health(config, state.step)
    while state.step < config.steps and not ranks.any(stop_fn()):
        phase = state.phase
        try:
            _train_step(state, data, meter)
        except DivergenceError as error:
            good = _last_regular(config, error.step, good, earlier_fn)
            state = _roll_back(state, good, dataset, device, error)
            meter, health = Meter(state.model.num_levels, device), Health(config, state.step)
            yield _told(state, error)
            continue
        last = state.step == config.steps
        if state.step % config.log_every == 0 or last:
            report = meter.report(ranks, step=state.step, total_steps=config.steps, phase=phase)
            yield report
            if (worse := health.add(report)) is not None:
                yield worse
        if (state.step % config.sample_every == 0 or last) and ranks.leads:
            yield SampleEvent(step=state.step, samples=_preview(state))
            meter.restart_clock()
        if state.step % config.checkpoint_every == 0 and not last:
            good = _snapshot(state, dataset)
            yield CheckpointEvent(step=state.step, write=good.write)
    if state.step == config.steps and (verdict := health.verdict()) is not None:
        yield verdict
    yield CheckpointEvent(step=state.step, write=_snapshot(state, dataset).write)
    yield DoneEvent(step=state.step, stopped=state.step < config.steps)


@dataclass(frozen=True)
class _Data:
    """The training events, on the device that trains or in a file, and for a conditional model their labels."""

    events: Events
    """(N, *event)"""
    labels: Tensor | None
    """(N,)"""
    device: str

    @classmethod
    def of(cls, dataset: Dataset, config: TrainConfig, device: str) -> _Data:
        labels = dataset.labels.train.to(device) if config.conditional and dataset.labels is not None else None
        events = dataset.train.to(device) if isinstance(dataset.train, Tensor) else dataset.train
        return cls(events, labels, device)

    def batch(self, config: TrainConfig, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the events of a step, and the labels of the same events."""
        rows = _batch_rows(config, len(self.events), step)
        events = self.events[rows].to(self.device)
        return events, None if self.labels is None else self.labels[rows.to(self.device)]


def _decided(
    config: TrainConfig, dataset: Dataset, snapshot: Snapshot | None, device: str, ranks: Ranks
) -> tuple[TrainConfig, BatchEvent | None]:
    """Return `config` with its batch size decided, now or when `snapshot` was taken, and what was measured now, if any.

    Raises ShapeError and ConfigError for a configuration that cannot be trained, and CheckpointError for a snapshot of
    other classes.
    """
    _require_images_to_augment(config, dataset)
    _require_same_classes(config, dataset, snapshot)
    if snapshot is not None and config.batch_size == "auto":
        config = replace(config, batch_size=snapshot.config.batch_size, microbatch_size=snapshot.config.microbatch_size)
    config, decision = with_batch_size(config, dataset, device, ranks)
    _require_rows_for_all(config, ranks)
    return config, decision


def _require_images_to_augment(config: TrainConfig, dataset: Dataset) -> None:
    if (config.horizontal_flips or config.affine_jitter > 0) and not IMAGES.recognises(dataset.event_shape):
        raise ShapeError(
            f"horizontal_flips and affine_jitter are for images, but the data have shape {dataset.event_shape}"
        )


def _require_same_classes(config: TrainConfig, dataset: Dataset, snapshot: Snapshot | None) -> None:
    names = class_names(config, dataset)
    if snapshot is not None and snapshot.class_names != names:
        held, found = (", ".join(map(repr, some[:10])) or "none" for some in (snapshot.class_names, names))
        raise CheckpointError(
            f"the checkpoint's classes are {held}, but those of this training are {found}; go on with the data and the "
            "configuration that it began with"
        )


def _require_rows_for_all(config: TrainConfig, ranks: Ranks) -> None:
    sizes = {"batch_size": config.pairs_per_step}
    if config.score_matching.steps:
        sizes["score_matching.batch_size"] = config.score_matching.batch_size
    for name, size in sizes.items():
        if size < ranks.count:
            raise ConfigError(f"{name} is {size}; expected at least {ranks.count}, one row for each of the processes")


def _last_regular(
    config: TrainConfig, step: int, good: Snapshot | None, earlier_fn: Callable[[int], Snapshot | None]
) -> Snapshot | None:
    """Return the last checkpoint of the schedule before `step`, or None for the start of the training.

    A checkpoint that an interruption left in between does not count: a run that was never interrupted would not have
    it.
    """
    wanted = (step - 1) // config.checkpoint_every * config.checkpoint_every
    if wanted == 0 or good is None:
        return None
    return good if good.step == wanted else earlier_fn(wanted) or good


def _roll_back(
    state: TrainState, good: Snapshot | None, dataset: Dataset, device: str, error: DivergenceError
) -> TrainState:
    """Return the state to go on from after a divergence. Raises DivergenceError if the run went back often enough."""
    if state.rollbacks >= MAX_ROLLBACKS:
        raise DivergenceError(
            f"{error}. It went back to a checkpoint {MAX_ROLLBACKS} times, with the learning rate down to "
            f"{state.learning_rate_factor:g} of the configuration's, and diverged again",
            step=error.step,
        ) from error
    config, ranks = state.config, state.ranks
    again = resume(good, config, device, ranks) if good else start(config, dataset, device, ranks)
    again.rollbacks = state.rollbacks + 1
    return again


def _told(state: TrainState, error: DivergenceError) -> RollbackEvent:
    return RollbackEvent(
        step=error.step,
        to_step=state.step,
        rollbacks=state.rollbacks,
        learning_rate_factor=state.learning_rate_factor,
        reason=str(error),
    )


def _preview(state: TrainState) -> npt.NDArray[np.float32]:
    seed = derive_seed(state.config.seed, PREVIEW_STREAM)
    count, num_classes = state.config.num_preview_samples, len(state.model.class_names)
    # as many of every class, and in the order of the classes
    labels = sorted(index % num_classes for index in range(count)) if num_classes else None
    drawn = sample(state.energy.averaged(), count, seed=seed, labels=labels)
    samples: npt.NDArray[np.float32] = drawn.x.numpy()
    return samples


def _snapshot(state: TrainState, dataset: Dataset) -> Snapshot:
    """Return what a checkpoint holds; for a conditional model, how held-out data score (`EnergyModel`) too."""
    snapshot = state.snapshot()
    if not state.config.conditional:
        return snapshot
    model, x = state.energy.averaged(), dataset.held_out[:_SCORED_EVENTS].to(state.model.step_size)
    scale = float(model.schedule.scale[0] * model.schedule.alpha_bar[0])
    with torch.no_grad():
        energy = torch.cat([model.energy(scale * some, At.same(0, some)).double() for some in torch.split(x, 64)])
    quantiles = torch.quantile(energy.cpu(), torch.linspace(0, 1, 101, dtype=torch.float64))
    return replace(snapshot, held_out_energies=tuple(quantiles.tolist()))


def _train_step(state: TrainState, data: _Data, meter: Meter) -> None:
    config = state.config
    if state.step == config.score_matching.steps > 0:
        _begin_recovery(state)
    again = (state.rollbacks,) if state.rollbacks else ()
    noise = SharedNoise(make_generator(config.seed, STEP_STREAM, state.step, *again, device=data.device))
    # Every rank draws for the whole batch, which costs little: the draws do not depend on who computes which rows.
    events, label = data.batch(config, state.step)
    x_data = augment(events, config, state.model.space, noise)
    at = At(stratified_levels(state.model.num_levels, x_data, noise), label)
    iterate_power(state.model)
    loss = _accumulate_gradient(state, x_data, at, noise, meter)
    learning_rate = _learning_rate(config, state.step) * state.learning_rate_factor
    gradient_norm = state.energy.descend(learning_rate, config.optimizer.max_gradient_norm)
    state.energy.update_average(_decay(config, state.step))
    state.step += 1
    meter.add(loss=loss, gradient_norm=gradient_norm, learning_rate=learning_rate)
    _check(loss, gradient_norm, state.step)


def _accumulate_gradient(state: TrainState, x_data: Tensor, at: At, noise: SharedNoise, meter: Meter) -> float:
    """Compute the batch's loss and leave its gradient in the parameters. All ranks do so, some rows at a time."""
    model, phase, ranks = state.model, state.phase, state.ranks
    state.energy.optimizer.zero_grad()
    loss, acceptance = x_data.new_zeros(()), x_data.new_zeros(2, model.num_levels)
    pieces = ranks.rows(len(x_data)).pieces(state.config.microbatch_size)
    for rows in pieces:
        with ranks.part_of_a_step(state.objective, is_last=rows is pieces[-1]):
            part = state.objective(rows, x_data, at, noise, phase)
            ranks.backward(part.loss)
        loss += part.loss.detach()
        if part.levels is not None:
            meter.add_levels(rows.of(at.level), part.levels)
            acceptance += sums_by_level(part.levels[-1], rows.of(at.level), model.num_levels)
    if (target := state.config.chain.adapts_to) is not None and phase == "recovery":
        _adapt_step_sizes(model, *ranks.sum(acceptance), target=target)
    return float(ranks.sum(loss))


def _adapt_step_sizes(model: EnergyModel, acceptance: Tensor, count: Tensor, *, target: float) -> None:
    """Adapt the step sizes of the levels that had chains.

    `acceptance` (T,) is the sum of `count` (T,) acceptance rates.
    """
    adapted = adapt_step_size(model.step_size, acceptance / count.clamp(min=1), target=target)
    model.step_size.copy_(torch.where(count > 0, adapted, model.step_size))


def _begin_recovery(state: TrainState) -> None:
    """Leave score matching, and go on from the averaged weights with fresh moments."""
    assert state.energy.average is not None
    load_weights(state.model, state.energy.average.state_dict())
    state.energy.optimizer = make_optimizer(state.config.optimizer, state.model)


def _decay(config: TrainConfig, step: int) -> float:
    """Return the decay of the moving average, whose memory is kept shorter than the phase's steps so far."""
    index = _phase_index(config, step)
    return min(config.optimizer.ema_decay, (1 + index) / (10 + index))


def _check(loss: float, gradient_norm: float, step: int) -> None:
    if not (abs(loss) < _MAX_LOSS and math.isfinite(gradient_norm)):
        raise DivergenceError(
            f"training diverged at step {step}: loss {loss:.3g}, gradient norm {gradient_norm:.3g} (expected a loss "
            f"within ±{_MAX_LOSS:g}). Lower the learning rate or chain.step_size, or set optimizer.max_gradient_norm",
            step=step,
        )


def _batch_rows(config: TrainConfig, count: int, step: int) -> Tensor:
    """Return which of `count` events make the batch of a step.

    The order of every epoch is drawn from (seed, epoch); a batch may span two epochs.
    """
    start_steps = config.score_matching.steps
    if step < start_steps:
        first, size = step * config.score_matching.batch_size, config.score_matching.batch_size
    else:
        first = start_steps * config.score_matching.batch_size + (step - start_steps) * config.pairs_per_step
        size = config.pairs_per_step
    epochs = range(first // count, (first + size - 1) // count + 1)
    order = torch.cat([_epoch_order(config.seed, epoch, count) for epoch in epochs])
    offset = first - epochs[0] * count
    return order[offset : offset + size]


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=make_generator(seed, ORDER_STREAM, epoch))


def _learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then a constant or a cosine to zero, in each phase anew."""
    matching, index = config.score_matching, _phase_index(config, step)
    if step < matching.steps:
        peak, count = matching.learning_rate, matching.steps
    else:
        peak, count = config.optimizer.learning_rate, config.steps - matching.steps
    warmup = min(1.0, (index + 1) / max(1, config.optimizer.warmup_steps))
    decay = (1 + math.cos(math.pi * index / count)) / 2 if config.optimizer.cosine_decay else 1.0
    return peak * warmup * decay


def _phase_index(config: TrainConfig, step: int) -> int:
    """Return the number of steps of the same phase that came before `step`."""
    return step if step < config.score_matching.steps else step - config.score_matching.steps
