"""The number of samplers and trainers that a load needs, computed from rates that were measured.

Samplers share every gradient evaluation among all requests, so a sampler is a rate: images a second. They are sized by
utilisation. A trainer runs one job at a time and jobs wait in one line: M/M/c, sized by the mean wait (Erlang 1917; the
recursion is in Cooper, Introduction to Queueing Theory, 1981, ch. 3). Jobs are assumed to arrive independently of each
other (Poisson) and to have exponentially distributed durations; if all lasted alike they would wait half as long.

    a     offered load: arrivals times duration, in servers that are busy on average
    rho   utilisation: a / number of servers
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.foreseen import ForeseenError

HOURS_A_DAY = 24.0
_MAX_SERVERS = 100_000


class CapacityError(ForeseenError):
    """An input is missing or makes no sense. The one sentence of the error says what to give instead."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A number of processes of one kind, with the load and the waits that follow from it."""

    num_needed: int
    offered_load: float
    """a, the number of processes that are busy on average."""
    mean_wait_h: float | None = None
    """The mean time in hours until a job begins; None for samplers."""

    @property
    def utilisation(self) -> float:
        """rho, in [0, 1)."""
        return self.offered_load / self.num_needed if self.num_needed else 0.0


def erlang_c(num_servers: int, offered_load: float) -> float:
    """Return C(c, a), the probability that an arrival waits in M/M/c; 1 when a ≥ c, as the line grows without end."""
    if offered_load >= num_servers:
        return 1.0
    blocked = 1.0
    for n in range(1, num_servers + 1):
        blocked = offered_load * blocked / (n + offered_load * blocked)  # Erlang B
    utilisation = offered_load / num_servers
    return blocked / (1 - utilisation * (1 - blocked))


def mean_wait_h(num_servers: int, offered_load: float, duration_h: float) -> float:
    """Return the mean wait in hours, W = C(c, a) S / (c − a); infinite when a ≥ c."""
    if offered_load >= num_servers:
        return math.inf
    return erlang_c(num_servers, offered_load) * duration_h / (num_servers - offered_load)


def samplers(images_per_s: float, images_per_s_each: float, *, utilisation: float, spare: int) -> Fleet:
    """Return the fewest samplers that stay below the utilisation, and carry the load when `spare` of them are gone.

    n = max(⌈a / rho⌉, ⌊a⌋ + 1 + spare), a = images_per_s / images_per_s_each. At least one is needed whatever the load,
    because samplers also look after jobs that lost their worker.
    """
    _require_positive(images_per_s_each=images_per_s_each)
    _require_share(utilisation)
    _require_load(images_per_s=images_per_s, spare=spare)
    load = images_per_s / images_per_s_each
    enough = math.ceil(load / utilisation - 1e-9)  # 7 / 0.7 is a little above 10
    return Fleet(num_needed=_limited(max(enough, math.floor(load) + 1 + spare)), offered_load=load)


def trainers(jobs_per_day: float, duration_h: float, *, max_wait_h: float) -> Fleet:
    """Return the fewest trainers whose mean wait is at most `max_wait_h`; without jobs, none."""
    _require_positive(duration_h=duration_h, max_wait_h=max_wait_h)
    _require_load(jobs_per_day=jobs_per_day)
    load = jobs_per_day / HOURS_A_DAY * duration_h
    if load == 0:
        return Fleet(num_needed=0, offered_load=0.0, mean_wait_h=0.0)
    count = _limited(math.floor(load) + 1)
    while mean_wait_h(count, load, duration_h) > max_wait_h:
        count += 1
    return Fleet(num_needed=count, offered_load=load, mean_wait_h=mean_wait_h(count, load, duration_h))


def measured_sampler_rate(path: Path, num_evaluations: int | None = None) -> float:
    """Return the images per second of one sampler, from the file that `make bench-serve` wrote.

    Without `num_evaluations` it is the rate of the model that was measured, under the load that kept the sampler
    busiest. With it, the gradient evaluations per image (the answer's X-NFE), it follows from the measured evaluations
    per second, and holds for a model of the same network with another schedule or chain.
    """
    results = _read(path, "make bench-serve")
    try:
        if num_evaluations is not None:
            _require_positive(num_evaluations=num_evaluations)
            return float(results["row_evaluations_per_s"]) / num_evaluations
        return max(float(load["images_per_s"]) for name, load in results["loads"].items() if name.startswith("engine"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CapacityError(f"{path} lacks {error}; write it again with `make bench-serve`") from error


def measured_duration_h(path: Path, num_steps: int, precision: str) -> float:
    """Return the hours that a training of `num_steps` takes, from the file that `make bench-train` wrote.

    They hold for the network and batch that were measured.
    """
    _require_positive(num_steps=num_steps)
    results = _read(path, "make bench-train")
    try:
        return num_steps * float(results["train"]["seconds"][precision]) / 3600
    except (KeyError, TypeError, ValueError) as error:
        raise CapacityError(f"{path} lacks {error}; write it again with `make bench-train`") from error


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CapacityError(
            f"there is no {path}; run `{command}` on the machine in question, or give a rate"
        ) from error
    except (OSError, ValueError) as error:
        raise CapacityError(f"{path} cannot be read ({error}); write it again with `{command}`") from error
    if not isinstance(found, dict):
        raise CapacityError(f"{path} is no result of a benchmark; write it again with `{command}`")
    return found


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise CapacityError(f"{name} is {value:g}; expected a number above 0")


def _require_load(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise CapacityError(f"{name} is {value:g}; expected 0 or more")


def _require_share(utilisation: float) -> None:
    if not 0 < utilisation < 1:
        raise CapacityError(f"utilisation is {utilisation:g}; expected a share between 0 and 1, such as 0.7")


def _limited(count: int) -> int:
    if count > _MAX_SERVERS:
        raise CapacityError(f"that load needs {count} processes; check its units (images a second, jobs a day, hours)")
    return count
