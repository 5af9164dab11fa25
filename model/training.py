"""The training loop: an iterator of events over one mutable state.

Source: DRL algorithm 1. A run may begin with steps of score matching on the energy's gradient; then every step
diffuses a batch to pairs (x_t, x_{t+1}), draws y⁻ by a chain on p(y | x_{t+1}) under frozen weights, and descends the
contrastive loss. Weights for sampling are an exponential moving average.

Randomness of step n comes from (seed, n) alone and the order of the data from (seed, epoch), so a run resumed from any
checkpoint continues as if it had never stopped (bit for bit on the CPU in float32).

A run that diverges goes back to its last regular checkpoint. The number of times it did enters the noise and the
learning rate and is saved with the state, so that this, too, happens in the same way whenever the run is interrupted.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.augmentation import augment
from model.checkpoint import Snapshot, copy_tensors, load_weights
from model.config import TrainConfig
from model.data import Dataset
from model.energy_model import EnergyModel
from model.errors import CheckpointError, DivergenceError, ShapeError
from model.events import CheckpointEvent, DoneEvent, Phase, RollbackEvent, SampleEvent, TrainEvent
from model.mcmc import adapt_step_size
from model.meter import Meter, mean_by_level
from model.networks import iterate_power
from model.noise import SharedNoise, derive_seed, make_generator
from model.recovery import (
    contrastive_loss,
    dual_score_matching_loss,
    energy_penalty,
    marginal_score_matching_loss,
    noise_contrastive_loss,
    recovery_score_matching_loss,
    squared_norm,
)
from model.sampling import draw_conditional, sample
from model.schedule import expand

_INIT_STREAM, _STEP_STREAM, _ORDER_STREAM, _PREVIEW_STREAM = range(4)
_MAX_LOSS = 1e4
"""On the network's output scale, where a healthy run stays within a few units; DRL's release gives up at −1e6."""
_CONTRAST_NATS = 0.8
"""How much rarer than the base the noise that data are told from is at its centre: it reaches a little further than the
data (1.5 times in two dimensions), yet stays near enough in many to say something about them."""
MAX_ROLLBACKS = 3
_ROLLBACK_FACTOR = 0.5
"""On the learning rate, for each time the run went back."""
_MOMENT_EVENTS = 10_000
"""Training events, as augmented, whose mean and covariance the Gaussian base takes."""
_EMA_POWER_ITERATIONS = 20  # bring the singular vectors of averaged weights to convergence before they are used


@dataclass
class TrainState:
    """Everything that changes while a model trains."""

    config: TrainConfig
    model: EnergyModel
    ema: EnergyModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    rollbacks: int = 0
    """How often this run went back to an earlier checkpoint."""

    @property
    def learning_rate_factor(self) -> float:
        """On what the configuration asks for."""
        return _ROLLBACK_FACTOR**self.rollbacks

    @property
    def phase(self) -> Phase:
        """What the next step does."""
        return "score_matching" if self.step < self.config.score_matching.steps else "recovery"

    def averaged(self) -> EnergyModel:
        """A copy of the averaged model for use: its spectral norms brought to convergence."""
        averaged = copy.deepcopy(self.ema)
        iterate_power(averaged.network, _EMA_POWER_ITERATIONS)
        return averaged

    def snapshot(self) -> Snapshot:
        """Copies of all of it."""
        state = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": t for name, t in moments.items()}
        return Snapshot(
            self.step,
            self.config,
            self.model.event_shape,
            copy_tensors(self.averaged().state_dict()),
            copy_tensors(state),
            self.rollbacks,
        )


def start(config: TrainConfig, dataset: Dataset, device: str = "cpu") -> TrainState:
    """The state before the first step; weights come from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, _INIT_STREAM))
        model = EnergyModel(config, dataset.event_shape)
    noise = SharedNoise(make_generator(config.seed, _INIT_STREAM))
    some = dataset.train[:_MOMENT_EVENTS]
    augmented = config.affine_jitter > 0 or config.horizontal_flips or config.dequantize
    rounds = max(1, _MOMENT_EVENTS // len(some)) if augmented else 1
    model.fit_units(dataset)
    model.fit_base(torch.cat([augment(some, config, model.bin_width, noise) for _ in range(rounds)]))
    model.to(device)
    model.network.precision = config.precision
    return TrainState(config, model, copy.deepcopy(model).requires_grad_(False), _make_optimizer(config, model))


def resume(snapshot: Snapshot, config: TrainConfig, device: str = "cpu") -> TrainState:
    """The state a snapshot holds, to go on under `config`, which may ask for more steps. Raises CheckpointError."""
    model = EnergyModel(config, snapshot.event_shape)
    prefix = "model."
    load_weights(model, {n[len(prefix) :]: t for n, t in snapshot.state.items() if n.startswith(prefix)})
    ema = copy.deepcopy(model).requires_grad_(False)
    load_weights(ema, snapshot.ema)
    model.to(device)
    model.network.precision = ema.network.precision = config.precision
    optimizer = _make_optimizer(config, model)
    state = TrainState(config, model, ema.to(device), optimizer, snapshot.step, snapshot.rollbacks)
    _restore_moments(state.optimizer, snapshot.state)
    return state


def _restore_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, moment = rest.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor.clone()  # the optimiser would change the snapshot's
    try:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the optimiser's moments do not belong to this configuration: {error}") from error


def _make_optimizer(config: TrainConfig, model: EnergyModel) -> torch.optim.Optimizer:
    settings = config.optimizer
    return torch.optim.Adam(model.parameters(), lr=0.0, betas=(settings.beta1, settings.beta2), fused=True)


def train(
    config: TrainConfig,
    dataset: Dataset,
    *,
    snapshot: Snapshot | None = None,
    device: str = "cpu",
    stop_fn: Callable[[], bool] = lambda: False,
    earlier_fn: Callable[[int], Snapshot | None] = lambda _: None,
) -> Iterator[TrainEvent]:
    """Train to `config.steps`, from the start or from `snapshot`; stops after any step once `stop_fn()` is true.

    Events come in order of steps: StepEvent every `log_every`, SampleEvent every `sample_every`, CheckpointEvent every
    `checkpoint_every` and at the end, DoneEvent last. After a RollbackEvent the order starts over from its `to_step`.
    `earlier_fn(step)` finds the stored checkpoint to go back to when `snapshot` was taken between two regular ones;
    without it the run goes back to `snapshot`. Raises DivergenceError (the fourth time), CheckpointError, ShapeError.
    """
    if (config.horizontal_flips or config.affine_jitter > 0) and len(dataset.event_shape) != 3:
        raise ShapeError(
            f"horizontal_flips and affine_jitter are for images, but the data have shape {dataset.event_shape}"
        )
    state = resume(snapshot, config, device) if snapshot else start(config, dataset, device)
    good, events = snapshot, dataset.train.to(device)
    meter = Meter(state.model.num_levels, device)
    while state.step < config.steps and not stop_fn():
        phase = state.phase
        try:
            _train_step(state, events, meter)
        except DivergenceError as error:
            good = _last_regular(config, error.step, good, earlier_fn)
            state = _roll_back(state, good, dataset, device, error)
            meter = Meter(state.model.num_levels, device)
            yield RollbackEvent(
                step=error.step,
                to_step=state.step,
                rollbacks=state.rollbacks,
                learning_rate_factor=state.learning_rate_factor,
                reason=str(error),
            )
            continue
        last = state.step == config.steps
        if state.step % config.log_every == 0 or last:
            yield meter.report(step=state.step, total_steps=config.steps, phase=phase)
        if state.step % config.sample_every == 0 or last:
            yield SampleEvent(step=state.step, samples=_preview(state))
            meter.restart_clock()
        if state.step % config.checkpoint_every == 0 and not last:
            good = state.snapshot()
            yield CheckpointEvent(step=state.step, write=good.write)
    yield CheckpointEvent(step=state.step, write=state.snapshot().write)
    yield DoneEvent(step=state.step, stopped=state.step < config.steps)


def _last_regular(
    config: TrainConfig, step: int, good: Snapshot | None, earlier_fn: Callable[[int], Snapshot | None]
) -> Snapshot | None:
    """The last checkpoint of the schedule before a step; None is the start.

    Not one that an interruption left in between: a run that was never interrupted would not have it.
    """
    wanted = (step - 1) // config.checkpoint_every * config.checkpoint_every
    if wanted == 0 or good is None:
        return None
    return good if good.step == wanted else earlier_fn(wanted) or good


def _roll_back(
    state: TrainState, good: Snapshot | None, dataset: Dataset, device: str, error: DivergenceError
) -> TrainState:
    """The state to go on from after a divergence. Raises it again when the run went back often enough."""
    if state.rollbacks >= MAX_ROLLBACKS:
        raise DivergenceError(
            f"{error}. It went back to a checkpoint {MAX_ROLLBACKS} times, with the learning rate down to "
            f"{state.learning_rate_factor:g} of the configuration's, and diverged again",
            step=error.step,
        ) from error
    again = resume(good, state.config, device) if good else start(state.config, dataset, device)
    again.rollbacks = state.rollbacks + 1
    return again


def _preview(state: TrainState) -> npt.NDArray[np.float32]:
    seed = derive_seed(state.config.seed, _PREVIEW_STREAM)
    samples: npt.NDArray[np.float32] = sample(state.averaged(), state.config.num_preview_samples, seed=seed).x.numpy()
    return samples


def _train_step(state: TrainState, events: Tensor, meter: Meter) -> None:
    config = state.config
    if state.step == config.score_matching.steps > 0:
        _begin_recovery(state)
    phase = state.phase
    again = (state.rollbacks,) if state.rollbacks else ()
    noise = SharedNoise(make_generator(config.seed, _STEP_STREAM, state.step, *again, device=events.device))
    x_data = augment(_batch(config, events, state.step), config, state.model.bin_width, noise)
    level = _stratified_levels(state.model.num_levels, x_data, noise)
    iterate_power(state.model)
    if phase == "score_matching":
        loss = _score_matching_loss(state.model, x_data, level, noise)
    else:
        loss = _recovery_loss(state.model, x_data, level, noise, meter)
        if (weight := config.score_matching.recovery_weight) > 0:
            some = slice(None, None, max(1, config.batch_size // config.score_matching.batch_size))
            loss = loss + weight * _score_matching_loss(state.model, x_data[some], level[some], noise)
    learning_rate = _learning_rate(config, state.step) * state.learning_rate_factor
    gradient_norm = _descend_gradient(state, loss, learning_rate)
    _update_average(state)
    state.step += 1
    meter.add(loss=loss.item(), gradient_norm=gradient_norm, learning_rate=learning_rate)
    _check(loss.item(), gradient_norm, state.step)


def _begin_recovery(state: TrainState) -> None:
    """Leave score matching: go on from the averaged weights with fresh moments."""
    load_weights(state.model, state.ema.state_dict())
    state.optimizer = _make_optimizer(state.config, state.model)


def _score_matching_loss(model: EnergyModel, x_data: Tensor, level: Tensor, noise: SharedNoise) -> Tensor:
    schedule, epsilon = model.schedule, noise.normal(x_data)
    if model.config.score_matching.form == "dual":
        log_snr = _stratified_log_snr(model, x_data, noise)
        loss = dual_score_matching_loss(model.energy_at, x_data, log_snr, epsilon)
        if (weight := model.config.score_matching.noise_contrast) > 0:
            loss = loss + weight * _noise_contrast(model, x_data, log_snr, epsilon, noise)
        return loss
    scale = schedule.scale[level]
    if model.config.score_matching.form == "marginal":
        y = expand(scale, x_data) * schedule.diffuse(x_data, level, epsilon)
        return marginal_score_matching_loss(
            model.energy, y, epsilon, level, scale * schedule.sigma_bar[level], weigh_fn=model.weigh_residual
        )
    x, x_next = schedule.diffuse_pair(x_data, level, epsilon, noise.normal(x_data))
    return recovery_score_matching_loss(model.energy, expand(scale, x) * x, x_next, level, schedule.sigma[level + 1])


def _recovery_loss(model: EnergyModel, x_data: Tensor, level: Tensor, noise: SharedNoise, meter: Meter) -> Tensor:
    """The contrastive loss of one batch of pairs; adapts the step sizes when the configuration asks for it."""
    config, chain, schedule = model.config, model.config.chain, model.schedule
    if config.shared_noise:
        x, x_next = schedule.diffuse_together(x_data, level, noise.normal(x_data))
    else:
        x, x_next = schedule.diffuse_pair(x_data, level, noise.normal(x_data), noise.normal(x_data))
    y_positive = expand(schedule.scale[level], x) * x
    with model.frozen():
        draw = draw_conditional(model, x_next, level, noise, num_steps=chain.num_steps, start=chain.start)
    if chain.target_acceptance is not None:
        mean, count = mean_by_level(draw.acceptance, level, model.num_levels)
        adapted = adapt_step_size(model.step_size, mean, target=chain.target_acceptance)
        model.step_size.copy_(torch.where(count > 0, adapted, model.step_size))
    energy = model.energy(torch.cat([y_positive, draw.y]), torch.cat([level, level]))
    positive, negative = energy.chunk(2)
    displacement = (squared_norm(draw.y - x_next) / x[0].numel()).sqrt()
    meter.add_levels(level, positive, negative, displacement, draw.acceptance)
    loss, weight = contrastive_loss(positive, negative, model.loss_weight[level]), config.energy_penalty
    return loss + weight * energy_penalty(positive, negative, model.loss_weight[level]) if weight > 0 else loss


def _descend_gradient(state: TrainState, loss: Tensor, learning_rate: float) -> float:
    """One optimiser step; the norm of the gradient before clipping."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    limit, gradients = state.config.optimizer.max_gradient_norm, [p.grad for p in state.model.parameters()]
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), limit, norm)
    state.optimizer.step()
    return float(norm)


@torch.no_grad()
def _update_average(state: TrainState) -> None:
    """EMA of the parameters, with a memory shorter than the phase's steps so far; buffers are copied."""
    index = _phase_index(state.config, state.step)
    decay = min(state.config.optimizer.ema_decay, (1 + index) / (10 + index))
    torch._foreach_lerp_(list(state.ema.parameters()), list(state.model.parameters()), 1 - decay)
    for averaged, buffer in zip(state.ema.buffers(), state.model.buffers(), strict=True):
        averaged.copy_(buffer)


def _check(loss: float, gradient_norm: float, step: int) -> None:
    if not (abs(loss) < _MAX_LOSS and math.isfinite(gradient_norm)):
        raise DivergenceError(
            f"training diverged at step {step}: loss {loss:.3g}, gradient norm {gradient_norm:.3g} (expected a loss "
            f"within ±{_MAX_LOSS:g}). Lower the learning rate or chain.step_size, or set optimizer.max_gradient_norm",
            step=step,
        )


def _batch(config: TrainConfig, events: Tensor, step: int) -> Tensor:
    """The step's batch: epochs in an order drawn from (seed, epoch), cut without regard to epoch ends."""
    start_steps = config.score_matching.steps
    if step < start_steps:
        first, size = step * config.score_matching.batch_size, config.score_matching.batch_size
    else:
        first = start_steps * config.score_matching.batch_size + (step - start_steps) * config.batch_size
        size = config.batch_size
    epochs = range(first // len(events), (first + size - 1) // len(events) + 1)
    order = torch.cat([_epoch_order(config.seed, epoch, len(events)) for epoch in epochs])
    offset = first - epochs[0] * len(events)
    return events[order[offset : offset + size].to(events.device)]


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=make_generator(seed, _ORDER_STREAM, epoch))


def _stratified_levels(num_levels: int, x_data: Tensor, noise: SharedNoise) -> Tensor:
    """(B,) levels, each uniform on 0…T−1, spread evenly over the batch to lower the gradient's variance."""
    count = len(x_data)
    offset = noise.uniform(x_data.new_empty(1))
    position = (offset + torch.arange(count, device=x_data.device) / count) % 1
    return (position * num_levels).long().clamp(max=num_levels - 1)


def _noise_contrast(model: EnergyModel, x_data: Tensor, log_snr: Tensor, epsilon: Tensor, noise: SharedNoise) -> Tensor:
    assert model.base is not None
    signal, spread = (expand(torch.sigmoid(sign * log_snr).sqrt(), x_data) for sign in (1, -1))
    x = signal * x_data + spread * epsilon
    factor = math.exp(_CONTRAST_NATS / x_data[0].numel())
    other, noise_energy = model.base.widened(log_snr, x_data, noise, factor)
    energy = model.energy_at(torch.cat([x, other]), torch.cat([log_snr, log_snr]))
    ours, theirs = energy.chunk(2)
    return noise_contrastive_loss(noise_energy(x) - ours, noise_energy(other) - theirs)


def _stratified_log_snr(model: EnergyModel, x_data: Tensor, noise: SharedNoise) -> Tensor:
    """(B,) log-SNRs between those of the top level and level 0, with density ∝ (λ − min)^tilt, spread evenly."""
    count, (high, low) = len(x_data), (model.log_snr[0], model.log_snr[-1])
    uniform = (noise.uniform(x_data.new_empty(1)) + torch.arange(count, device=x_data.device) / count) % 1
    return low + (high - low) * uniform ** (1 / (1 + model.config.score_matching.low_noise_tilt))


def _learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or cosine to zero, in each phase anew."""
    matching, index = config.score_matching, _phase_index(config, step)
    if step < matching.steps:
        peak, count = matching.learning_rate, matching.steps
    else:
        peak, count = config.optimizer.learning_rate, config.steps - matching.steps
    warmup = min(1.0, (index + 1) / max(1, config.optimizer.warmup_steps))
    decay = (1 + math.cos(math.pi * index / count)) / 2 if config.optimizer.cosine_decay else 1.0
    return peak * warmup * decay


def _phase_index(config: TrainConfig, step: int) -> int:
    """How many steps of its own phase came before `step`."""
    return step if step < config.score_matching.steps else step - config.score_matching.steps
