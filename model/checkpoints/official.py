"""Reads the authors' TensorFlow checkpoints as models of this project.

Source: Gao et al. 2021 and its release (github.com/ruiqigao/recovery_likelihood): `network.py` names the variables,
`nn.py` defines the spectral norm, `train.py` says what is saved. What is read are the averaged weights (`model_ema`)
with the vectors of the power iteration; width, multipliers, blocks and channels follow from the shapes. The number of
levels and the size of images are not in the file: the network is the same for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoints.checkpoint import ENERGY, NetworkTensors, Snapshot, copy_tensors
from model.checkpoints.tensor_bundle import TensorBundle
from model.config import UNKNOWN_DATASET, NetworkConfig, ScheduleConfig, TrainConfig
from model.energies.energy_model import EnergyModel
from model.errors import CheckpointError, ConfigError
from model.event_kinds.pixels import BIN_WIDTH
from model.spaces.affine import AffineSpace

_IMAGE_SIZES = {(1, 2, 2, 2): 32, (1, 2, 2, 2, 4): 64, (1, 2, 2, 2, 4, 4): 128, (1, 1, 2, 2, 2, 4, 4): 256}
"""The height and width, in pixels, of the images for which the release uses each tuple of multipliers."""
_DEFAULT_IMAGE_SIZE = 32

_ROOT = "model_ema/net/"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_STEP = f"i_iter_var{_VALUE}"
_STALE = "/layer/W"
"""The end of the names of weights normalised at the last evaluation before the save; ours are computed from w."""
_BLOCK = re.compile(r"res_levels/(\d{1,3})/(\d{1,3})/conv2d_1/conv/w")

Shapes = Mapping[str, tuple[int, ...]]


def load(
    ckpt_prefix: Path | str, *, num_levels: int = 6, image_size: int | None = None, dataset: str = UNKNOWN_DATASET
) -> EnergyModel:
    """Load a checkpoint as a model in eval mode, with the published schedule: p ∝ exp(net_output(x, level)/s_t²).

    `net_output(x, level)` takes x (B, C, H, W) of any size and is what the release computes on its first evaluation.
    `image_size` is the height and width of samples, in pixels; None takes the release's size for these multipliers, or
    32. `dataset` is the dataset that calibrations score. Raises CheckpointError.
    """
    return _read(ckpt_prefix, num_levels, image_size, dataset)[0]


def read_snapshot(
    ckpt_prefix: Path | str, *, num_levels: int = 6, image_size: int | None = None, dataset: str = UNKNOWN_DATASET
) -> Snapshot:
    """Read the same model as a checkpoint of this project, at the release's own step, for sampling and densities.

    It has no training state: moments, and weights that were not averaged, are left out. Raises CheckpointError.
    """
    model, step = _read(ckpt_prefix, num_levels, image_size, dataset)
    networks = {ENERGY: NetworkTensors(copy_tensors(model.state_dict()))}
    return Snapshot(step, model.config, model.event_shape, networks)


def _read(ckpt_prefix: Path | str, num_levels: int, image_size: int | None, dataset: str) -> tuple[EnergyModel, int]:
    prefix = Path(str(ckpt_prefix).removesuffix(".index"))
    bundle = TensorBundle(prefix)
    shapes = _network_shapes(bundle.shapes, prefix)
    step = _step(bundle)
    try:
        network, channels = _infer(shapes, prefix)
        schedule = ScheduleConfig(num_levels=num_levels)
        config = TrainConfig(schedule=schedule, network=network, dataset=dataset, steps=max(1, step))
    except ConfigError as error:
        raise CheckpointError(f"{prefix} cannot become a model: {error}") from error
    variables = _variables(network, channels)
    _require_exactly(shapes, {name: shape for name, (_, shape) in variables.items()}, network, prefix)
    weights = {ours: _weight(bundle, name, prefix) for name, (ours, _) in variables.items()}
    size = image_size or _IMAGE_SIZES.get(network.multipliers, _DEFAULT_IMAGE_SIZE)
    model = EnergyModel(config, (channels, size, size))
    model.network.load_state_dict(weights)
    model.space = AffineSpace.discrete(model.event_shape, BIN_WIDTH)
    return model.eval(), step


def _network_shapes(shapes: Shapes, prefix: Path) -> Shapes:
    """Return the shapes of the averaged network's tensors, by their names without the network's prefix.

    Raises CheckpointError if there are none.
    """
    found = {
        name.removeprefix(_ROOT).removesuffix(_VALUE): shape
        for name, shape in shapes.items()
        if name.startswith(_ROOT) and name.endswith(_VALUE) and not name.endswith(_STALE + _VALUE)
    }
    if not found:
        raise CheckpointError(
            f"{prefix} is a TensorFlow checkpoint, but not one of the authors' release: it has no {_ROOT}…"
        )
    return found


def _infer(shapes: Shapes, prefix: Path) -> tuple[NetworkConfig, int]:
    """Return (network, channels of its images), as the shapes tell them. Raises CheckpointError, ConfigError."""
    first = shapes.get("conv2d_in/conv/w", ())
    blocks = {
        (int(found[1]), int(found[2])): shape for name, shape in shapes.items() if (found := _BLOCK.fullmatch(name))
    }
    if not blocks or any(len(shape) != 4 or 0 in shape for shape in [first, *blocks.values()]):
        raise CheckpointError(
            f"{prefix} has averaged weights, but not of the release's network with spectral norm: expected "
            "convolutions named conv2d_in/conv/w and res_levels/…/conv2d_1/conv/w"
        )
    width = first[3]
    resolutions, num_blocks = (1 + max(indices) for indices in zip(*blocks, strict=True))
    widths = [blocks.get((resolution, 0), (0,))[-1] for resolution in range(resolutions)]
    multipliers = tuple(one // width for one in widths)  # the check of shapes finds what is no multiple
    return NetworkConfig(width=width, multipliers=multipliers, num_blocks=num_blocks), first[2]


def _layers(config: NetworkConfig, channels: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield (name in the release, our name, shape of the weight in the release) of every layer with spectral norm."""
    width = before = config.width
    yield "conv2d_in/conv", "conv_in", (3, 3, channels, width)
    yield "temb_dense_0/dense", "embedding.dense0", (width, 4 * width)
    yield "temb_dense_1/dense", "embedding.dense1", (4 * width, 4 * width)
    for resolution, multiplier in enumerate(config.multipliers):
        after = multiplier * width
        for block in range(config.num_blocks):
            theirs, ours = f"res_levels/{resolution}/{block}", f"resolutions.{resolution}.{block}"
            yield f"{theirs}/conv2d_1/conv", f"{ours}.map1", (3, 3, before, after)
            yield f"{theirs}/conv2d_2/conv", f"{ours}.map2", (3, 3, after, after)
            yield f"{theirs}/dense/dense", f"{ours}.level", (4 * width, after)
            if before != after:
                yield f"{theirs}/conv2d_shortcut/conv", f"{ours}.shortcut", (3, 3, before, after)
            before = after


def _variables(config: NetworkConfig, channels: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return {name in the release: (our name, shape in the release)} of every variable of the release's network."""
    last = config.width * config.multipliers[-1]
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "temb_dense_2/dense/W": ("head.weight", (4 * config.width, last)),
        "temb_dense_2/dense/b": ("head.bias", (last,)),
    }
    for theirs, ours, shape in _layers(config, channels):
        out = shape[-1]
        found[f"{theirs}/w"] = f"{ours}.weight", shape
        found[f"{theirs}/layer/b"] = f"{ours}.bias", (out,)
        found[f"{theirs}/sn_u"] = f"{ours}.left_vector", (1, out)
        if ours.endswith(".map2"):
            found[f"{theirs}/layer/g"] = f"{ours}.gain", (out,)
    return found


def _require_exactly(shapes: Shapes, expected: Shapes, config: NetworkConfig, prefix: Path) -> None:
    """Refuse any other set of names and shapes, such as a network with attention. Raises CheckpointError."""
    for name in sorted(expected.keys() | shapes.keys()):
        if shapes.get(name) != expected.get(name):
            raise CheckpointError(
                f"{prefix} does not hold a network that can be imported: {name} is {_told(shapes, name)}, but with "
                f"width {config.width}, multipliers {config.multipliers} and {config.num_blocks} blocks a resolution "
                f"it is {_told(expected, name)}"
            )


def _told(shapes: Shapes, name: str) -> str:
    return f"of shape {shapes[name]}" if name in shapes else "absent"


def _weight(bundle: TensorBundle, name: str, prefix: Path) -> Tensor:
    """Read one variable in our layout: convolutions are OIHW, dense layers (out, in). Raises CheckpointError."""
    array = bundle.read(_ROOT + name + _VALUE)
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise CheckpointError(f"{prefix} has {array.dtype} values in {name}; expected finite float32")
    tensor = torch.from_numpy(array.copy())
    if tensor.dim() == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    if tensor.dim() == 2:
        return tensor[0] if name.endswith("/sn_u") else tensor.T.contiguous()
    return tensor


def _step(bundle: TensorBundle) -> int:
    """Return the number of training steps done, or 0 if the checkpoint does not say."""
    if bundle.shapes.get(_STEP) != ():
        return 0
    step = bundle.read(_STEP)
    return max(0, int(step)) if step.dtype.kind == "i" else 0
