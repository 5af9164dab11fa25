"""The commands `recovery datasets ...`, which upload, list, show and delete the datasets that trainings take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import wrap_file

from service.client import Dataset, Recovery
from service.client.folder_zip import zipped
from service.commands.options import (
    ApiKey,
    AsJson,
    Url,
    complete_dataset,
    examples,
    print_json,
    print_line,
    print_note,
    print_table,
)

application = typer.Typer(help="Upload, list, show and delete datasets.", no_args_is_help=True)
DatasetId = Annotated[
    str,
    typer.Argument(
        help="Id of the dataset; `recovery datasets list` shows all ids",
        autocompletion=complete_dataset,
        show_default=False,
    ),
]


@application.command(
    epilog=examples(
        "recovery datasets upload pictures/ --name cats", "recovery datasets upload points.csv --label-column kind"
    )
)
def upload(
    path: Annotated[Path, typer.Argument(help="A folder or .zip of images, a .npy, .npz or .csv", exists=True)],
    name: Annotated[str | None, typer.Option(help="A name for people")] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Crop images around their centre and resize them: 64, or 48x64 (height x width)")
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="The column of a .csv, or the array of a .npz, that holds the class of each item"),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Upload data to train on, and print the dataset's id; the same file has the same id again."""
    is_folder = path.is_dir()
    with (
        zipped(path) if is_folder else path.open("rb") as file,
        wrap_file(
            file, os.fstat(file.fileno()).st_size, description="uploading", console=Console(stderr=True)
        ) as reader,
        Recovery(url, api_key=api_key) as client,
    ):
        found = client.upload_dataset(
            reader,
            file_name=f"{path.resolve().name}{'.zip' if is_folder else ''}",
            name=name,
            image_size=image_size,
            label_column=label_column,
        )
    if as_json:
        print_json(found)
    else:
        print_line(found.id)
        print_note(f"{found.count} {found.kind} of shape {_shape(found)}, sha256 {found.sha256}")
        for note in found.notes:
            print_note(note)


@application.command("list")
def list_datasets(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List the datasets that were uploaded, are built in, or lie in the server's folder."""
    with Recovery(url, api_key=api_key) as client:
        found = client.datasets()
    if as_json:
        print_json(found)
        return
    rows = [
        [one.id, one.name or "", one.source, one.kind or "", str(one.count or ""), _shape(one), _num_classes(one)]
        for one in found
    ]
    print_table(["id", "name", "source", "kind", "items", "shape", "classes"], rows)


@application.command("show")
def show_dataset(dataset_id: DatasetId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Look at an uploaded or a built-in dataset."""
    with Recovery(url, api_key=api_key) as client:
        found = client.dataset(dataset_id)
    if as_json:
        print_json(found)
        return
    known = found.model_dump(mode="json", exclude_none=True) | {
        "shape": _shape(found),
        "labels": ", ".join(f"{one.name} ({one.count})" for one in found.labels or []) or "none",
        "notes": "; ".join(found.notes),
    }
    print_table(["field", "value"], [[name, str(value)] for name, value in known.items()])


@application.command()
def delete(dataset_id: DatasetId, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Delete an uploaded dataset that no waiting or running job uses."""
    with Recovery(url, api_key=api_key) as client:
        client.delete_dataset(dataset_id)
    if as_json:
        print_json({"deleted": dataset_id})
    else:
        print_line(f"deleted {dataset_id}")


def _num_classes(found: Dataset) -> str:
    return str(len(found.labels)) if found.labels else ""


def _shape(found: Dataset) -> str:
    return "×".join(map(str, found.shape or ()))
