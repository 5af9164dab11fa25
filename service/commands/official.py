"""The command `recovery import-official`, which turns a checkpoint of the authors' TensorFlow release into a model.

The command itself converts the checkpoint and writes it where the workers read, because the service loads no torch and
could not check the weights (docs/decisions/0040-import-official-writes-to-storage.md).
"""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.config import UNKNOWN_DATASET, to_dict
from model.errors import ModelError
from service.client.address import DEFAULT_FOLDER
from service.commands.options import AsJson, print_json, print_line, print_note
from service.foreseen import ForeseenError
from service.settings import read_settings
from service.stack.folder import read_environment
from worker.ids import new_id
from worker.settings import Settings

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Snapshot
    from worker.storage.artifacts import Artifacts


class ImportFailed(ForeseenError):
    """Nothing was imported. The one sentence says why, and what to do."""


def import_official(
    prefix: Annotated[Path, typer.Argument(help="Path of the checkpoint's files, up to what comes before .index")],
    name: Annotated[str | None, typer.Option(help="A name for people")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data it was trained on, which the file does not say; calibrating scores them")
    ] = None,
    levels: Annotated[
        int, typer.Option(min=2, max=501, help="Number of noise levels it was trained with; 6 is T6")
    ] = 6,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=4,
            max=1024,
            help="Height and width of its images; by default the release's for its multipliers, else 32",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a running `recovery up`; else the storage of the RECOVERY_S3_ variables, if there are any, "
            f"else {DEFAULT_FOLDER}"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import a checkpoint of the authors' TensorFlow release, and print the new model's id."""
    # Imported here, because other commands do not need it and it is slow to import.
    from worker.storage.artifacts import ArtifactError, Artifacts

    try:
        artifacts = Artifacts.connect(_settings(data))
        snapshot = _read(prefix, levels, image_size, dataset)
        model_id = _store(artifacts, snapshot, prefix, name, dataset)
    except (ModelError, ArtifactError) as error:
        raise ImportFailed(str(error)) from error
    if as_json:
        print_json({"model_id": model_id, "step": snapshot.step, "event_shape": list(snapshot.event_shape)})
    else:
        print_line(model_id)
        print_note(_told(snapshot))


def _told(snapshot: Snapshot) -> str:
    """Say what was inferred from the checkpoint, and what was assumed."""
    network, levels = snapshot.config.network, snapshot.config.schedule.num_levels
    channels, height, width = snapshot.event_shape
    blocks = f"{network.num_blocks} block{'s' * (network.num_blocks > 1)} a resolution"
    return (
        f"step {snapshot.step}; width {network.width}, multipliers {network.multipliers}, {blocks}; "
        f"{levels} levels, images of {width}×{height} in {channels} channels"
    )


def _settings(data: Path | None) -> Settings:
    """Return the settings of the stack that runs on a folder, or of the environment.

    Raises SettingsError, LocalStackError.
    """
    of_environment = data is None and any(name.startswith("RECOVERY_S3_") for name in os.environ)
    return read_settings(os.environ if of_environment else read_environment(data or DEFAULT_FOLDER))


def _read(prefix: Path, levels: int, image_size: int | None, dataset: str | None) -> Snapshot:
    """Convert the checkpoint. Raises CheckpointError, and ImportFailed where torch is not installed."""
    try:
        from model.checkpoints import official
    except ImportError as error:
        raise ImportFailed(
            f"{error.name} is missing, which converting needs; install it with "
            "`pip install 'recovery-likelihood[worker]'`"
        ) from None
    return official.read_snapshot(prefix, num_levels=levels, image_size=image_size, dataset=dataset or UNKNOWN_DATASET)


def _store(artifacts: Artifacts, snapshot: Snapshot, prefix: Path, name: str | None, dataset: str | None) -> str:
    """Write the checkpoint, then the model's description, without which nobody sees it; return the model's id."""
    model_id = new_id()
    with tempfile.TemporaryDirectory(prefix="recovery-import-") as directory:
        snapshot.write(Path(directory))
        artifacts.commit_checkpoint(model_id, snapshot.step, Path(directory))
    artifacts.put_model(
        model_id,
        {
            "id": model_id,
            "name": name,
            "dataset": dataset,
            "config": to_dict(snapshot.config),
            "job_id": None,
            "origin": f"imported from the authors' TensorFlow checkpoint {prefix.name}, step {snapshot.step}",
            "created_at": datetime.now(UTC).isoformat(),
        },
    )
    return model_id
