"""The authors' checkpoints as models: any width, depth and multipliers; what cannot be meant is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.chains.sampling import sample
from model.checkpoints import official
from model.checkpoints.checkpoint import load_model
from model.conditions import At
from model.errors import CheckpointError
from tests.model.checkpoints.bundle_writer import Array, write_bundle
from tests.model.checkpoints.official import CHECKPOINT, golden, images

Floats = npt.NDArray[np.float64]
Weights = dict[str, Array]

_WIDTH, _MULTIPLIERS, _NUM_BLOCKS = 12, (1, 3, 2), 2
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def test_a_loaded_checkpoint_answers_with_the_release_s_numbers() -> None:
    model = official.load(str(CHECKPOINT))
    assert not model.training
    assert model.event_shape == (3, 32, 32)
    output = model.net_output(images("net_input_nhwc"), At(torch.from_numpy(golden()["net_t"]).long())).detach().numpy()
    recorded = golden()["net_output"]
    assert abs(output - recorded).max() <= 1e-4 * abs(recorded).max()


def test_its_energy_is_the_negative_output_over_the_squared_step() -> None:
    model, x = official.load(f"{CHECKPOINT}.index"), images("net_input_nhwc")
    level = torch.arange(6)
    expected = -model.net_output(x, At(level)) / model.schedule.step_size(2e-4**0.5)[level].float() ** 2
    torch.testing.assert_close(model.energy(x, At(level)), expected)


def _conv_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    before = _WIDTH
    yield "conv2d_in/conv", (3, 3, 3, _WIDTH)
    for resolution, multiplier in enumerate(_MULTIPLIERS):
        after = _WIDTH * multiplier
        for block in range(_NUM_BLOCKS):
            path = f"res_levels/{resolution}/{block}"
            yield f"{path}/conv2d_1/conv", (3, 3, before, after)
            yield f"{path}/conv2d_2/conv", (3, 3, after, after)
            yield f"{path}/dense/dense", (4 * _WIDTH, after)
            if before != after:
                yield f"{path}/conv2d_shortcut/conv", (3, 3, before, after)
            before = after
    yield "temb_dense_0/dense", (_WIDTH, 4 * _WIDTH)
    yield "temb_dense_1/dense", (4 * _WIDTH, 4 * _WIDTH)


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random averaged weights of another network than the shipped one; the iteration's vectors far from converged."""
    generator = np.random.default_rng(3)

    def draw(*shape: int) -> npt.NDArray[np.float32]:
        return generator.normal(size=shape).astype(np.float32)

    last = _WIDTH * _MULTIPLIERS[-1]
    found: dict[str, npt.NDArray[np.float32]] = {
        "temb_dense_2/dense/W": draw(4 * _WIDTH, last),
        "temb_dense_2/dense/b": draw(last),
    }
    for layer, shape in _conv_shapes():
        found |= {f"{layer}/w": draw(*shape), f"{layer}/layer/b": draw(shape[-1]), f"{layer}/layer/W": draw(*shape)}
        found[f"{layer}/sn_u"] = 0.02 * draw(1, shape[-1])
        if "conv2d_2" in layer:
            found[f"{layer}/w"] *= np.float32(0.05)  # some singular values below 1, some above
            found[f"{layer}/layer/g"] = draw(shape[-1])
    return dict(found)


def write_checkpoint(prefix: Path, weights: Weights, **more: Array) -> Path:
    """A checkpoint of the release's names."""
    named = {f"model_ema/net/{name}{_VALUE}": array for name, array in weights.items()}
    decoys = {f"model/net/{name}{_VALUE}": array + 1 for name, array in weights.items()}
    counter: dict[str, Array] = {f"i_iter_var{_VALUE}": np.array(5000, np.int32)}
    write_bundle(prefix, named | decoys | counter | more)
    return prefix


class ReleaseNetwork:
    """The release's network in numpy, as `nn.py` and `network.py` tell it, on its first evaluation."""

    def __init__(self, weights: Weights) -> None:
        self._weights = {name: array.astype(np.float64) for name, array in weights.items()}

    def __call__(self, x: Floats, level: int) -> float:
        angles = level * np.exp(-np.log(10_000) / (_WIDTH // 2 - 1) * np.arange(_WIDTH // 2))
        embedding = self._dense("temb_dense_0/dense", np.concatenate([np.sin(angles), np.cos(angles)]))
        embedding = _leaky(self._dense("temb_dense_1/dense", _leaky(embedding)))
        h = self._conv("conv2d_in/conv", x)
        for resolution in range(len(_MULTIPLIERS)):
            for block in range(_NUM_BLOCKS):
                h = self._block(f"res_levels/{resolution}/{block}", h, embedding)
            if resolution < len(_MULTIPLIERS) - 1:
                height, width, channels = h.shape
                h = h.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))
        head = embedding @ self._weights["temb_dense_2/dense/W"] + self._weights["temb_dense_2/dense/b"]
        return float(np.maximum(h, 0).sum((0, 1)) @ head)

    def _block(self, path: str, x: Floats, embedding: Floats) -> Floats:
        h = self._conv(f"{path}/conv2d_1/conv", _leaky(x)) + self._dense(f"{path}/dense/dense", embedding)
        h = self._conv(f"{path}/conv2d_2/conv", _leaky(h)) * self._weights[f"{path}/conv2d_2/conv/layer/g"]
        return h + (x if x.shape[2] == h.shape[2] else self._conv(f"{path}/conv2d_shortcut/conv", x))

    def _conv(self, layer: str, x: Floats) -> Floats:
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
        kernel = self._normalised(layer)
        result: Floats = np.einsum("hwcij,ijco->hwo", windows, kernel) + self._weights[f"{layer}/layer/b"]
        return result

    def _dense(self, layer: str, x: Floats) -> Floats:
        result: Floats = x @ self._normalised(layer) + self._weights[f"{layer}/layer/b"]
        return result

    def _normalised(self, layer: str) -> Floats:
        weight = self._weights[f"{layer}/w"]
        matrix = weight.reshape(-1, weight.shape[-1])
        v = self._weights[f"{layer}/sn_u"][0] @ matrix.T
        singular_value = float(np.linalg.norm(v / np.linalg.norm(v) @ matrix))
        if "conv2d_2" in layer:
            singular_value = (singular_value + 1e-6) / min(singular_value + 1e-6, 1)
        normalised: Floats = weight / singular_value
        return normalised


def _leaky(x: Floats) -> Floats:
    return np.where(x > 0, x, 0.2 * x)


def test_another_width_and_depth_is_inferred_and_computes_what_the_release_does(
    tmp_path: Path, weights: Weights
) -> None:
    model = official.load(write_checkpoint(tmp_path / "ckpt-iter5000", weights))
    x = np.random.default_rng(4).normal(size=(3, 8, 12, 3))
    release = ReleaseNetwork(weights)
    recorded = np.array([release(image, level) for image, level in zip(x, (0, 3, 5), strict=True)])
    with torch.no_grad():
        output = model.net_output(torch.from_numpy(np.moveaxis(x, 3, 1)).float(), At(torch.tensor([0, 3, 5]))).numpy()
    network = model.config.network
    assert (network.width, network.multipliers, network.num_blocks) == (_WIDTH, _MULTIPLIERS, _NUM_BLOCKS)
    assert abs(output - recorded).max() <= 1e-4 * abs(recorded).max()


def test_an_import_is_a_checkpoint_of_ours_that_samples_the_same(tmp_path: Path) -> None:
    snapshot = official.read_snapshot(CHECKPOINT, num_levels=4, image_size=8, dataset="cifar10")
    snapshot.write(tmp_path)
    ours = load_model(tmp_path)
    assert (snapshot.step, ours.config.dataset, ours.num_levels, ours.event_shape) == (1234, "cifar10", 4, (3, 8, 8))
    drawn = sample(ours, 2, seed=0, num_steps=2).x
    torch.testing.assert_close(
        drawn, sample(official.load(CHECKPOINT, num_levels=4, image_size=8), 2, seed=0, num_steps=2).x
    )
    assert float(drawn.abs().max()) <= 1


def _without(weights: Weights, name: str) -> Weights:
    return {other: array for other, array in weights.items() if other != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda _: {}, "not one of the authors' release: it has no model_ema/net/"),
        (lambda w: _without(w, "conv2d_in/conv/w"), "not of the release's network with spectral norm"),
        (lambda w: _without(w, "res_levels/1/1/dense/dense/w"), "res_levels/1/1/dense/dense/w is absent"),
        (lambda w: _without(w, "temb_dense_0/dense/sn_u"), "temb_dense_0/dense/sn_u is absent"),
        (lambda w: w | {"attn_s/16/0/nin_q/nin/W": np.ones((2, 2))}, "attn_s/16/0/nin_q/nin/W is of shape"),
        (
            lambda w: w | {"temb_dense_2/dense/b": np.ones(5)},
            r"temb_dense_2/dense/b is of shape \(5,\), but with width 12",
        ),
        (lambda w: w | {"res_levels/40/0/conv2d_1/conv/w": np.ones((3, 3, 1, 12))}, "network.multipliers has 41"),
        (lambda w: w | {"temb_dense_2/dense/b": np.full(24, np.nan, np.float32)}, "finite float32"),
        (lambda w: w | {"temb_dense_2/dense/b": np.ones(24)}, "float64 values in temb_dense_2/dense/b"),
    ],
)
def test_a_foreign_checkpoint_is_refused_naming_what_differs(
    tmp_path: Path, weights: Weights, change: object, told: str
) -> None:
    assert callable(change)
    prefix = write_checkpoint(tmp_path / "ckpt", change(weights))
    with pytest.raises(CheckpointError, match=told) as caught:
        official.load(prefix)
    assert "\n" not in str(caught.value)


def test_levels_that_the_published_schedule_cannot_have_are_refused() -> None:
    with pytest.raises(CheckpointError, match="num_levels is 600"):
        official.load(CHECKPOINT, num_levels=600)
