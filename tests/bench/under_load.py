"""Whether samples are as good when they are drawn through the engine beside many others as when they are drawn alone.

A sample follows from its seed and number, whoever shares its batch, up to the rounding of another batch's size, which
a Metropolis test or a long chain can make visible. So the figures are compared, and how many samples are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from model import data, presets
from model.chains.sampling import sample
from model.composition import Composition
from tests.bench.composition import digits_judge
from tests.bench.labelled import NAME, NUM_SAMPLES, SEED, config, figures_of, in_turn
from tests.bench.trainings import load_trained, train_all
from worker.engine.engine import Engine
from worker.queue.tasks import DrawOrder

_OTHER = "digits-digits-0"
_GUIDANCE = 0.5
_CLIENTS = 6
_SAME = 1e-3
"""The largest difference of a pixel, in image values, between samples that count as the same."""


def measure(tell_fn: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of the same samples, by label and guidance, drawn alone and under load."""
    train_all({NAME: config(), _OTHER: presets.preset("digits")}, tell_fn)
    digits, (judge, _) = data.load("digits"), digits_judge()
    alone = sample(load_trained(NAME), NUM_SAMPLES, seed=SEED, labels=in_turn(), guidance=_GUIDANCE).x.numpy()
    labels = tuple(Composition.of_label(label, _GUIDANCE) for label in in_turn())
    engine = Engine(load_trained)
    engine.start()
    try:
        with _clients(engine) as counts:
            ticket = engine.draw(NAME, DrawOrder(num_images=NUM_SAMPLES, seed=SEED, labels=labels))
            loaded = np.asarray(ticket.future.result().x)
    finally:
        engine.stop()
    same = np.abs(alone - loaded).reshape(NUM_SAMPLES, -1).max(1) < _SAME
    results = {
        "alone": figures_of(alone, digits, judge),
        "loaded": figures_of(loaded, digits, judge),
        "share_of_same_samples": float(same.mean()),
        "requests_beside": sum(counts),
    }
    tell_fn(str(results))
    return results


@contextmanager
def _clients(engine: Engine) -> Iterator[list[int]]:
    """Keep `_CLIENTS` asking two models for 1 to 64 samples, and yield how many answers each of them had."""
    stopped, counts = threading.Event(), [0] * _CLIENTS

    def ask(client: int) -> None:
        while not stopped.is_set():
            order = DrawOrder(num_images=(1, 8, 64)[counts[client] % 3], seed=1000 * client + counts[client])
            engine.draw((NAME, _OTHER)[client % 2], order).future.result()
            counts[client] += 1

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
