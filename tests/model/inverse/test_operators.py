"""Operators are linear maps with the right adjoints and pseudo-inverses, and refuse what they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.errors import ConfigError, ModelError, ShapeError
from model.inverse.config import OperatorConfig, parse
from model.inverse.operators import Blur, Downsample, Mask, Matrix, Operator, as_operator, make_operator, random_mask

SHAPE = (2, 8, 6)
TEXTS = (
    "box:1,2,4,3",
    "random:0.3,5",
    "downsample:2",
    "blur:1.2",
    "compress:0.25,3",
    "spectrum:0.2",
    "denoise",
    "blur:0.8+downsample:2",
    "downsample:2+random:0.5",
)


def _operators() -> dict[str, Operator]:
    rows = torch.randn(7, 96, generator=torch.Generator().manual_seed(1))
    rows[6] = rows[0] - rows[1]  # of rank 6
    kernel = torch.rand(3, 5, generator=torch.Generator().manual_seed(2))
    made = {text: make_operator(parse(text), SHAPE) for text in TEXTS}
    return made | {"matrix": Matrix(SHAPE, rows), "kernel": Blur(SHAPE, kernel)}


OPERATORS = _operators()


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_the_transpose(name: str) -> None:
    operator = OPERATORS[name]
    x, b = _normal(SHAPE, 1), _normal(operator.measurement_shape, 2)

    one, other = (operator.forward(x) * b).flatten(1).sum(1), (x * operator.adjoint(b)).flatten(1).sum(1)

    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_pseudo_inverse_fulfils_penrose_s_conditions(name: str) -> None:
    operator = OPERATORS[name]
    pinv = torch.linalg.pinv(operator.matrix, rtol=1e-9)

    b = _normal(operator.measurement_shape, 3)

    expected = (b.flatten(1) @ pinv.T).reshape(-1, *SHAPE)
    torch.testing.assert_close(operator.pseudo_inverse(b), expected, rtol=1e-7, atol=1e-7)
    x = _normal(SHAPE, 4)
    again = operator.forward(operator.pseudo_inverse(operator.forward(x)))
    torch.testing.assert_close(again, operator.forward(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", OPERATORS)
def test_singular_values_are_those_of_the_matrix(name: str) -> None:
    values = torch.linalg.svdvals(OPERATORS[name].matrix)
    expected = values[values > 1e-9 * values.max()]

    torch.testing.assert_close(OPERATORS[name].singular_values().sort(descending=True)[0], expected)


def test_a_box_hides_what_is_in_it_and_nothing_else() -> None:
    x = torch.ones(1, *SHAPE)
    seen = OPERATORS["box:1,2,4,3"].pseudo_inverse(OPERATORS["box:1,2,4,3"].forward(x))

    assert float(seen[0, :, 1:5, 2:5].abs().sum()) == 0
    assert float(seen.sum()) == 96 - 2 * 12


def test_downsampling_takes_means_of_blocks() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)

    assert Downsample((1, 4, 4), 2).forward(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_a_blur_keeps_the_sum_and_the_place() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 3, 4] = 1
    blurred = Blur.gaussian((1, 9, 9), 1.0).forward(x)

    assert float(blurred.sum()) == pytest.approx(1)
    assert int(blurred.argmax()) == 3 * 9 + 4
    assert float(blurred[0, 0, 3, 5] / blurred[0, 0, 3, 4]) == pytest.approx(0.6065, abs=1e-4)


def test_the_lowest_frequency_is_the_mean() -> None:
    operator = make_operator(parse("spectrum:0.01"), (1, 8, 8))

    torch.testing.assert_close(operator.matrix, torch.full((1, 64), 1 / 8, dtype=torch.float64))


def test_the_same_seed_keeps_the_same_pixels_and_another_seed_others() -> None:
    one, again, other = (random_mask(SHAPE, 0.3, seed).matrix for seed in (4, 4, 5))

    assert one.shape == (28, 96)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


class _Halved:
    """What deepinv's LinearPhysics looks like from outside."""

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x / 2

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return y / 2

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        return y * 2


def test_an_object_like_deepinv_s_is_taken() -> None:
    operator = as_operator(_Halved(), SHAPE)

    torch.testing.assert_close(operator.matrix, torch.eye(96, dtype=torch.float64) / 2)
    torch.testing.assert_close(operator.pseudo_inverse(torch.ones(1, *SHAPE)), torch.full((1, *SHAPE), 2.0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_operator(parse("box:0,0,8,6"), SHAPE), "hides everything"),
        (lambda: make_operator(parse("box:4,0,8,6"), SHAPE), "does not lie in the image"),
        (lambda: make_operator(parse("downsample:4"), SHAPE), "expected a divisor"),
        (lambda: make_operator(parse("blur:1"), (5,)), "is for images"),
        (lambda: make_operator((), SHAPE), "no steps"),
        (lambda: make_operator(parse("compress:0.5"), (3, 64, 64)), "at most 4096 numbers"),
        (lambda: parse("melt:3"), "expected one of box"),
        (lambda: parse("box:1,2"), "expected box:TOP,LEFT,HEIGHT,WIDTH"),
        (lambda: parse("random:many"), "no number"),
        (lambda: parse("random:nan"), "expected a number from"),
        (lambda: parse("downsample:9"), "expected a number from 2 to 8"),
        (lambda: Mask(SHAPE, torch.ones(3, 3, dtype=torch.bool)), "expected booleans of shape"),
        (lambda: Mask(SHAPE, torch.ones(8, 6)), "expected booleans"),
        (lambda: Matrix(SHAPE, torch.zeros(2, 96)), "all zeros"),
        (lambda: Matrix(SHAPE, torch.full((2, 96), torch.nan)), "not finite"),
        (lambda: Matrix(SHAPE, torch.ones(2, 95)), r"expected \(M, 96\)"),
        (lambda: Matrix((1 << 20,), torch.ones(1, 1).expand(32, 1 << 20)), "at most 16777216"),
        (lambda: Blur(SHAPE, torch.ones(9, 1)), "kernel has shape"),
        (lambda: Blur(SHAPE, torch.tensor([[1.0, -1.0]])), "sums to 0"),
        (lambda: as_operator(object(), SHAPE), "an object with A"),
        (lambda: as_operator(Downsample((1, 4, 4), 2), SHAPE), "takes events of shape"),
    ],
)
def test_what_cannot_be_an_operator_is_refused_in_a_sentence(make: Any, words: str) -> None:
    with pytest.raises((ConfigError, ShapeError), match=words) as refused:
        make()

    assert isinstance(refused.value, ModelError)
    assert "\n" not in str(refused.value)


def test_a_text_says_the_same_as_its_fields() -> None:
    assert parse("blur:1.5+box:8,8,12,12") == (
        OperatorConfig(kind="blur", std=1.5),
        OperatorConfig(kind="box", top=8, left=8, height=12, width=12),
    )
