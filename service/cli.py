"""The `recovery` command. Exit status: 0 done, 1 failed (one line says why), 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service import cli_datasets, cli_keys, progress
from service.capacity import CapacityError
from service.child import ChildDiedError, LocalStackError
from service.cli_capacity import capacity
from service.cli_official import ImportFailed, import_official
from service.cli_options import ApiKey, AsJson, Url, show
from service.client import DEFAULT_URL, ClientError, Recovery
from service.demo import Demo, DemoError
from service.keys import KeysError
from service.local import LOOPBACK, LocalStack, interruptible_by_signals
from worker.version import version

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

application = typer.Typer(
    help="Train energy-based models by diffusion recovery likelihood, and sample from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
application.add_typer(cli_datasets.application, name="datasets")
application.add_typer(cli_keys.application, name="keys")
application.command("import-official")(import_official)
application.command()(capacity)


def main() -> None:
    """Run the command; errors that are foreseen become one line."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        application()
    except ChildDiedError as error:
        errors.print(error.log_tail, markup=False, style="dim")
        errors.print(f"recovery: {error}", markup=False)
        sys.exit(EXIT_FAILED)
    except (LocalStackError, ClientError, DemoError, KeysError, ImportFailed, CapacityError, OSError) as error:
        errors.print(f"recovery: {error}", markup=False)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


@application.command()
def up(
    data: Annotated[Path, typer.Option(help="Folder of everything the stack stores; used again next time")] = Path(
        "recovery-data"
    ),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of the API; 8000 or a free one if absent")] = None,
    host: Annotated[str, typer.Option(help="Address of the API; any but loopback needs keys")] = LOOPBACK,
) -> None:
    """Start the whole service on this machine: storage, queue, a trainer, a sampler and the API."""
    console = Console(highlight=False)
    with interruptible_by_signals():
        try:
            _run(LocalStack(data, port=port, host=host), console)
        except KeyboardInterrupt:
            console.print("stopped")


def _run(stack: LocalStack, console: Console) -> None:
    with console.status("starting") as status:
        stack.report_fn = status.update
        stack.start()
    try:
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


@application.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs keys")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Start the API alone, with its stores and limits from the environment (RECOVERY_...)."""
    from service.serve import serve as serve_until_stopped

    serve_until_stopped(host, port)


@application.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, samples and the report")] = Path("demo"),
) -> None:
    """Train on real digits, sample, and report how good it is: under four minutes on two cores."""
    from service import demo_report

    console = Console(highlight=False)
    with interruptible_by_signals():
        report = Demo(out, console).run()
    demo_report.show(report, out, console)


@application.command()
def train(
    preset: Annotated[str, typer.Argument(help="Name of a configuration")] = "digits",
    dataset: Annotated[
        str | None,
        typer.Option(help="Another than the preset's: an id or name of `recovery datasets list`, s3://…, hf://…"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="For people")] = None,
    seed: Annotated[int | None, typer.Option(help="Drawn at random if absent")] = None,
    steps: Annotated[int | None, typer.Option(help="Another number of training steps")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Start a training job; prints its id."""
    wanted = {"preset": preset, "dataset": dataset, "name": name, "seed": seed, "steps": steps}
    with Recovery(url, api_key=api_key) as client:
        job = client.train(**{key: value for key, value in wanted.items() if value is not None})
        Console(highlight=False).print(job["id"])
        if wait:
            _watch(client, job["id"])


@application.command()
def jobs(as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List jobs, newest first."""
    with Recovery(url, api_key=api_key) as client:
        found = client.jobs()
    rows = [
        [job["id"], job["name"] or "", job["status"], f"{job['progress']['percent']:.0f} %", job["error"] or ""]
        for job in found
    ]
    show(found, ["id", "name", "status", "done", "error"], rows, as_json=as_json)


@application.command()
def watch(job_id: str, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Follow a job with a progress bar until it ends."""
    with Recovery(url, api_key=api_key) as client:
        _watch(client, job_id)


@application.command()
def cancel(job_id: str, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """End a job; its checkpoints stay."""
    with Recovery(url, api_key=api_key) as client:
        Console(highlight=False).print(client.cancel(job_id)["status"])


@application.command()
def resume(
    job_id: str,
    steps: Annotated[int | None, typer.Option(help="New number of all training steps")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Go on with a failed or cancelled job."""
    with Recovery(url, api_key=api_key) as client:
        Console(highlight=False).print(client.resume(job_id, steps=steps)["status"])


@application.command()
def models(as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List models, newest first."""
    with Recovery(url, api_key=api_key) as client:
        found = client.models()
    rows = [
        [
            model["id"],
            model["name"] or "",
            model["dataset"] or "",
            ", ".join(str(c["step"]) for c in model["checkpoints"]),
        ]
        for model in found
    ]
    show(found, ["id", "name", "dataset", "checkpoints"], rows, as_json=as_json)


@application.command()
def sample(
    model: Annotated[str, typer.Argument(help="Id of a model, or id@step")],
    num: Annotated[int, typer.Option("--num", "-n", help="How many")] = 64,
    seed: Annotated[int | None, typer.Option(help="Drawn at random if absent")] = None,
    scale: Annotated[int, typer.Option(help="Magnification")] = 8,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG to write; with --bulk, a folder")] = None,
    bulk: Annotated[bool, typer.Option("--bulk", help="As a job, into .npy files: for tens of thousands")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Draw samples from a model into a PNG, or many into .npy files."""
    more = {} if seed is None else {"seed": seed}
    with Recovery(url, api_key=api_key) as client:
        if bulk:
            _sample_in_bulk(client, model, num, out or Path("samples"), more)
            return
        out = out or Path("samples.png")
        out.write_bytes(client.sample_png(model, num, scale=scale, **more))
    Console(highlight=False).print(str(out))


def _sample_in_bulk(client: Recovery, model: str, num: int, out: Path, more: dict[str, int]) -> None:
    job = client.sample_in_bulk(model, num, **more)
    _watch(client, job["id"])
    manifest = client.shards(job["id"])
    out.mkdir(parents=True, exist_ok=True)
    for shard in manifest["shards"]:
        (out / shard["name"]).write_bytes(client.shard(job["id"], shard["name"]))
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    Console(highlight=False).print(str(out))


@application.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Id of a model, or id@step")],
    tolerance: Annotated[float | None, typer.Option(help="Nats of error to be content with")] = None,
    num_chains: Annotated[int | None, typer.Option(help="Chains walked side by side")] = None,
    max_bridges: Annotated[int | None, typer.Option(help="Temperatures between levels, at most")] = None,
    max_chains: Annotated[int | None, typer.Option(help="Chains at which to give up")] = None,
    num_leapfrog: Annotated[int | None, typer.Option(help="1: MALA; about 5 (HMC) for thousands of dimensions")] = None,
    seed: Annotated[int | None, typer.Option(help="0 if absent")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Estimate log Z of a checkpoint, which log-density needs; prints the job's id."""
    wanted = {
        "tolerance": tolerance,
        "num_chains": num_chains,
        "max_bridges": max_bridges,
        "max_chains": max_chains,
        "num_leapfrog": num_leapfrog,
        "seed": seed,
    }
    with Recovery(url, api_key=api_key) as client:
        job = client.calibrate(model, **{key: value for key, value in wanted.items() if value is not None})
        Console(highlight=False).print(job["id"])
        if wait:
            _watch(client, job["id"])


@application.command()
def log_density(
    model: Annotated[str, typer.Argument(help="Id of a calibrated model, or id@step")],
    files: Annotated[list[Path], typer.Argument(help="Images, one an item, or one .npy", exists=True, dir_okay=False)],
    path: Annotated[bool, typer.Option("--path", help="Also the estimate along the diffusion path")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Score data under a model: log densities in nats."""
    with Recovery(url, api_key=api_key) as client:
        found = client.log_density(model, files, path=path)
    names = [file.name for file in files] if len(files) == len(found["items"]) else map(str, range(len(found["items"])))
    columns = [name for name, value in found["items"][0].items() if value is not None]
    rows = [
        [name, *("" if item[c] is None else f"{item[c]:.4f}" for c in columns)]
        for name, item in zip(names, found["items"], strict=True)
    ]
    show(found, ["item", *columns], rows, as_json=as_json)
    if not as_json:
        Console(highlight=False).print(f"all ± {found['std_error']:.4f} nats, the error of log Z")
        if not found["converged"]:
            Console(highlight=False).print(
                "its two sides have not met: calibrate with more --max-bridges or --max-chains"
            )


def _watch(client: Recovery, job_id: str) -> None:
    client.job(job_id)  # says plainly when there is no such job or no server; a stream would be tried again
    progress.show(client.events(job_id), Console(highlight=False))
    job = client.job(job_id)
    if job["status"] != "succeeded":
        raise ClientError(f"job {job_id} ended as {job['status']}: {job['error'] or 'no reason given'}")


if __name__ == "__main__":
    main()
