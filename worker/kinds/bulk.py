"""The subprocess of a bulk sampling, `python -m worker.kinds.bulk`: tens of thousands of samples as shards in storage.

A shard is a range of the stream of one seed, so it is the same whoever draws it, when and beside what: an attempt goes
on with the shards that are missing. Two shards are in the engine at a time, so that its batch stays full between them.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.event_kinds.images import IMAGES
from model.event_kinds.pixels import to_bytes
from worker.jobs.record import JobRecord, Progress
from worker.kinds.calibrate import load_checkpoint
from worker.storage.shards import list_shards, put_manifest, put_shard, shard_name
from worker.trainer.attempt import Attempt, device_of, main
from worker.trainer.watch import StopReason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.energies.energy_model import EnergyModel
    from worker.engine.engine import Engine
    from worker.engine.tickets import DrawTicket

_TELL_EVERY_S = 1.0
_SHARDS_AT_ONCE = 2


@dataclass(frozen=True)
class Plan:
    """What the job's spec asks for."""

    model_id: str
    step: int
    num_images: int
    shard_images: int
    seed: int
    num_steps: int | None
    noise_scale: float | None

    @classmethod
    def of(cls, record: JobRecord) -> Plan:
        """The plan of a job."""
        assert record.model_id is not None
        return cls(model_id=record.model_id, **{k: v for k, v in record.spec.items() if k != "device"})

    @property
    def num_shards(self) -> int:
        """The last one may be smaller."""
        return -(-self.num_images // self.shard_images)

    def count(self, index: int) -> int:
        """Images of a shard."""
        return min(self.shard_images, self.num_images - index * self.shard_images)


class BulkRun(Attempt):
    """One attempt at a bulk sampling."""

    def work(self, record: JobRecord) -> StopReason | None:
        """Draw the shards that are missing, then write the manifest. Raises ModelError, ArtifactMissing."""
        from worker.engine.engine import Engine

        plan = Plan.of(record)
        done = self.patiently(lambda: list_shards(self.artifacts, record.id))
        model = load_checkpoint(self, plan.model_id, plan.step, device_of(record))
        self.telemetry.event("started", {"step": plan.step, "attempt": record.attempt, "num_shards_done": len(done)})
        meter = _Meter(self, plan, sum(plan.count(index) for index in done))
        engine = Engine(lambda _: model)
        cost = 0
        for index, ticket in self._drawn(engine, plan, done, meter):
            shard, cost = _packed(model, ticket.future.result().x.numpy()), ticket.cost
            self.patiently(lambda index=index, shard=shard: put_shard(self.artifacts, record.id, index, shard))  # type: ignore[misc]
            self.telemetry.event("shard", {"index": index, "num_images": plan.count(index)})
        if self.watch.reason is not None:
            return self.watch.reason
        manifest = _manifest(plan, model, cost)
        self.patiently(lambda: put_manifest(self.artifacts, record.id, manifest))
        meter.tell()
        return None

    def _drawn(self, engine: Engine, plan: Plan, done: set[int], meter: _Meter) -> Iterator[tuple[int, DrawTicket]]:
        """Shards as they are finished, in order, until all are there or the job is to stop."""
        missing = [index for index in range(plan.num_shards) if index not in done]
        under_way: list[tuple[int, DrawTicket]] = []
        while (missing or under_way) and not self.watch.should_stop():
            while missing and len(under_way) < _SHARDS_AT_ONCE:
                index = missing.pop(0)
                under_way.append((index, _draw(engine, plan, index)))
            engine.step()
            meter.update(engine.load().num_row_evaluations, under_way[0][1].cost)
            if not under_way[0][1].is_open:
                yield under_way.pop(0)


class _Meter:
    """How far the job has come, told once a second."""

    def __init__(self, attempt: Attempt, plan: Plan, num_before: int) -> None:
        self._attempt = attempt
        self._plan = plan
        self._num_before = num_before
        self._num_images = num_before
        self._began_at = self._told_at = time.monotonic()

    def update(self, num_row_evaluations: int, cost: int) -> None:
        """So many evaluations were done, of which an image takes `cost`."""
        self._num_images = min(self._plan.num_images, self._num_before + num_row_evaluations // cost)
        if time.monotonic() - self._told_at > _TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """The event, and the job's progress."""
        self._told_at = time.monotonic()
        total = self._plan.num_images
        rate = (self._num_images - self._num_before) / max(1e-3, self._told_at - self._began_at)
        self._attempt.telemetry.event(
            "sampling", {"num_images": self._num_images, "total_images": total, "images_per_second": round(rate, 2)}
        )
        self._attempt.telemetry.progress(
            Progress(
                step=self._num_images,
                total_steps=total,
                percent=round(100 * self._num_images / total, 2),
                steps_per_second=rate,
                eta_seconds=(total - self._num_images) / rate if rate > 0 else None,
            )
        )


def _draw(engine: Engine, plan: Plan, index: int) -> DrawTicket:
    from worker.engine.tickets import DrawOrder

    order = DrawOrder(
        num_images=plan.count(index),
        seed=plan.seed,
        first=index * plan.shard_images,
        num_steps=plan.num_steps,
        noise_scale=plan.noise_scale,
    )
    return engine.draw("model", order)


def _packed(model: EnergyModel, x: NDArray[np.float32]) -> bytes:
    """Pixels 0…255 of images, as PNGs hold; numbers of anything else."""
    are_pixels = IMAGES.recognises(model.event_shape) and bool(model.space.bin_width > 0)
    array = to_bytes(x) if are_pixels else x
    packed = io.BytesIO()
    np.save(packed, array, allow_pickle=False)
    return packed.getvalue()


def _manifest(plan: Plan, model: EnergyModel, cost: int) -> dict[str, Any]:
    return {
        "model": f"{plan.model_id}@{plan.step}",
        "seed": plan.seed,
        "num_images": plan.num_images,
        "event_shape": list(model.event_shape),
        "num_steps": plan.num_steps,
        "noise_scale": plan.noise_scale,
        "gradient_evaluations": cost,
        "shards": [{"name": shard_name(i), "num_images": plan.count(i)} for i in range(plan.num_shards)],
    }


if __name__ == "__main__":
    sys.exit(main(BulkRun, sys.argv[1:]))
