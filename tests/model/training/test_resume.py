"""A run that is interrupted after every step ends with the very tensors of one that never stopped, whatever it trains.

Every combination below is trained twice. One run never stops. The other ends after each step, wherever that lies: in
either phase, at their seam, at a checkpoint, after it went back to one. It goes on from what was written, and from
nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from model.checkpoints.checkpoint import Snapshot, read_snapshot
from model.config import (
    ChainConfig,
    KernelKind,
    NetworkConfig,
    NetworkKind,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    ScoreMatchingConfig,
    TrainConfig,
)
from model.data.dataset import SplitLabels
from model.data.datasets import Dataset
from model.events import CheckpointEvent, DoneEvent, RollbackEvent, StepEvent
from model.spaces.affine import AffineSpace
from model.training import loop
from model.training.loop import train
from model.training.ranks import ALONE, Ranks, joined
from tests.servers import free_ports

_STEPS = 6
_REGULAR = 3
"""The steps between two regular checkpoints."""
_EVENT_SHAPES: dict[NetworkKind, tuple[int, ...]] = {"mlp": (2,), "resnet": (1, 4, 4)}
_CHAINS: tuple[tuple[KernelKind, float | None], ...] = (
    ("langevin", None),
    ("mala", None),
    ("mala", 0.7),
    ("hmc", None),
    ("hmc", 0.7),
)
_SEAMS = (0, 2, _REGULAR, _STEPS)
"""The number of steps of score matching: none, up to between two checkpoints, up to one, and all."""
_FAULTS = ((), (2, 5))
"""The steps that diverge once: none, or one before and one after the first regular checkpoint."""


@dataclass(frozen=True)
class _Case:
    network: NetworkKind
    spectral_norm: bool
    kernel: KernelKind
    target_acceptance: float | None
    seam: int
    faults: tuple[int, ...]
    conditional: bool = False

    @property
    def name(self) -> str:
        norm = "norm" if self.spectral_norm else "no norm"
        faults = " and ".join(map(str, self.faults)) or "none"
        return (
            f"{self.network}, {norm}, {self.kernel}, target {self.target_acceptance}, "
            f"score matching {self.seam}, faults {faults}{', conditional' if self.conditional else ''}"
        )

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            energy="gaussian",
            network=NetworkConfig(
                kind=self.network, width=4, multipliers=(1,), num_blocks=1, spectral_norm=self.spectral_norm
            ),
            schedule=ScheduleConfig(kind="log_snr", num_levels=3, log_snr_max=3.0, log_snr_min=-3.0),
            chain=ChainConfig(kernel=self.kernel, num_steps=2, step_size=0.5, target_acceptance=self.target_acceptance),
            sampling=SamplingConfig(num_steps=1),
            optimizer=OptimizerConfig(learning_rate=0.02, warmup_steps=2, ema_decay=0.9),
            score_matching=ScoreMatchingConfig(steps=self.seam, batch_size=5, learning_rate=0.02),
            steps=_STEPS,
            batch_size=7,
            checkpoint_every=_REGULAR,
            log_every=1,
            sample_every=1000,
            num_preview_samples=1,
            conditional=self.conditional,
        )


_CASES = [
    _Case(network, spectral_norm, *chain, seam, faults)
    for network, spectral_norm, chain, seam, faults in itertools.product(
        _EVENT_SHAPES, (True, False), _CHAINS, _SEAMS, _FAULTS
    )
]
_CASES += [replace(case, conditional=True) for case in _CASES if case.target_acceptance and case.kernel == "mala"]
_CASES_OF_TWO_RANKS = [case for case in _CASES if case.target_acceptance and case.kernel == "mala" and case.faults]
"""Those with an adapted step size, the one thing that a kernel adds up over the ranks."""


def _dataset(event_shape: tuple[int, ...]) -> Dataset:
    events = torch.rand(16, *event_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    classes = torch.arange(16) % 3
    labels = SplitLabels(("a", "b", "c"), classes[:12], classes[12:])
    return Dataset("noise", events[:12], events[12:], AffineSpace.plain(event_shape), labels)


class _Storage:
    """Checkpoints in a folder that all ranks see; a later one of the same step takes the place of the earlier."""

    def __init__(self, directory: Path, ranks: Ranks) -> None:
        self._directory, self._ranks = directory, ranks

    def write(self, event: CheckpointEvent) -> None:
        if self._ranks.leads:
            path = self._directory / str(event.step)
            path.mkdir(parents=True, exist_ok=True)
            event.write(path)
        self._ranks.wait()

    def read(self, step: int) -> Snapshot:
        return read_snapshot(self._directory / str(step))

    def tensors(self, step: int) -> dict[str, Tensor]:
        """Everything that the checkpoint of a step holds, under names of its own."""
        held = self.read(step).energy
        parts = {"average": held.average, "weights": held.weights, "moments": held.moments}
        return {f"{part} {name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _run(
    case: _Case, storage: _Storage, ranks: Ranks, snapshot: Snapshot | None = None, num_steps: int = 1000
) -> DoneEvent:
    """Train on from `snapshot` for at most `num_steps`, which include those in vain, and store the checkpoints.

    The case's next faulty step exceeds the limit of the loss, until the run has gone back because of it.
    """
    step, rollbacks = (snapshot.step, snapshot.rollbacks) if snapshot else (0, 0)
    done, dataset = 0, _dataset(_EVENT_SHAPES[case.network])
    stop_fn = lambda: done >= num_steps  # noqa: E731
    events = train(case.config, dataset, snapshot=snapshot, ranks=ranks, stop_fn=stop_fn, earlier_fn=storage.read)
    while True:
        is_faulty = case.faults[rollbacks : rollbacks + 1] == (step + 1,)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "_MAX_LOSS", 0.0 if is_faulty else 1e4)
            event = next(events)
        match event:
            case StepEvent():
                step, done = event.step, done + 1
            case RollbackEvent():
                step, rollbacks, done = event.to_step, event.rollbacks, done + 1
            case CheckpointEvent():
                storage.write(event)
            case DoneEvent():
                return event


def _differences(case: _Case, directory: Path, ranks: Ranks = ALONE) -> list[str]:
    """Train a case in both ways; return the tensors in which their checkpoints do not hold the same bits."""
    whole, interrupted = (_Storage(directory / case.name / part, ranks) for part in ("whole", "interrupted"))
    _run(case, whole, ranks)
    done = _run(case, interrupted, ranks, num_steps=1)
    while done.stopped:
        done = _run(case, interrupted, ranks, interrupted.read(done.step), num_steps=1)
    _run(case, interrupted, ranks, interrupted.read(_STEPS))  # which has nothing left to do
    assert interrupted.read(_STEPS).rollbacks == whole.read(_STEPS).rollbacks == len(case.faults)
    different: list[str] = []
    for step in (_REGULAR, _STEPS):
        expected, found = whole.tensors(step), interrupted.tensors(step)
        assert found.keys() == expected.keys()
        names = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
        different += [f"{case.name}: step {step}: {name}" for name in names]
    return different


@pytest.mark.slow
@pytest.mark.parametrize("case", _CASES, ids=[case.name for case in _CASES])
def test_a_run_interrupted_after_every_step_holds_the_bits_of_one_that_never_stopped(
    case: _Case, tmp_path: Path
) -> None:
    assert _differences(case, tmp_path) == []


def _rank(index: int, port: int, directory: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    with joined(index, 2, "cpu", leads_node=index == 0) as ranks:
        for case in _CASES_OF_TWO_RANKS:
            found = _differences(case, directory, ranks)
            (directory / f"{_CASES_OF_TWO_RANKS.index(case)}-of-rank-{index}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_so_does_a_run_of_two_ranks(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    spawn(_rank, (port, tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*-of-rank-*.json"))]
    assert found == [[]] * 2 * len(_CASES_OF_TWO_RANKS)
