"""Samples of a model: chains in the engine's batch, beside those of all other requests."""

from __future__ import annotations

from worker.queue.messages import FloatArray
from worker.queue.tasks import SampleReply, SampleRequest
from worker.sampler.metrics import images
from worker.sampler.open_request import OpenRequest


def answer(opened: OpenRequest[SampleRequest]) -> SampleReply:
    """Draw the samples; a stream is sent every level as its chains have reached it."""
    request = opened.request

    def send_level(level: int, x: FloatArray) -> None:
        if request.stream:
            opened.send(opened.reply(SampleReply, seed=request.seed, level_reached=level, levels={level: x}))

    samples = opened.draw(request, send_level)
    images.inc(request.num_images)
    return opened.reply(
        SampleReply,
        seed=request.seed,
        precision=request.precision,
        kernel=samples.kernel,
        gradient_evaluations=samples.gradient_evaluations,
        x=samples.x.numpy(),
        levels={level: x.numpy() for level, x in samples.levels.items()},
    )
