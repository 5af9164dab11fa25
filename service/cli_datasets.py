"""`recovery datasets`: upload, list, show and delete what trainings take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import wrap_file

from service.cli_options import ApiKey, AsJson, Url, show
from service.client import DEFAULT_URL, Recovery
from service.folder_zip import zipped

application = typer.Typer(help="Upload, list, show and delete datasets.", no_args_is_help=True)
DatasetId = Annotated[str, typer.Argument(help="Its id; `recovery datasets list` shows them")]


@application.command()
def upload(
    path: Annotated[Path, typer.Argument(help="A folder or .zip of images, a .npy, .npz or .csv", exists=True)],
    name: Annotated[str | None, typer.Option(help="For people")] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Crop images around their centre and resize them: 64, or 48x64 (height x width)")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Upload data to train on; prints the dataset's id, the same again for the same file."""
    is_folder = path.is_dir()
    with (
        zipped(path) if is_folder else path.open("rb") as file,
        wrap_file(
            file, os.fstat(file.fileno()).st_size, description="uploading", console=Console(stderr=True)
        ) as reader,
        Recovery(url, api_key=api_key) as client,
    ):
        file_name = f"{path.resolve().name}{'.zip' if is_folder else ''}"
        found = client.upload_dataset(reader, file_name=file_name, name=name, image_size=image_size)
    Console(highlight=False).print(found["id"])
    Console(stderr=True, highlight=False, soft_wrap=True).print(_told(found), markup=False)


@application.command("list")
def list_datasets(as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List datasets: uploaded, built in, and in the server's folder."""
    with Recovery(url, api_key=api_key) as client:
        found = client.datasets()
    rows = [
        [
            escape(one["id"]),
            escape(one["name"] or ""),
            one["source"],
            one["kind"] or "",
            "" if one["count"] is None else str(one["count"]),
            _shape(one),
        ]
        for one in found
    ]
    show(found, ["id", "name", "source", "kind", "items", "shape"], rows, as_json=as_json)


@application.command("show")
def show_dataset(
    dataset_id: DatasetId, as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None
) -> None:
    """Look at an uploaded or a built-in dataset."""
    with Recovery(url, api_key=api_key) as client:
        found = client.dataset(dataset_id)
    rows = [[name, escape(_shape(found) if name == "shape" else str(value))] for name, value in found.items() if value]
    show(found, ["field", "value"], rows, as_json=as_json)


@application.command()
def delete(dataset_id: DatasetId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Delete an uploaded dataset that no waiting or running job uses."""
    with Recovery(url, api_key=api_key) as client:
        client.delete_dataset(dataset_id)
    Console(highlight=False).print(f"deleted {dataset_id}", markup=False)


def _told(found: dict[str, Any]) -> str:
    return f"{found['count']} {found['kind']} of shape {_shape(found)}, sha256 {found['sha256']}"


def _shape(found: dict[str, Any]) -> str:
    return "×".join(map(str, found["shape"] or ()))
