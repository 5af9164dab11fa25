"""The commands `recovery up`, `serve` and `demo`, which start processes on this machine.

They import what they need when they run, because importing it takes longer than most other commands do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from service.client.address import DEFAULT_FOLDER
from service.commands.options import RUN_PANEL, AsJson, examples, print_json
from worker.observe.version import version

if TYPE_CHECKING:
    from service.stack.local import LocalStack

_LOOPBACK = "127.0.0.1"

application = typer.Typer()


@application.command(
    rich_help_panel=RUN_PANEL, epilog=examples("recovery up", "recovery up --data /srv/recovery --port 9000")
)
def up(
    data: Annotated[
        Path, typer.Option(help="Folder of everything that the stack stores; the next start finds it again")
    ] = DEFAULT_FOLDER,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the API; 8000 or a free one if absent")
    ] = None,
    host: Annotated[str, typer.Option(help="Address of the API; any address but loopback needs keys")] = _LOOPBACK,
    as_json: AsJson = False,
) -> None:
    """Start the whole service on this machine: storage, queue, a trainer, a sampler and the API."""
    from service.stack.local import LocalStack, interruptible_by_signals

    console = Console(highlight=False, stderr=as_json)
    with interruptible_by_signals():
        try:
            _run(LocalStack(data, port=port, host=host), console, as_json=as_json)
        except KeyboardInterrupt:
            console.print("stopped")


def _run(stack: LocalStack, console: Console, *, as_json: bool) -> None:
    with console.status("starting") as status:
        stack.report_fn = status.update
        stack.start()
    try:
        if as_json:
            typer.echo(json.dumps({"url": stack.url, "data": str(stack.directory), "version": version()}))
        else:
            console.print(
                f"[bold]recovery-likelihood {version()}[/] is ready at [bold]{stack.url}[/]\n"
                f"calls: {stack.url}/docs   data and logs: {stack.directory}   stop: Ctrl-C",
                soft_wrap=True,
            )
        stack.watch()
    finally:
        with console.status("stopping") as status:
            stack.report_fn = status.update
            stack.stop()


@application.command(
    rich_help_panel=RUN_PANEL, epilog=examples("RECOVERY_REDIS_URL=redis://cache:6379/0 recovery serve --port 8000")
)
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; any address but loopback needs keys")] = _LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Start the API alone, with its stores and limits from the environment (RECOVERY_...)."""
    from service.serve import serve as serve_until_stopped

    serve_until_stopped(host, port)


@application.command(rich_help_panel=RUN_PANEL, epilog=examples("recovery demo --out demo"))
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, samples and the report")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """Train on real digits, sample, and report how good the samples are, in under four minutes on two cores."""
    from service.commands import demo_report
    from service.commands.demo import Demo
    from service.stack.local import interruptible_by_signals

    console = Console(highlight=False, stderr=as_json)
    with interruptible_by_signals():
        report = Demo(out, console).run()
    if as_json:
        print_json(report)
    else:
        demo_report.show(report, out, console)
