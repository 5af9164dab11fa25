"""The work of a bulk sampling: tens of thousands of samples as shards in storage.

A shard is a range of the stream of one seed, so it is the same whoever draws it, when and beside what: an attempt goes
on with the shards that are missing. Two shards are in the engine at a time, so that its batch stays full between them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from model.event_kinds.images import IMAGES
from model.event_kinds.pixels import to_bytes
from worker.jobs.event import SamplingEvent, ShardEvent, StartedEvent
from worker.jobs.kinds import SampleSpec
from worker.jobs.record import JobRecord, Progress
from worker.kinds.calibrate import load_checkpoint
from worker.queue.tasks import DrawOrder
from worker.storage.shards import Manifest, Shard, list_shards, put_manifest, put_shard, shard_name
from worker.trainer.attempt import Attempt, device_of
from worker.trainer.watch import StopReason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.energies.energy_model import EnergyModel
    from worker.engine.engine import Engine
    from worker.engine.tickets import DrawTicket

_TELL_EVERY_S = 1.0
_SHARDS_AT_ONCE = 2


class Run(Attempt):
    """One attempt at a bulk sampling."""

    def work(self, record: JobRecord) -> StopReason | None:
        """Draw the shards that are missing, then write the manifest. Raises ModelError, ArtifactMissing."""
        from worker.engine.engine import Engine

        spec = SampleSpec.of(record.spec)
        assert record.model_id is not None
        done = self.patiently(lambda: list_shards(self.artifacts, record.id))
        model = load_checkpoint(self, record.model_id, spec.step, device_of(record))
        self.telemetry.event(StartedEvent(step=spec.step, attempt=record.attempt, num_shards_done=len(done)))
        meter = _Meter(self, spec, sum(spec.count(index) for index in done))
        engine = Engine(lambda _: model)
        cost = 0
        for index, ticket in self._drawn(engine, spec, done, meter):
            shard, cost = _packed(model, ticket.future.result().x.numpy()), ticket.cost
            self.patiently(lambda index=index, shard=shard: put_shard(self.artifacts, record.id, index, shard))  # type: ignore[misc]
            self.telemetry.event(ShardEvent(index=index, num_images=spec.count(index)))
        if self.watch.reason is not None:
            return self.watch.reason
        manifest = _manifest(spec, f"{record.model_id}@{spec.step}", model, cost)
        self.patiently(lambda: put_manifest(self.artifacts, record.id, manifest))
        meter.tell()
        return None

    def _drawn(
        self, engine: Engine, spec: SampleSpec, done: set[int], meter: _Meter
    ) -> Iterator[tuple[int, DrawTicket]]:
        """Yield shards as they are finished, in order, until all are there or the job is to stop."""
        missing = [index for index in range(spec.num_shards) if index not in done]
        under_way: list[tuple[int, DrawTicket]] = []
        while (missing or under_way) and not self.watch.should_stop():
            while missing and len(under_way) < _SHARDS_AT_ONCE:
                index = missing.pop(0)
                under_way.append((index, _draw(engine, spec, index)))
            engine.step()
            meter.update(engine.load().num_row_evaluations, under_way[0][1].cost)
            if not under_way[0][1].is_open:
                yield under_way.pop(0)


class _Meter:
    """Tells how far the job has come, once a second."""

    def __init__(self, attempt: Attempt, spec: SampleSpec, num_before: int) -> None:
        self._attempt = attempt
        self._spec = spec
        self._num_before = num_before
        self._num_images = num_before
        self._began_at = self._told_at = time.monotonic()

    def update(self, num_row_evaluations: int, cost: int) -> None:
        """Take in the number of gradient evaluations done, of which one image takes `cost`."""
        self._num_images = min(self._spec.num_images, self._num_before + num_row_evaluations // cost)
        if time.monotonic() - self._told_at > _TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Append the event, and update the job's progress."""
        self._told_at = time.monotonic()
        total = self._spec.num_images
        rate = (self._num_images - self._num_before) / max(1e-3, self._told_at - self._began_at)
        self._attempt.telemetry.event(
            SamplingEvent(num_images=self._num_images, total_images=total, images_per_second=round(rate, 2))
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


def _draw(engine: Engine, spec: SampleSpec, index: int) -> DrawTicket:
    order = DrawOrder(
        num_images=spec.count(index),
        seed=spec.seed,
        num_steps=spec.num_steps,
        start=spec.start,
        noise_scale=spec.noise_scale,
        labels=spec.labels,
        adjusted=spec.adjusted,
    )
    return engine.draw("model", order, first=index * spec.shard_images)


def _packed(model: EnergyModel, x: NDArray[np.float32]) -> bytes:
    """A .npy file: images as pixels 0…255, which PNGs hold too; anything else as the numbers it is."""
    are_pixels = IMAGES.recognises(model.event_shape) and bool(model.space.bin_width > 0)
    array = to_bytes(x) if are_pixels else x
    packed = io.BytesIO()
    np.save(packed, array, allow_pickle=False)
    return packed.getvalue()


def _manifest(spec: SampleSpec, model_at: str, model: EnergyModel, cost: int) -> Manifest:
    return Manifest(
        model=model_at,
        seed=spec.seed,
        num_images=spec.num_images,
        event_shape=tuple(model.event_shape),
        num_steps=spec.num_steps,
        start=spec.start,
        noise_scale=spec.noise_scale,
        labels=tuple(one.named(model.class_names) for one in spec.labels),
        guidance=max((one.guidance for one in spec.labels), default=None),
        gradient_evaluations=cost,
        shards=tuple(Shard(name=shard_name(i), num_images=spec.count(i)) for i in range(spec.num_shards)),
    )
