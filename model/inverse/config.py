"""How a damage is described: the linear operator that a measurement was taken with. This module imports no torch.

A damage is one step or several in turn. Written as a text, steps are joined by `+` and have a name and their numbers:
`box:8,8,12,12`, `random:0.3`, `blur:1.5+downsample:2`, `compress:0.25`, `spectrum:0.1`, `denoise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Interval

from model.errors import ConfigError
from model.fields import Config

OperatorKind = Literal["box", "random", "downsample", "blur", "compress", "spectrum", "denoise"]
Method = Literal["smc", "posterior", "ascent"]

_Pixels = Annotated[int, Interval(ge=0, le=65_536)]
_Share = Annotated[float, Interval(ge=1e-4, le=1.0)]


@dataclass(frozen=True, kw_only=True)
class OperatorConfig(Config):
    """One step of a damage. Each kind reads the fields that its text has numbers for; `NUMBERS` lists them."""

    kind: OperatorKind
    """`box` hides a rectangle, `random` keeps a share of the pixels, `downsample` takes means of blocks, `blur` is a
    Gaussian, `compress` keeps a share of random orthonormal projections, `spectrum` a share of the frequencies, the
    lowest; `denoise` only adds noise."""
    top: _Pixels = 0
    """The first row of the box."""
    left: _Pixels = 0
    """The first column of the box."""
    height: _Pixels = 0
    """The number of rows of the box."""
    width: _Pixels = 0
    """The number of columns of the box."""
    share: _Share = 0.5
    """The share of the numbers that is kept."""
    factor: Annotated[int, Interval(ge=2, le=8)] = 2
    """The side of a block, in pixels."""
    std: Annotated[float, Interval(ge=0.1, le=64.0)] = 1.0
    """The standard deviation of the blur, in pixels."""
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = 0
    """The seed of what is drawn at random."""


NUMBERS: Mapping[OperatorKind, tuple[str, ...]] = MappingProxyType(
    {
        "box": ("top", "left", "height", "width"),
        "random": ("share", "seed"),
        "downsample": ("factor",),
        "blur": ("std",),
        "compress": ("share", "seed"),
        "spectrum": ("share",),
        "denoise": (),
    }
)
"""The fields that each kind reads, in the order in which a text gives them."""


def parse(text: str) -> tuple[OperatorConfig, ...]:
    """Return the steps of a damage that is written as a text. Raises ConfigError."""
    return tuple(_parsed(step) for step in text.split("+"))


def _parsed(text: str) -> OperatorConfig:
    word, _, rest = text.strip().partition(":")
    kind = next((one for one in NUMBERS if one == word), None)
    if kind is None:
        raise ConfigError(f"operator is {text!r}; expected one of {', '.join(NUMBERS)}, then a colon and its numbers")
    names = NUMBERS[kind]
    words = rest.split(",") if rest else []
    least = 4 if kind == "box" else 0
    if not least <= len(words) <= len(names):
        expected = ",".join(name.upper() for name in names)
        raise ConfigError(f"operator {text!r} has {len(words)} numbers; expected {kind}{':' * bool(names)}{expected}")
    try:
        values = {
            name: float(word) if name in ("share", "std") else int(word)
            for name, word in zip(names, words, strict=False)
        }
    except ValueError:
        raise ConfigError(f"operator {text!r} has something that is no number where one is expected") from None
    return OperatorConfig(kind=kind, **values)  # type: ignore[arg-type]
