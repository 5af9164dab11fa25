"""`recovery models`, `sample`, `log-density` and `classify`: what is done with models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from service.bodies.sampling import ClassifyOptions, SampleRequestBody
from service.client import ClientError, Model, Recovery, Samples
from service.client.call import Json
from service.client.progress import Bar, with_error
from service.client.samples import spread_levels
from service.commands import terminal_image
from service.commands.frontier import frontier_in_short
from service.commands.options import (
    MODELS_PANEL,
    ApiKey,
    AsJson,
    ModelAt,
    Url,
    complete_model,
    examples,
    model_at,
    print_json,
    print_line,
    print_note,
    print_table,
)
from service.commands.request_options import takes_fields
from service.work.images import encode_npy, encode_zip, is_image

application = typer.Typer()
_SHOWN_LABELS = 5


@application.command(
    rich_help_panel=MODELS_PANEL, epilog=examples("recovery models", "recovery models 01JD3Z6M3QMDE0N5K7C2B8F4GH")
)
def models(
    model_id: Annotated[
        str | None, typer.Argument(help="Look at one model instead", autocompletion=complete_model, show_default=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List models, newest first, or the checkpoints of one."""
    with Recovery(url, api_key=api_key) as client:
        found: Model | list[Model] = client.model(model_at(client, model_id)) if model_id else client.models()
    if as_json:
        print_json(found)
    elif isinstance(found, Model):
        print_line(f"{found.name or found.id}, trained on {found.dataset or 'data that are not known'}")
        if found.classes:
            print_line(f"classes: {', '.join(found.classes)}")
        headings = ["checkpoint", "size", "log Z, nats", "held-out log density, nats", "evaluations"]
        print_table(headings, _checkpoints(found))
    else:
        print_table(["id", "name", "tags", "dataset", "checkpoints"], [_row(model) for model in found])


def _row(model: Model) -> list[str]:
    steps = ", ".join(str(one.step) for one in model.checkpoints)
    return [model.id, model.name or "", ", ".join(model.tags), model.dataset or "", steps]


def _checkpoints(model: Model) -> list[list[str]]:
    rows = []
    for one in model.checkpoints:
        known = one.calibration
        log_z = with_error(known.log_z.estimate, known.log_z.std_error) if known else "not calibrated"
        held_out = known.held_out_log_density if known else None
        told = "" if held_out is None else f"{held_out:.3f}"
        costs = "not tuned" if one.frontier is None else frontier_in_short(one.frontier)
        rows.append([f"{model.id}@{one.step}", f"{one.size_bytes / 1e6:.1f} MB", log_z, told, costs])
    return rows


@application.command(
    rich_help_panel=MODELS_PANEL,
    epilog=examples(
        "recovery sample MODEL -n 64 --seed 0 --out digits.png",
        "recovery sample MODEL -n 8 --levels 11     (each row one sample, from noise)",
        "recovery sample MODEL -n 256 --out digits.npy",
        "recovery sample MODEL --label 3 --label 5 --guidance 0.5     (of a conditional model)",
        "recovery sample MODEL@2000 -n 50000 --bulk --out samples/",
    ),
)
@takes_fields(SampleRequestBody, only=("seed", "quality", "steps", "noise_scale", "guidance", "adjusted"))
def sample(
    model: ModelAt,
    *,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="How many")] = 64,
    options: Json,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a conditional model: the name or number of a class, or JSON such as "
            '{"any_of": ["3", "5"]}; several are taken in turn, and all classes without any',
            show_default=False,
        ),
    ] = None,
    levels: Annotated[int, typer.Option(min=0, max=64, help="Show so many noise levels on the way, too")] = 0,
    scale: Annotated[int, typer.Option(min=1, max=32, help="Magnification of pictures")] = 8,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A .png, .zip of PNGs or .npy; samples.png or, of vectors, samples.npy if absent. "
            "With --bulk, a folder",
        ),
    ] = None,
    bulk: Annotated[bool, typer.Option("--bulk", help="As a job, into .npy files: for tens of thousands")] = False,
    show: Annotated[bool, typer.Option("--show/--no-show", help="Draw the picture in the terminal, too")] = True,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Draw samples from a model into a picture or numbers, or many into .npy files; prints the file's name."""
    with Recovery(url, api_key=api_key) as client:
        model = model_at(client, model)
        options["labels"] = [_label(one) for one in label] if label else None
        if bulk:
            _sample_in_bulk(client, model, num, out or Path("samples"), options, as_json=as_json)
            return
        wanted = _levels(client, model, levels) if levels else []
        drawn = client.sample(model, num, levels=wanted, **options)
    png = drawn.png(scale=scale) if is_image(drawn.x.shape[1:]) else None
    out = out or Path("samples.npy" if png is None else "samples.png")
    out.write_bytes(_encoded(drawn, png, out, scale))
    if png is not None and show and not as_json and terminal_image.can_show():
        terminal_image.show(png)
    if as_json:
        shape, cost = list(drawn.x.shape), drawn.gradient_evaluations
        told = {"file": str(out), "model": drawn.model, "seed": drawn.seed, "shape": shape}
        labels = {"labels": drawn.labels, "guidance": drawn.guidance} if drawn.labels else {}
        print_json({**told, **labels, "kernel": drawn.kernel, "gradient_evaluations": cost, "quality": drawn.quality})
    else:
        print_line(out)
        of_labels = f", {_labels_in_short(drawn.labels)} with guidance {drawn.guidance:g}" if drawn.labels else ""
        how = "the model's own settings" if drawn.quality == "own" else f"quality {drawn.quality}"
        cost = drawn.gradient_evaluations
        print_note(f"{drawn.model}, seed {drawn.seed}{of_labels}, {how}, {cost} gradient evaluations a sample")


def _label(text: str) -> Any:
    """What a --label asks for. Raises ClientError for JSON that is none."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ClientError(f'--label {text} is no JSON ({error}); expected such as {{"any_of": ["3", "5"]}}') from None


def _labels_in_short(labels: Sequence[Any]) -> str:
    if len(labels) > _SHOWN_LABELS:
        return f"{len(labels)} labels in turn"
    named = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in labels]
    return f"label {named[0]}" if len(named) == 1 else f"labels {', '.join(named)} in turn"


def _encoded(drawn: Samples, png: bytes | None, out: Path, scale: int) -> bytes:
    """The content that the file's name asks for.

    Raises ClientError for a name that asks for nothing that can be had.
    """
    if out.suffix == ".npy":
        return encode_npy(drawn.x if drawn.levels is None else np.concatenate([drawn.levels, drawn.x[None]]))
    if png is not None and out.suffix == ".png":
        return png
    if png is not None and out.suffix == ".zip":
        return encode_zip({"": drawn.x}, {"model": drawn.model, "seed": drawn.seed}, scale=scale)
    expected = ".npy, since this model makes vectors" if png is None else ".png, .zip or .npy"
    raise ClientError(f"{out} does not say what to write; expected a name ending in {expected}")


def _levels(client: Recovery, model: str, count: int) -> list[int]:
    config = client.model(model.partition("@")[0]).config or {}
    return spread_levels(int(config["schedule"]["num_levels"]), count)


def _sample_in_bulk(client: Recovery, model: str, num: int, out: Path, options: Json, *, as_json: bool) -> None:
    job = client.sample_in_bulk(model, num, **options)
    with Bar(Console(stderr=True, highlight=False)) as bar:
        for event in job.events():
            bar.show(event)
    job.refresh()
    job.require_success()
    manifest = client.shards(job.id)
    out.mkdir(parents=True, exist_ok=True)
    for shard in manifest["shards"]:
        (out / shard["name"]).write_bytes(client.shard(job.id, shard["name"]))
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    if as_json:
        print_json({**manifest, "folder": str(out)})
    else:
        print_line(out)


@application.command(
    rich_help_panel=MODELS_PANEL,
    epilog=examples(
        "recovery log-density MODEL a.png b.png",
        "recovery log-density MODEL points.npy --path",
        "recovery log-density MODEL points.npy --json | jq '.items[].log_density'",
    ),
)
def log_density(
    model: ModelAt,
    files: Annotated[
        list[Path],
        typer.Argument(help="Images, one an item, or one .npy", exists=True, dir_okay=False, show_default=False),
    ],
    path: Annotated[bool, typer.Option("--path", help="Also the estimate along the diffusion path")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Score data under a calibrated model: log densities in nats."""
    with Recovery(url, api_key=api_key) as client:
        found = client.log_density(model_at(client, model), files, path=path)
    if as_json:
        print_json(found)
        return
    items = [item.model_dump() for item in found.items]
    names = _item_names(files, len(items))
    columns = [name for name, value in items[0].items() if value is not None]
    print_table(
        ["item", *columns],
        [
            [name, *("" if item[c] is None else f"{item[c]:.4f}" for c in columns)]
            for name, item in zip(names, items, strict=True)
        ],
    )
    if found.std_error is not None:
        print_line(f"all ± {found.std_error:.4f} nats, the error of log Z")
    if not found.converged:
        print_line(found.explanation)


@application.command(
    rich_help_panel=MODELS_PANEL,
    epilog=examples(
        "recovery classify MODEL a.png b.png", "recovery classify MODEL points.npy --json | jq '.items[].label'"
    ),
)
@takes_fields(ClassifyOptions, leave_out=("model",))
def classify(
    model: ModelAt,
    files: Annotated[
        list[Path],
        typer.Argument(help="Images, one an item, or one .npy", exists=True, dir_okay=False, show_default=False),
    ],
    *,
    options: Json,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Tell the class of data by a conditional model, and whether they are like any of its classes."""
    with Recovery(url, api_key=api_key) as client:
        found = client.classify(model_at(client, model), files, **options)
    if as_json:
        print_json(found)
        return
    said = {True: "none of these", False: "", None: "not known"}
    rows = []
    for name, item in zip(_item_names(files, len(found.items)), found.items, strict=True):
        sure = "" if item.probability is None else f"{item.probability:.4f}"
        less = "" if item.less_likely is None else f"{item.less_likely:.0%}"
        rows.append([name, item.label, sure, less, said[item.none_of_these]])
    print_table(["item", "label", "probability", "held-out data less likely", "judgement"], rows)
    print_line(found.explanation)


def _item_names(files: list[Path], count: int) -> list[str]:
    """Files with one item each by their names, the items of one file by their numbers."""
    return [file.name for file in files] if len(files) == count else [str(index) for index in range(count)]
