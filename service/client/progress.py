"""A progress bar that shows a job while it runs, fed by the job's event stream."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Event = Mapping[str, Any]
E = TypeVar("E", bound=Mapping[str, Any])

_PHASES = {"score_matching": "score matching", "recovery": "recovery likelihood"}


def progress_console() -> Console:
    """Return a console on standard output; in a notebook, which claims to redraw lines and cannot, it is plain text."""
    if "ipykernel" in sys.modules:
        return Console(highlight=False, force_jupyter=False, force_terminal=False)
    return Console(highlight=False)


class Bar:
    """The progress bar of one job, for a `with` block.

    Where lines cannot be redrawn, it prints a line after each tenth of a training instead.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = _bar(console)
        self._tenth = 0

    def __enter__(self) -> Bar:
        self._bar.start()
        self._task = self._bar.add_task("waiting for a trainer", total=None, detail="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Redraw the bar after an event."""
        _draw(self._bar, self._task, event)
        if not self._console.is_terminal and (reached := _tenth(event)) > self._tenth:
            self._tenth = reached
            _print_line(self._console, event["data"])


def show(events: Iterable[E], console: Console) -> list[E]:
    """Draw the bar until the stream ends, and return every event that came."""
    seen: list[E] = []
    with Bar(console) as bar:
        for event in events:
            seen.append(event)
            bar.show(event)
    return seen


def health_in_words(verdict: Mapping[str, Any]) -> str:
    """Return a verdict on a training as one line."""
    remedy = f" — {verdict['remedy']}" if verdict.get("remedy") else ""
    return f"{verdict['level']}: {verdict['reason']}{remedy}"


def _tenth(event: Event) -> int:
    total = event["data"].get("total_steps") if event["type"] == "step" else None
    return 10 * int(event["data"]["step"]) // int(total) if total else 0


def _print_line(console: Console, data: Event) -> None:
    phase = _PHASES.get(str(data.get("phase")), "training")
    console.print(f"{phase}: step {data['step']} of {data['total_steps']}, {_detail(data)}", highlight=False)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=console,
    )


def _draw(bar: Progress, task: TaskID, event: Event) -> None:
    data = event["data"]
    match event["type"]:
        case "step":
            phase = str(data.get("phase", ""))
            bar.update(
                task,
                description=_PHASES.get(phase, phase or "training"),
                completed=data.get("step", 0),
                total=data.get("total_steps"),
                detail=_detail(data),
            )
        case "sampling":
            detail = f"{data['images_per_second']:.1f} images/s"
            bar.update(
                task, description="sampling", completed=data["num_images"], total=data["total_images"], detail=detail
            )
        case "calibration":
            detail = f"log Z {with_error(data['estimate'], data['std_error'])} nats"
            bar.update(
                task, description="calibrating", completed=data["round"], total=data["max_rounds"], detail=detail
            )
        case "tuning":
            point = data["point"]
            detail = f"{point['evaluations']} evaluations: Fréchet distance {point['frechet']:.3f}"
            bar.update(task, description="tuning", completed=data["index"], total=data["num_settings"], detail=detail)
        case "rollback":
            told = f"diverged at step {data['step']}; on from step {data['to_step']} with a lower learning rate"
            bar.console.print(f"[yellow]{told}[/]", highlight=False)
        case "plan":
            for reason in data["reasons"]:
                bar.console.print(reason, highlight=False)
        case "health" if data["level"] != "green":
            bar.console.print(f"[yellow]health {health_in_words(data)}[/]", highlight=False)
        case "status" if data.get("status") not in ("queued", "running", "succeeded"):
            reason = f": {data['error']}" if data.get("error") else ""
            bar.console.print(f"[yellow]{data.get('status')}{reason}[/]", highlight=False)
        case "status":
            bar.update(task, description=str(data.get("status")))


def with_error(value: float, error: float | None) -> str:
    """Return a value and its error to three decimals; None stands for an error that is not known."""
    return f"{value:.3f}, error not known," if error is None else f"{value:.3f} ± {error:.3f}"


def _detail(data: Event) -> str:
    """Return a line like `loss 0.0123 · 31.4 steps/s · ETA 1:12`, without the parts that are not known."""
    parts = []
    if (loss := data.get("loss")) is not None:
        parts.append(f"loss {loss:.4g}")
    if rate := data.get("steps_per_second"):
        remaining_s = max(0, data.get("total_steps", 0) - data.get("step", 0)) / rate
        parts += [f"{rate:.1f} steps/s", f"ETA {int(remaining_s // 60)}:{int(remaining_s % 60):02d}"]
    return " · ".join(parts)
