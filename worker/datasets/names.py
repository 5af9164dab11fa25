"""From the dataset's name in a job to the data. Imports no torch: the service checks names too.

digits, two_moons …             built in
01JD3Z6M3Q…                     uploaded: an id
s3://bucket/prefix              in a bucket that the settings allow
hf://owner/name:split/column    of the Hugging Face hub
anything else                   a path below the folder of datasets
"""

from __future__ import annotations

from pathlib import Path

from model.errors import DataError
from model.intake.framing import ImageSize
from model.intake.limits import Summary
from model.intake.normalize import FORMATS
from model.presets import BUILT_IN_DATASETS, EMOJI_FOLDER
from worker.datasets import hub, s3
from worker.datasets.cache import DatasetCache
from worker.settings import Settings
from worker.storage.bucket import ArtifactMissing, Bucket
from worker.storage.datasets import DatasetStore, StoredDataset, is_dataset_id


def fetch_dataset(
    name: str,
    settings: Settings,
    bucket: Bucket,
    image_size: ImageSize | None = None,
    label_column: str | None = None,
) -> str:
    """The name of a built-in dataset, or a path on this machine, fetched if it was not there, for `model.data.load`.

    Folders in buckets and columns of the hub become arrays on the way, for which `image_size` makes images of several
    sizes one, and `label_column` names their classes; `load` does that for the others (`unread_column`). Raises
    DataError, StorageUnavailable, ArtifactDamaged.
    """
    _refuse_label_column(name, label_column)
    cache = DatasetCache(settings.spool_dir / "datasets", settings.dataset_cache_bytes)
    if is_dataset_id(name):
        stored, store = _stored(name, bucket), DatasetStore(bucket)
        return str(cache.fetch(stored.data_sha256, lambda path: store.fetch(name, path)))
    if name.startswith(s3.SCHEME):
        return str(s3.fetch_prefix(name, settings, bucket, cache, image_size, label_column))
    if name.startswith(hub.SCHEME):
        return str(_fetch_from_hub(name, settings, cache, image_size))
    return resolve_dataset(name, settings.datasets_dir)


def unread_column(name: str, label_column: str | None) -> str | None:
    """The `label_column` that `model.data.load` has to read yet, None where `fetch_dataset` has read it."""
    return None if name.startswith(s3.SCHEME) else label_column


def require_dataset(name: str, settings: Settings, bucket: Bucket, label_column: str | None = None) -> Summary | None:
    """What is known of a dataset before anything is fetched.

    Raises DataError when a training could not find the dataset, or has no such column to choose.
    """
    _refuse_label_column(name, label_column)
    if name in BUILT_IN_DATASETS:
        return BUILT_IN_DATASETS[name]
    if is_dataset_id(name):
        return _stored(name, bucket).summary
    if name.startswith(s3.SCHEME):
        s3.require_prefix(name, settings, bucket)
    elif name.startswith(hub.SCHEME):
        hub.parse_hub_name(name)  # whether the hub has it, the trainer finds out
    else:
        resolve_dataset(name, settings.datasets_dir)
    return None


def resolve_dataset(name: str, datasets_dir: Path | None) -> str:
    """`name` itself when built in, else the path below `datasets_dir` it stands for.

    Raises DataError when there is no such dataset, or the path would leave the folder.
    """
    if name == "emoji" and datasets_dir is not None and (installed := datasets_dir / EMOJI_FOLDER).is_dir():
        return str(installed)
    if name in BUILT_IN_DATASETS:
        return name
    known = f"built in are {', '.join(BUILT_IN_DATASETS)}; GET /datasets lists those that were uploaded"
    if datasets_dir is None:
        raise DataError(f"there is no dataset {name!r}; {known}, and no folder of other datasets is set up")
    folder = datasets_dir.resolve()
    try:
        path = (folder / name).resolve()
        found = path != folder and path.is_relative_to(folder) and path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        found = False
    if not found:
        raise DataError(f"there is no dataset {name!r}; {known}, others are relative paths in the datasets folder")
    return str(path)


def folder_datasets(datasets_dir: Path | None) -> list[str]:
    """The names of what lies directly in the folder of datasets and looks like a dataset."""
    if datasets_dir is None or not datasets_dir.is_dir():
        return []
    found = (path for path in datasets_dir.iterdir() if not path.name.startswith("."))
    return sorted(path.name for path in found if path.is_dir() or path.suffix.lower() in FORMATS)


def _refuse_label_column(name: str, label_column: str | None) -> None:
    """Refuse the name of a column for a dataset whose labels were chosen before. Raises DataError."""
    if label_column is None:
        return
    if is_dataset_id(name):
        how = "the column is named when a dataset is uploaded"
    elif name.startswith(hub.SCHEME):
        how = "a column of the hub is the last part of the dataset's name"
    elif name in BUILT_IN_DATASETS:
        how = "built-in datasets know their labels"
    else:
        return
    raise DataError(f"label_column is for files in the datasets folder and in buckets, and {how}; leave it out")


def _stored(dataset_id: str, bucket: Bucket) -> StoredDataset:
    try:
        return DatasetStore(bucket).get(dataset_id)
    except ArtifactMissing:
        raise DataError(f"there is no dataset {dataset_id}; GET /datasets lists them. Was it deleted?") from None


def _fetch_from_hub(name: str, settings: Settings, cache: DatasetCache, image_size: ImageSize | None) -> Path:
    """Kept by content, since the hub may change; `datasets` has a cache of its own for what it downloads."""
    mirror, limits = settings.datasets_dir, settings.read_limits
    return cache.add(
        lambda path: hub.store_hub_dataset(name, path, mirror=mirror, limits=limits, image_size=image_size)
    )
