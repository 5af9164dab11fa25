"""Samples as a client gets them: as numbers, and as pictures if the model makes images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.work.images import by_label, columns_by_label, encode_grid, encode_png, is_image

_SHOWN_SIDE = 320
"""The width in pixels to which a notebook magnifies grids of small images, about."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Samples, with everything that is needed to draw the same again. A notebook shows images as a grid."""

    x: npt.NDArray[np.float32]
    """The samples (N, *event), images in [−1, 1]."""
    levels: npt.NDArray[np.float32] | None = None
    """The intermediate samples (levels, N, *event), noisiest first, if levels were asked for."""
    seed: int
    model: str
    """The checkpoint that was sampled, as id@step."""
    gradient_evaluations: int
    """Gradient evaluations per sample."""
    quality: str = "own"
    """The quality whose settings were used, or `own` for the model's own settings and for numbers of the request."""
    labels: list[Any] = field(default_factory=list)
    """What was asked of the samples' labels, which took it in turn; empty if nothing was."""
    guidance: float | None = None
    """Of the labels."""
    kernel: str | None = None
    """By which the chains moved."""

    @property
    def images(self) -> list[Image.Image]:
        """Return the samples as Pillow images. Raises TypeError for vectors."""
        self._require_images()
        return [_opened(encode_png(image)) for image in self.x]

    def grid(self, *, scale: int = 1) -> Image.Image:
        """Return all samples in one picture with pixels magnified `scale` times; with levels, one row for each sample.

        Raises TypeError for vectors.
        """
        return _opened(self.png(scale=scale))

    def png(self, *, scale: int = 1) -> bytes:
        """Return a PNG file of one image, or of a grid; with levels, one row for each sample, noisiest level first.

        Samples of several labels lie label by label.
        """
        self._require_images()
        order = by_label(len(self), len(self.labels))
        if self.levels is not None:
            way = np.concatenate([self.levels, self.x[None]])[:, order]
            by_sample = np.swapaxes(way, 0, 1).reshape(-1, *self.x.shape[1:])
            return encode_grid(by_sample, scale=scale, num_columns=len(way))
        columns = columns_by_label(len(self), len(self.labels))
        x = self.x[order]
        return encode_png(x[0], scale=scale) if len(x) == 1 else encode_grid(x, scale=scale, num_columns=columns)

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        return iter(self.x)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.x, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.x.shape[1:]))
        return f"<{len(self)} samples of shape {shape} from {self.model}, seed {self.seed}>"

    def _repr_png_(self) -> bytes | None:
        if not is_image(self.x.shape[1:]):
            return None
        columns = int(np.ceil(len(self) ** 0.5)) if self.levels is None else len(self.levels) + 1
        return self.png(scale=max(1, _SHOWN_SIDE // (columns * self.x.shape[-1])))

    def _require_images(self) -> None:
        if not is_image(self.x.shape[1:]):
            raise TypeError(f"this model makes vectors of shape {self.x.shape[1:]}, not images; use `x`")


def spread_levels(num_levels: int, count: int) -> list[int]:
    """Return at most `count` noise levels, spread evenly from pure noise to the one above the cleanest."""
    return sorted({round(level) for level in np.linspace(num_levels, 1, count)})


def _opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))
