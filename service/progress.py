"""A job as a live progress bar, fed by its event stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Event = dict[str, Any]

_PHASES = {"score_matching": "score matching", "recovery": "recovery likelihood"}


def show(events: Iterable[Event], console: Console) -> list[Event]:
    """Draw the bar until the stream ends; every event that came. Where nothing can be redrawn, a line per tenth."""
    seen: list[Event] = []
    with _bar(console) as bar:
        task = bar.add_task("waiting for a trainer", total=None, detail="")
        tenth = 0
        for event in events:
            seen.append(event)
            _draw(bar, task, event)
            if not console.is_terminal and (reached := _tenth(event)) > tenth:
                tenth = reached
                _print_line(console, event["data"])
    return seen


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
            detail = f"log Z {data['estimate']:.3f} ± {data['std_error']:.3f} nats"
            bar.update(
                task, description="calibrating", completed=data["round"], total=data["max_rounds"], detail=detail
            )
        case "rollback":
            told = f"diverged at step {data['step']}; on from step {data['to_step']} with a lower learning rate"
            bar.console.print(f"[yellow]{told}[/]", highlight=False)
        case "status" if data.get("status") not in ("queued", "running", "succeeded"):
            reason = f": {data['error']}" if data.get("error") else ""
            bar.console.print(f"[yellow]{data.get('status')}{reason}[/]", highlight=False)
        case "status":
            bar.update(task, description=str(data.get("status")))


def _detail(data: Event) -> str:
    """`loss 0.0123 · 31.4 steps/s · ETA 1:12`; what is not known is left out."""
    parts = []
    if (loss := data.get("loss")) is not None:
        parts.append(f"loss {loss:.4g}")
    if rate := data.get("steps_per_second"):
        remaining_s = max(0, data.get("total_steps", 0) - data.get("step", 0)) / rate
        parts += [f"{rate:.1f} steps/s", f"ETA {int(remaining_s // 60)}:{int(remaining_s % 60):02d}"]
    return " · ".join(parts)
