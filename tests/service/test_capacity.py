"""How many processes a load needs: closed forms, a simulated queue, and files as the benchmarks write them."""

from __future__ import annotations

import heapq
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from service.cli import application
from service.stack.capacity import (
    CapacityError,
    erlang_c,
    mean_wait_h,
    measured_duration_h,
    measured_sampler_rate,
    samplers,
    trainers,
)
from tests.bench.serve import Load


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9, 0.99])
def test_one_and_two_servers_have_their_closed_forms(load: float) -> None:
    assert erlang_c(1, load) == pytest.approx(load, rel=1e-12)
    assert mean_wait_h(1, load, 2.0) == pytest.approx(2.0 * load / (1 - load), rel=1e-12)
    assert erlang_c(2, 2 * load) == pytest.approx(2 * load**2 / (1 + load), rel=1e-12)
    assert mean_wait_h(2, 2 * load, 3.0) == pytest.approx(3.0 * load**2 / (1 - load**2), rel=1e-12)


@pytest.mark.parametrize(("num_servers", "load"), [(3, 2.2), (8, 5.0), (20, 19.5), (150, 130.0)])
def test_many_servers_wait_as_the_sum_over_states_says(num_servers: int, load: float) -> None:
    logs = [n * math.log(load) - math.lgamma(n + 1) for n in range(num_servers + 1)]
    last = logs[-1] - math.log(1 - load / num_servers)
    below = math.log(sum(math.exp(value - last) for value in logs[:-1]) + 1)
    assert erlang_c(num_servers, load) == pytest.approx(math.exp(-below), rel=1e-10)


def test_an_overloaded_line_never_ends() -> None:
    assert erlang_c(2, 2.0) == 1
    assert math.isinf(mean_wait_h(2, 2.0, 1.0))
    assert math.isinf(mean_wait_h(0, 0.5, 1.0))


def test_a_simulated_line_waits_as_long_as_the_formula_says() -> None:
    generator = np.random.default_rng(0)
    servers, load, duration_h = 3, 2.1, 2.0
    waits = []
    for _ in range(100):  # independent stretches, whose means give the standard error
        free, now, waited = [0.0] * servers, 0.0, 0.0
        arrivals = generator.exponential(duration_h / load, 2000).tolist()
        durations = generator.exponential(duration_h, 2000).tolist()
        for i, (pause, duration) in enumerate(zip(arrivals, durations, strict=True)):
            now += pause
            start = max(now, heapq.heappop(free))
            heapq.heappush(free, start + duration)
            waited += start - now if i >= 500 else 0.0
        waits.append(waited / 1500)
    error = np.std(waits) / math.sqrt(len(waits))
    assert abs(np.mean(waits) - mean_wait_h(servers, load, duration_h)) < 4 * error
    assert error < 0.05 * np.mean(waits)


def test_trainers_are_the_fewest_that_keep_the_wait() -> None:
    fleet = trainers(20, 3.0, max_wait_h=1.0)
    assert fleet.offered_load == pytest.approx(2.5)
    assert fleet.mean_wait_h == pytest.approx(mean_wait_h(fleet.num_needed, 2.5, 3.0))
    assert fleet.mean_wait_h is not None
    assert fleet.mean_wait_h <= 1.0 < mean_wait_h(fleet.num_needed - 1, 2.5, 3.0)
    assert trainers(0, 3.0, max_wait_h=1.0).num_needed == 0
    assert trainers(24, 1.0, max_wait_h=1e9).num_needed == 2  # a load of exactly 1 needs more than one


@pytest.mark.parametrize(
    ("load", "utilisation", "spare", "needed"),
    [(0, 0.7, 0, 1), (7, 0.7, 0, 10), (7.1, 0.7, 0, 11), (2, 0.9, 0, 3), (2, 0.9, 1, 4), (0.2, 0.7, 1, 2)],
)
def test_samplers_stay_below_the_utilisation_and_survive_a_loss(
    load: float, utilisation: float, spare: int, needed: int
) -> None:
    fleet = samplers(load * 50, 50.0, utilisation=utilisation, spare=spare)
    assert fleet.num_needed == needed
    assert fleet.utilisation <= utilisation + 1e-9
    assert fleet.num_needed - spare > load


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images_per_s": -1}, "images_per_s is -1; expected 0 or more"),
        ({"images_per_s_each": 0}, "images_per_s_each is 0; expected a number above 0"),
        ({"utilisation": 1.0}, "utilisation is 1; expected a share between 0 and 1"),
        ({"images_per_s": 1e12}, "check its units"),
        ({"images_per_s": math.nan}, "images_per_s is nan"),
    ],
)
def test_a_load_without_sense_is_refused(values: dict[str, float], message: str) -> None:
    given = {"images_per_s": 1.0, "images_per_s_each": 1.0, "utilisation": 0.7, "spare": 0} | values
    with pytest.raises(CapacityError, match=message):
        samplers(
            given["images_per_s"],
            given["images_per_s_each"],
            utilisation=given["utilisation"],
            spare=int(given["spare"]),
        )


def _load(images_per_s: float) -> dict[str, object]:
    values = dict.fromkeys(Load.__dataclass_fields__, 0) | {"images_per_s": images_per_s}
    return asdict(Load(**values))  # type: ignore[arg-type]


def test_rates_are_read_as_the_benchmarks_write_them(tmp_path: Path) -> None:
    serve, train = tmp_path / "serve.json", tmp_path / "train.json"
    loads = {"engine_16": _load(13.1), "engine_mixed_16": _load(48.6), "litserve_mixed_16": _load(57.5)}
    serve.write_text(json.dumps({"row_evaluations_per_s": 14_750.0, "loads": loads}))
    assert measured_sampler_rate(serve) == 48.6
    assert measured_sampler_rate(serve, 295) == pytest.approx(50.0)
    train.write_text(json.dumps({"train": {"seconds": {"plain": 39.0, "float32": 33.0, "bfloat16": 8.4}}}))
    assert measured_duration_h(train, 1000, "bfloat16") == pytest.approx(8400 / 3600)
    serve.write_text("{}")
    with pytest.raises(CapacityError, match="write it again with `make bench-serve`"):
        measured_sampler_rate(serve)
    train.write_text("[")
    with pytest.raises(CapacityError, match=r"train\.json cannot be read"):
        measured_duration_h(train, 1000, "float32")


def test_the_command_answers_people_and_scripts_and_says_what_it_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench-results").mkdir()
    loads = {"engine_mixed_16": _load(50.0)}
    (tmp_path / "bench-results" / "serve.json").write_text(json.dumps({"loads": loads}))
    load = ["--images-per-second", "100", "--jobs-per-day", "20", "--job-hours", "3"]
    found = json.loads(_capacity(*load, "--json").stdout)
    assert (found["samplers"]["needed"], found["trainers"]["needed"]) == (4, 4)
    assert found["samplers"]["images_per_s_each"] == 50.0
    table = _capacity(*load)
    assert table.exit_code == 0
    assert "100 images/s" in table.stdout
    for arguments, message in (
        ([], "no load given; say --images-per-second, --jobs-per-day, or both"),
        (["--jobs-per-day", "2"], "how long is a training? give --job-hours"),
        (["--jobs-per-day", "2", "--job-steps", "9"], "there is no bench-results/train.json; run `make bench-train`"),
    ):
        refused = _capacity(*arguments).exception
        assert isinstance(refused, CapacityError)
        assert str(refused).startswith(message)


def _capacity(*arguments: str) -> Result:
    return CliRunner().invoke(application, ["capacity", *arguments], env={"COLUMNS": "200"})
