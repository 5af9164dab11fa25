"""A server of the library's sampler behind LitServe: `python -m tests.bench.litserve_digits CHECKPOINT PORT ROWS`.

LitServe's dynamic batching gathers requests that wait together; a batch runs to its end before the next begins. There
is one worker process with one thread, and answers are PNGs as the service gives. LitServe reads the annotations, so
they are no strings here.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve as ls
import torch
from fastapi import Response

from model.chains.sampling import descend
from model.checkpoints.checkpoint import load_model
from model.event_kinds.pixels import FloatArray
from model.noise import SharedNoise, make_generator
from service.work.images import encode_grid, encode_png


class DigitsAPI(ls.LitAPI):  # type: ignore[misc]
    """The API of the server: it answers a request {"num_images": N, "seed": …} with a PNG."""

    def __init__(self, directory: str, **options: Any) -> None:
        super().__init__(**options)
        self._directory = directory

    def setup(self, device: str) -> None:
        """Load the model. LitServe calls this in the worker process."""
        torch.set_num_threads(1)
        self._model = load_model(Path(self._directory), device)

    def decode_request(self, request: dict[str, Any], **_: Any) -> tuple[int, int]:
        """Read a request as (number of images, seed)."""
        return int(request["num_images"]), int(request["seed"])

    def batch(self, inputs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the requests or images as they are, because `predict` takes and returns lists."""
        return list(inputs)

    def predict(self, x: list[tuple[int, int]], **_: Any) -> list[FloatArray]:
        """Draw all images of the batch in one descent; its noise is shared, which is cheaper than a stream a chain."""
        counts = [count for count, _ in x]
        noise = SharedNoise(make_generator(*(seed for _, seed in x)))
        x_top = noise.normal(torch.empty(sum(counts), *self._model.event_shape))
        samples = descend(self._model, x_top, noise, self._model.config.sampling).x
        return [part.numpy() for part in torch.split(samples, counts)]

    def unbatch(self, output: list[FloatArray]) -> list[FloatArray]:
        """Return the requests or images as they are, because `predict` takes and returns lists."""
        return output

    def encode_response(self, output: FloatArray, **_: Any) -> Response:
        """Answer with a PNG of one image, or of a grid."""
        png = encode_png(output[0]) if len(output) == 1 else encode_grid(output)
        return Response(content=png, media_type="image/png")


def main(directory: str, port: str, rows: str) -> None:
    """Serve until the process is killed."""
    api = DigitsAPI(directory, max_batch_size=int(rows), batch_timeout=0.02)
    server = ls.LitServer(api, accelerator="cpu", timeout=300)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, num_api_servers=1, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
