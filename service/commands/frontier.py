"""How the frontier of a checkpoint is printed."""

from __future__ import annotations

from model.frontier import QUALITIES
from service.bodies.models import FrontierBody, PointBody, SettingBody
from service.client import Model
from service.commands.options import print_line, print_table

_FEATURES = {"data": "all {} values of an item", "pca": "{} principal components"}


def print_frontier(model: Model, step: int | None) -> None:
    """Print what was measured of a checkpoint as a table, with the qualities at the settings chosen for them."""
    found = next((one.frontier for one in model.checkpoints if one.step == step), None)
    if found is None:
        return
    print_table(
        ["evaluations", "start", "K", "Fréchet distance", "1-NN accuracy", "quality"],
        [_row(point, found) for point in found.points],
    )
    what = _FEATURES[found.features].format(found.num_features)
    print_line(f"{found.num_samples} samples beside {found.num_held_out} held-out items, by {what}")


def _row(point: PointBody, frontier: FrontierBody) -> list[str]:
    return [
        str(point.evaluations),
        point.start,
        str(point.num_steps),
        f"{point.frechet:.4g} ± {point.frechet_error:.2g}",
        f"{point.one_nn:.3f} ± {point.one_nn_error:.3f}",
        ", ".join(quality for quality in QUALITIES if _is_of(point, getattr(frontier, quality))),
    ]


def frontier_in_short(frontier: FrontierBody) -> str:
    """Return the evaluations of the three qualities in a few words."""
    costs = {
        quality: next(point.evaluations for point in frontier.points if _is_of(point, getattr(frontier, quality)))
        for quality in QUALITIES
    }
    return ", ".join(f"{quality} {cost}" for quality, cost in costs.items())


def _is_of(point: PointBody, setting: SettingBody) -> bool:
    return (point.start, point.num_steps) == (setting.start, setting.num_steps)
