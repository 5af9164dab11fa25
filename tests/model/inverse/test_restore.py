"""Restoring is exact where the posterior is known, and says so where it did not arrive."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from model.densities.annealing import anneal, finished
from model.energies.bases import MixtureBase
from model.errors import ModelError
from model.inverse.ascent import AscentConfig, ascent, climbing
from model.inverse.config import parse
from model.inverse.guide import Guide
from model.inverse.operators import Matrix, Operator, make_operator
from model.inverse.restore import disagreement, restore
from model.inverse.verdict import ARRIVALS, arrival
from model.noise import SharedNoise, make_generator
from model.spaces.affine import AffineSpace
from tests.model.inverse import exact

SHAPE = (1, 4, 4)
NOISE_STD = 0.2


def _events(num_components: int) -> Tensor:
    """Smooth random pictures around a few centres."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=generator) / 4
    centres = torch.randn(num_components, 16, generator=generator)
    chosen = torch.randint(num_components, (600,), generator=generator)
    flat = 0.7 * centres[chosen] + torch.randn(600, 16, generator=generator) @ mixing * 0.6
    return flat.reshape(600, *SHAPE)


def _measured(operator: Operator, x: Tensor, seed: int, noise_std: float = NOISE_STD) -> Tensor:
    exactly = operator.forward(x)
    noise = torch.randn(exactly.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (exactly + noise_std * noise)[0].float()


@pytest.mark.parametrize("text", ["box:0,0,2,4", "compress:0.25", "denoise", "random:0.3", "blur:0.8+downsample:2"])
def test_gaussian_data_are_guided_without_loss(text: str) -> None:
    """The guide of Gaussian data is exact at every level: all weights are one, and the evidence has no error."""
    model = exact.mixture_model(_events(1), 2, num_levels=6)
    base = model.base
    assert isinstance(base, MixtureBase)
    assert base.rotation is not None
    for of_both, own in ((base.means, base.mean), (base.variances, base.variance), (base.rotations, base.rotation)):
        of_both[1] = of_both[0]
        own.copy_(of_both[0])
    operator = make_operator(parse(text), SHAPE)
    measured = _measured(operator, exact.draw(model, 1, 3), 4)
    known = exact.posterior(model, operator, measured, NOISE_STD)

    guide = Guide.of(model, operator, measured, NOISE_STD)
    walk = anneal(guide.path(), 16, SharedNoise(make_generator(1)), num_bridges=1)

    assert float(walk.log_weights.std()) < 1e-3
    assert guide.log_evidence + walk.log_mean_weight == pytest.approx(known.log_evidence, abs=2e-3)
    torch.testing.assert_close(guide.mean, known.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((guide.rotation**2) @ guide.variance, known.variance, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["box:0,0,2,4", "compress:0.25", "downsample:2"])
def test_the_posterior_of_a_mixture_is_met_with_its_evidence(text: str) -> None:
    model = exact.mixture_model(_events(4), 4)
    operator = make_operator(parse(text), SHAPE)
    measured = _measured(operator, exact.draw(model, 1, 5), 6)
    known = exact.posterior(model, operator, measured, NOISE_STD)

    found = restore(model, operator, measured, noise_std=NOISE_STD, num_samples=256, num_chains=512, seed=2)

    error = ((found.mean.flatten() - known.mean) ** 2 / known.variance).mean()
    ratio = (found.std.flatten() ** 2 / known.variance).mean()
    assert float(error) < 0.03
    assert float(ratio) == pytest.approx(1, abs=0.12)
    assert found.log_evidence_std_error is not None
    assert found.log_evidence_std_error < 0.5
    assert abs(found.log_evidence - known.log_evidence) < 4 * found.log_evidence_std_error  # type: ignore[operator]
    assert found.misfit == pytest.approx(1, abs=1.2)
    assert found.verdict == "arrived"
    assert found.x.shape == (256, *SHAPE)


def test_a_model_of_other_units_restores_data_in_theirs() -> None:
    """Standardizing the data changes nothing: neither the answers nor the evidence of the same measurement."""
    model = exact.mixture_model(_events(3), 3, num_levels=6)
    scaled = exact.mixture_model(_events(3), 3, num_levels=6)
    mean, std = torch.linspace(-1, 1, 16).reshape(SHAPE), torch.linspace(0.5, 2, 16).reshape(SHAPE)
    scaled.space = AffineSpace.standardized(SHAPE, mean, std)
    operator = make_operator(parse("random:0.6"), SHAPE)
    x = exact.draw(model, 1, 5)
    plain = operator.matrix / std.double().flatten()  # an operator on the scaled model's data that sees the same
    offset = plain @ mean.double().flatten()

    measured = operator.forward(x)[0].float()
    one = restore(model, operator, measured, noise_std=NOISE_STD, num_samples=4, num_chains=8, seed=1)
    other = restore(
        scaled,
        Matrix(SHAPE, plain),
        (measured + offset).float(),
        noise_std=NOISE_STD,
        num_samples=4,
        num_chains=8,
        seed=1,
    )

    torch.testing.assert_close(other.x, one.x * std + mean, rtol=2e-2, atol=2e-2)
    assert other.log_evidence == pytest.approx(one.log_evidence, abs=0.05)


def test_the_same_seed_gives_the_same_answers() -> None:
    model = exact.mixture_model(_events(2), 2, num_levels=4)
    operator = make_operator(parse("random:0.5"), SHAPE)
    measured = _measured(operator, exact.draw(model, 1, 5), 6)

    one, again, other = (
        restore(model, operator, measured, noise_std=0.2, num_samples=3, num_chains=8, seed=seed, method="posterior")
        for seed in (1, 1, 2)
    )

    assert torch.equal(one.x, again.x)
    assert not torch.equal(one.x, other.x)
    assert one.log_evidence is None
    assert one.verdict in ARRIVALS


def _reference(
    f: Any, projection: Tensor, seen: Tensor, noise: SharedNoise, *, beta: float, h0: float, start: float, end: float
) -> tuple[Tensor, int]:
    """Algorithm 2 of the paper for one signal, written anew from its text."""
    n, y = seen.numel(), seen + start * noise.normal(seen[None])[0]
    sigma, t = start, 1
    while sigma >= end:
        h = h0 * t / (1 + h0 * (t - 1))
        residual = f(y, sigma)
        d = (torch.eye(n).double() - projection) @ residual + (projection @ y - seen)
        sigma = float(d.norm()) / math.sqrt(n)
        gamma = sigma * math.sqrt((1 - beta * h) ** 2 - (1 - h) ** 2)
        y = y - h * d + gamma * noise.normal(y[None])[0]
        t += 1
    return y - f(y, sigma), t


@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_the_ascent_is_the_published_one_on_a_gaussian(beta: float) -> None:
    basis = torch.linalg.qr(torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    projection, mean = basis @ basis.T, torch.linspace(-0.5, 0.5, 12, dtype=torch.float64)
    seen = projection @ torch.linspace(0.3, -0.4, 12, dtype=torch.float64)
    variance = torch.linspace(0.02, 0.3, 12, dtype=torch.float64)

    def residual(y: Tensor, sigma: Any) -> Tensor:
        spread = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1) ** 2
        return (spread / (variance + spread) * (y - mean)).reshape(y.shape)

    expected, steps = _reference(
        residual, projection, seen, SharedNoise(make_generator(3)), beta=beta, h0=0.01, start=2.0, end=0.02
    )
    found, evaluations = finished(
        climbing(
            residual,
            lambda y: y @ projection,
            seen[None],
            SharedNoise(make_generator(3)),
            AscentConfig(noise_share=beta),
        )
    )

    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)
    assert evaluations == steps
    assert evaluations > 20
    torch.testing.assert_close(projection @ found[0], seen, rtol=0.1, atol=0.1)


def test_the_residual_of_a_model_is_that_of_its_denoiser() -> None:
    """An ascent by a model of Gaussian data ends at what their conditional mean says of the unseen."""
    model = exact.mixture_model(_events(1), 1 + 1, num_levels=30)
    operator = make_operator(parse("box:0,0,2,4"), SHAPE)
    measured = _measured(operator, exact.draw(model, 1, 3), 4, 0.0)
    known = exact.posterior(model, operator, measured, 0.05)

    climbed = finished(ascent(model, operator, measured, num_samples=16, noise=SharedNoise(make_generator(5))))

    seen = operator.forward(climbed.x)
    torch.testing.assert_close(seen, measured.expand_as(seen), rtol=0, atol=0.1)
    error = ((climbed.x.flatten(1) - known.mean) ** 2).mean()
    assert float(error) < 1.5 * float(known.variance.mean())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measured": torch.zeros(3)}, "the measurement has shape"),
        ({"measured": torch.full((8,), torch.nan)}, "not finite"),
        ({"noise_std": -1.0}, "noise_std is -1"),
        ({"noise_std": math.nan}, "noise_std is nan"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_chains": 2}, "four at least"),
        ({"operator": make_operator(parse("denoise"), (1, 5, 5))}, "takes events of shape"),
    ],
)
def test_what_cannot_be_restored_is_refused_in_a_sentence(changes: dict[str, Any], words: str) -> None:
    model = exact.mixture_model(_events(2), 2, num_levels=3)
    order = {"operator": make_operator(parse("random:0.5"), SHAPE), "measured": torch.zeros(8), "noise_std": 0.1}

    with pytest.raises(ModelError, match=words):
        restore(model, **{**order, **changes})


def test_a_measurement_without_noise_is_met_nearly() -> None:
    model = exact.mixture_model(_events(2), 2, num_levels=6)
    operator = make_operator(parse("random:0.5"), SHAPE)
    measured = operator.forward(exact.draw(model, 1, 3))[0].float()

    found = restore(model, operator, measured, noise_std=0.0, num_samples=4, num_chains=8)

    assert float((operator.forward(found.x) - measured).abs().max()) < 0.01


def test_chains_are_judged_by_their_worst_sign() -> None:
    assert arrival(acceptance_rate=0.7, effective_sample_size=None, disagreement=1.0) == "arrived"
    assert arrival(acceptance_rate=0.1, effective_sample_size=None, disagreement=1.0) == "rejecting"
    assert arrival(acceptance_rate=0.7, effective_sample_size=2.0, disagreement=1.0) == "few_effective"
    assert arrival(acceptance_rate=0.7, effective_sample_size=30.0, disagreement=9.0) == "halves_apart"
    assert arrival(acceptance_rate=math.nan, effective_sample_size=None, disagreement=1.0) == "rejecting"
    assert arrival(acceptance_rate=0.7, effective_sample_size=None, disagreement=math.nan) == "halves_apart"


def test_halves_that_found_different_answers_are_told() -> None:
    """Two far modes that a measurement cannot tell apart, and chains too few to find both in both halves."""
    events = _events(1)
    events = torch.cat([events * 0.1 - 2, events * 0.1 + 2])
    model = exact.mixture_model(events, 2, num_levels=3)
    operator = make_operator(parse("random:0.1"), SHAPE)
    judged = {
        restore(
            model,
            operator,
            torch.zeros(operator.measurement_shape),
            noise_std=3.0,
            num_chains=4,
            num_samples=4,
            seed=seed,
        ).verdict
        for seed in range(6)
    }

    assert judged - {"arrived"}


def _digits_half(item: int) -> tuple[Any, Operator, Tensor]:
    """A mixture of ten Gaussians of digits, the operator that hides half of a picture, and what it leaves of one."""
    images = torch.tensor(load_digits().images / 8 - 1).float()[:1200, None]
    model = exact.mixture_model(images, 10)
    operator = make_operator(parse("box:4,0,4,8"), (1, 8, 8))
    measured = operator.forward(exact.draw(model, 30, 11))
    noise = torch.randn(measured.shape, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    return model, operator, (measured + 0.1 * noise)[item].float()


@pytest.mark.slow
@pytest.mark.parametrize("item", [1, 4])
def test_walks_that_miss_modes_do_not_arrive_and_others_do(item: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, operator, measured = _digits_half(item)
    known = exact.posterior(model, operator, measured, 0.1)

    def run(count: int) -> tuple[float, str]:
        found = restore(model, operator, measured, noise_std=0.1, num_samples=count, num_chains=count, seed=item)
        return float(((found.mean.flatten() - known.mean) ** 2 / known.variance).mean()), found.verdict

    error, verdict = run(64)
    assert error < 0.05
    assert verdict == "arrived"

    monkeypatch.setattr("model.inverse.restore._MOST_BRIDGES", 1)
    monkeypatch.setattr("model.inverse.restore._PILOT_CHAINS", 4)
    error, verdict = run(32)
    assert error > 0.05
    assert verdict != "arrived"


def test_halves_are_apart_by_how_much_independent_answers_would_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    answers = torch.randn(64, *SHAPE, generator=generator)
    trapped = answers[32:] / 4 + 1

    assert disagreement(answers[:32], answers[32:]) == pytest.approx(1, abs=0.9)
    assert disagreement(answers[:32], trapped) > 10
    assert disagreement(answers[:60], trapped[:4]) > 2
    assert disagreement(answers, answers[:0]) == math.inf
