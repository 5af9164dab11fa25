"""The state of a training: its named networks, each with its optimiser and average, and the step it has reached.

A training has one network today, the energy. A further one gets a name here; checkpoints then hold it too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from model.checkpoints.checkpoint import ENERGY, NetworkTensors, Snapshot, copy_tensors, load_weights
from model.config import OptimizerConfig, TrainConfig
from model.data.augmentation import augment
from model.data.datasets import Dataset
from model.energies.energy_model import EnergyModel
from model.errors import CheckpointError, ConfigError
from model.events import Phase
from model.networks.freezing import iterate_power
from model.noise import SharedNoise, derive_seed, make_generator
from model.training.objective import Objective
from model.training.ranks import ALONE, Ranks

INIT_STREAM, STEP_STREAM, ORDER_STREAM, PREVIEW_STREAM = range(4)
"""The streams of random numbers of a training, by their use; together with the training's seed they decide them."""
_ROLLBACK_FACTOR = 0.5
"""What the learning rate is multiplied by each time the run goes back to a checkpoint."""
_MOMENT_EVENTS = 10_000
"""The number of augmented training events to whose mean and covariance the Gaussian base is fit."""
_EMA_POWER_ITERATIONS = 20  # bring the singular vectors of averaged weights to convergence before their use

M = TypeVar("M", bound=nn.Module)


@dataclass
class TrainedNetwork(Generic[M]):
    """A network under training, with its optimiser and the average of its weights."""

    module: M
    optimizer: torch.optim.Optimizer
    average: M | None
    """the exponential moving average of the module's weights, if one is kept; its buffers are the module's"""

    def descend(self, learning_rate: float, max_gradient_norm: float | None) -> float:
        """Take one step of the optimiser, and return the norm of the gradient before it was clipped."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        gradients = [p.grad for p in self.module.parameters()]
        norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        if max_gradient_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), max_gradient_norm, norm)
        self.optimizer.step()
        return float(norm)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average of the parameters towards the module's by 1 − `decay`, and copy the buffers."""
        if self.average is None:
            return
        torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), 1 - decay)
        self._copy_buffers()

    @torch.no_grad()
    def _copy_buffers(self) -> None:
        assert self.average is not None
        for averaged, buffer in zip(self.average.buffers(), self.module.buffers(), strict=True):
            averaged.copy_(buffer)

    def averaged(self) -> M:
        """Return a copy of the average (or of the network, if none is kept) whose spectral norms have converged."""
        found = copy.deepcopy(self.module if self.average is None else self.average)
        iterate_power(found, _EMA_POWER_ITERATIONS)
        return found

    def to(self, device: str) -> None:
        """Move the weights and their average to `device`. The optimiser must not have moments yet."""
        self.module.to(device)
        if self.average is not None:
            self.average.to(device)

    def tensors(self) -> NetworkTensors:
        """Return copies of the average, the weights and the optimiser's moments."""
        moments: dict[str, Tensor] = {}
        for index, found in self.optimizer.state_dict()["state"].items():
            moments |= {f"{index}.{name}": tensor for name, tensor in found.items()}
        weights = copy_tensors(self.module.state_dict())
        return NetworkTensors(copy_tensors(self.averaged().state_dict()), weights, copy_tensors(moments))

    def load(self, tensors: NetworkTensors, device: str) -> None:
        """Take over `tensors`, which `tensors()` returned, and move to `device`.

        Raises CheckpointError if they do not belong to this configuration.
        """
        load_weights(self.module, tensors.weights)
        if self.average is not None:
            load_weights(self.average, tensors.average)
            self._copy_buffers()  # stored are those of `averaged()`, with which training would not go on as it did
        self.to(device)
        moments: dict[int, dict[str, Tensor]] = {}
        try:
            for name, tensor in tensors.moments.items():
                index, _, moment = name.partition(".")
                moments.setdefault(int(index), {})[moment] = tensor.clone()  # the optimiser would change the snapshot's
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"the optimiser's moments do not belong to this configuration: {error}") from error


@dataclass
class TrainState:
    """Everything that changes while a model trains."""

    config: TrainConfig
    networks: Mapping[str, TrainedNetwork[Any]]
    """the networks by their names, ENERGY among them"""
    step: int = 0
    rollbacks: int = 0
    """how often this run went back to an earlier checkpoint"""
    ranks: Ranks = ALONE
    """the processes that compute the steps together"""

    def __post_init__(self) -> None:
        self.objective = self.ranks.averaging(Objective(self.model))

    @property
    def energy(self) -> TrainedNetwork[EnergyModel]:
        """The energy model under training."""
        return self.networks[ENERGY]

    @property
    def model(self) -> EnergyModel:
        """The energy model with the weights of this step."""
        return self.energy.module

    @property
    def learning_rate_factor(self) -> float:
        """The factor by which the configured learning rate is multiplied."""
        return _ROLLBACK_FACTOR**self.rollbacks

    @property
    def phase(self) -> Phase:
        """The phase that the next step belongs to."""
        return "score_matching" if self.step < self.config.score_matching.steps else "recovery"

    def snapshot(self) -> Snapshot:
        """Return copies of everything that a checkpoint of this state holds."""
        networks = {name: network.tensors() for name, network in self.networks.items()}
        model = self.model
        return Snapshot(self.step, self.config, model.event_shape, networks, self.rollbacks, model.class_names)


def start(config: TrainConfig, dataset: Dataset, device: str = "cpu", ranks: Ranks = ALONE) -> TrainState:
    """Return the state before the first step, with weights drawn from `config.seed`.

    All ranks must call this together. Raises ConfigError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, INIT_STREAM))
        model = EnergyModel(config, dataset.event_shape, class_names(config, dataset))
    noise = SharedNoise(make_generator(config.seed, INIT_STREAM))
    some = dataset.train[:_MOMENT_EVENTS]
    augmented = config.affine_jitter > 0 or config.horizontal_flips or config.dequantize
    rounds = max(1, _MOMENT_EVENTS // len(some)) if augmented else 1
    model.space = dataset.space
    model.fit_base(torch.cat([augment(some, config, model.space, noise) for _ in range(rounds)]))
    networks = trained_networks(config, model)
    for network in networks.values():
        network.to(device)
    return TrainState(config, networks, ranks=ranks)


def resume(snapshot: Snapshot, config: TrainConfig, device: str = "cpu", ranks: Ranks = ALONE) -> TrainState:
    """Return the state that `snapshot` holds, to go on under `config`, which may ask for more steps.

    All ranks must call this together. Raises CheckpointError.
    """
    networks = trained_networks(config, EnergyModel(config, snapshot.event_shape, snapshot.class_names))
    load_networks(networks, snapshot, device)
    return TrainState(config, networks, snapshot.step, snapshot.rollbacks, ranks)


def class_names(config: TrainConfig, dataset: Dataset) -> tuple[str, ...]:
    """Return the classes that a model of `config` is to know: the dataset's, or none if it is not conditional.

    Raises ConfigError for a conditional model of a dataset without labels.
    """
    if not config.conditional:
        return ()
    if dataset.labels is None:
        raise ConfigError(
            f"conditional is true, but nobody said of which classes the items of {dataset.name!r} are; expected a "
            "dataset with labels. Upload it with labels, or set conditional to false",
            field="conditional",
        )
    return dataset.labels.names


def trained_networks(config: TrainConfig, model: EnergyModel) -> dict[str, TrainedNetwork[Any]]:
    """Return the networks of a training of `config` before its first step, on the CPU, with `model` as its energy."""
    model.network.precision = config.precision
    average = copy.deepcopy(model).requires_grad_(False)
    return {ENERGY: TrainedNetwork(model, make_optimizer(config.optimizer, model), average)}


def load_networks(networks: Mapping[str, TrainedNetwork[Any]], snapshot: Snapshot, device: str) -> None:
    """Load the tensors of `snapshot` into fresh networks, and move them to `device`.

    Raises CheckpointError if the snapshot holds other networks.
    """
    if networks.keys() != snapshot.networks.keys():
        held, expected = (", ".join(sorted(names)) for names in (snapshot.networks, networks))
        raise CheckpointError(f"the checkpoint holds the networks {held}; this configuration trains {expected}")
    for name, network in networks.items():
        network.load(snapshot.networks[name], device)


def make_optimizer(settings: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Return a fresh optimiser for `module`, whose learning rate is set at every step."""
    return torch.optim.Adam(module.parameters(), lr=0.0, betas=(settings.beta1, settings.beta2), fused=True)
