"""From the dataset's name in a job to what `model.data.load` takes. Imports no torch: the service checks too."""

from __future__ import annotations

from pathlib import Path

from model.errors import DataError
from model.presets import BUILT_IN_DATASETS


def resolve_dataset(name: str, datasets_dir: Path | None) -> str:
    """`name` itself when built in, else the path below `datasets_dir` it stands for.

    Raises DataError when there is no such dataset, or the path would leave the folder.
    """
    if name in BUILT_IN_DATASETS:
        return name
    known = f"built in are {', '.join(BUILT_IN_DATASETS)}"
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
