"""Draws the panels of a dashboard from what Prometheus recorded: Grafana itself cannot be had where these tests run."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from deploy.grafana.panels import Dashboard, Panel
from tests.observability.prometheus import Curve, Labels

CurvesFn = Callable[[str], list[Curve]]
Fault = tuple[str, float, float]

_COLUMNS = 3
_LABEL = "drawn from Prometheus data with matplotlib, not a Grafana screenshot"
_COLOURS = [
    "#3274d9",
    "#e0752d",
    "#56a64b",
    "#b877d9",
    "#d44a3a",
    "#8f8f8f",
    "#1f9e9e",
    "#c9a227",
    "#7a5c3e",
    "#e377c2",
]
_MOST_IN_LEGEND = 8
_UNITS = {"short": "", "s": "s", "reqps": "req/s", "bytes": "", "percentunit": "", "nats": "nats"}


def draw(
    dashboard: Dashboard,
    curves_fn: CurvesFn,
    names: Mapping[str, str],
    faults: list[Fault],
    span: tuple[float, float],
    path: Path,
) -> list[str]:
    """Write a PNG of the panels with curves; titles of the panels that are left out because they have none.

    `curves_fn(expr)` gives what a panel shows, `names` says what to write for long label values, `span` is the time
    from the first instant to the last.
    """
    panels = [panel for row in dashboard.rows for panel in row.panels if panel.kind == "timeseries"]
    found = {panel.title: [(query.legend, curves_fn(query.expr)) for query in panel.queries] for panel in panels}
    empty = [title for title, queries in found.items() if not any(curves for _, curves in queries)]
    drawn = [panel for panel in panels if panel.title not in empty]
    num_rows = math.ceil(len(drawn) / _COLUMNS)
    with mpl.rc_context({"font.size": 7.5, "axes.prop_cycle": cycler(color=_COLOURS), "axes.titlesize": 9}):
        figure = Figure(figsize=(15, 0.9 + 2.65 * num_rows), dpi=100, facecolor="white")
        for index, panel in enumerate(drawn):
            axes = figure.add_subplot(num_rows, _COLUMNS, index + 1)
            _draw_panel(axes, panel, found[panel.title], names)
            _mark(axes, faults)
            axes.set_xlim(*(_time(at) for at in span))
        height = figure.get_figheight()
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.65 / height), h_pad=1.2, w_pad=1.5)
        title = f"{dashboard.title}: {dashboard.text}"
        figure.text(0.01, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", va="top")
        figure.text(0.01, 1 - 0.38 / height, _note(faults), fontsize=8, color="#555555", va="top")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Software": None, "Description": _LABEL})
    return empty


def _note(faults: list[Fault]) -> str:
    shaded = ", ".join(dict.fromkeys(what for what, _, _ in faults))
    return f"{_LABEL}. One run of make test-observability, times UTC. Shaded: {shaded}."


def _draw_panel(axes: Axes, panel: Panel, queries: list[tuple[str, list[Curve]]], names: Mapping[str, str]) -> None:
    curves = [(_legend(legend, labels, names), points) for legend, found in queries for labels, points in found]
    curves.sort(key=lambda curve: _natural(curve[0]))
    if panel.stacked:
        _stack(axes, curves)
    else:
        for name, points in curves:
            axes.plot(*_with_gaps(points), label=name, linewidth=1.2)
    axes.set_title(panel.title, loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.log_scale:
        axes.set_yscale("log")
    elif panel.largest is not None:
        axes.set_ylim(0, 1.03 * panel.largest)
    elif axes.get_ylim()[0] > 0 or panel.stacked:
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    if panel.unit == "bytes":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 2**20:.3g} MiB"))
    elif panel.unit == "percentunit":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_ylabel(_UNITS[panel.unit])
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S", tz=UTC))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    _add_legend(axes, len(curves))


def _add_legend(axes: Axes, num_curves: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if num_curves > _MOST_IN_LEGEND:
        handles, labels = handles[:_MOST_IN_LEGEND], [*labels[: _MOST_IN_LEGEND - 1], f"… {num_curves} in all"]
    axes.legend(handles, labels, loc="best", fontsize=6.5, framealpha=0.6, ncols=2 if len(labels) > 4 else 1)


def _stack(axes: Axes, curves: list[tuple[str, list[tuple[float, float]]]]) -> None:
    """On the instants of all of them; a curve that has none at an instant is 0 there."""
    instants = sorted({at for _, points in curves for at, _ in points})
    below = [0.0] * len(instants)
    times = [_time(at) for at in instants]
    for index, (name, points) in enumerate(curves):
        values = dict(points)
        heights = [values.get(at, 0.0) for at in instants]
        top = [low + (0.0 if math.isnan(high) else high) for low, high in zip(below, heights, strict=True)]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.fill_between(times, below, top, alpha=0.35, color=colour, linewidth=0, step="post")
        axes.step(times, top, where="post", color=colour, linewidth=1, label=name)
        below = top


def _with_gaps(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """A line is broken where there was nothing."""
    step_s = min((later - earlier for (earlier, _), (later, _) in itertools.pairwise(points)), default=1.0)
    times, values = list[float](), list[float]()
    for at, value in points:
        if times and at - times[-1] > 1.5 * step_s:
            times.append(at - step_s)
            values.append(math.nan)
        times.append(at)
        values.append(value)
    return [_time(at) for at in times], values


def _time(at: float) -> float:
    """As matplotlib counts it."""
    return float(date2num(datetime.fromtimestamp(at, UTC)))  # type: ignore[no-untyped-call]


def _mark(axes: Axes, faults: list[Fault]) -> None:
    for _, start, end in faults:
        axes.axvspan(_time(start), _time(end), color="#d44a3a", alpha=0.08, linewidth=0)


def _legend(template: str, labels: Labels, names: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        text = labels.get(found[1], "")
        return names.get(text, text)

    return re.sub(r"\{\{(\w+)\}\}", value, template)


def _natural(text: str) -> list[tuple[int, str]]:
    """`level 10` after `level 9`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]
