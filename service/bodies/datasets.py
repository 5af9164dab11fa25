"""The bodies of the answers about datasets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from model.event_kinds.registry import KindName
from model.intake.limits import ClassCount, Summary
from model.presets import BUILT_IN_DATASETS

if TYPE_CHECKING:  # a client that reads these bodies needs no storage
    from worker.storage.datasets import StoredDataset

_DATASET_ID = "01JD3Z6M3Q9A0B1C2D3E4F5G6H"
DATASET_NAMES = (
    f"A built-in dataset ({', '.join(BUILT_IN_DATASETS)}), the id of an uploaded one (POST /datasets), "
    "`s3://bucket/prefix`, `hf://owner/name:split/column/labels`, or a path below the server's dataset folder"
)


class LabelBody(BaseModel):
    """A class of a labelled dataset."""

    name: str = Field(description="Name of the class", examples=["cat"])
    count: int = Field(description="Number of items of this class", examples=[600])


class DatasetBody(BaseModel):
    """A dataset that POST /jobs/train takes by its id."""

    id: str = Field(description="The id that POST /jobs/train takes as `dataset`", examples=[_DATASET_ID, "digits"])
    name: str | None = Field(description="A name for people", examples=["my pictures"])
    source: Literal["uploaded", "built-in", "folder"] = Field(
        description="Where the dataset is. `folder` is the server's dataset folder, read when a training starts"
    )
    kind: KindName | None = Field(description="Kind of the items; null when the dataset has not been read yet")
    count: int | None = Field(description="Number of items, a tenth of which is held out", examples=[1200])
    shape: list[int] | None = Field(description="Shape of one item: (C, H, W) or (D)", examples=[[3, 32, 32], [2]])
    labels: list[LabelBody] | None = Field(
        default=None,
        description="Classes of the items, in natural order; empty when the items have no labels, null when the "
        "dataset has not been read yet",
    )
    notes: list[str] = Field(
        default=[],
        description="What to know of how the file was read, such as by what its items are labelled",
        examples=[["Labelled by folders: 2 classes"]],
    )
    sha256: str | None = Field(default=None, description="SHA-256 of the uploaded file", examples=["9f2e…"])
    file_name: str | None = Field(default=None, description="Name of the uploaded file", examples=["pictures.zip"])
    size_bytes: int | None = Field(
        default=None, description="Size of the uploaded file, in bytes", examples=[1_234_567]
    )
    created_at: datetime | None = None

    @classmethod
    def uploaded(cls, stored: StoredDataset) -> DatasetBody:
        """Describe an uploaded dataset by the public part of its manifest."""
        shared = stored.model_dump(
            include={"id", "name", "kind", "count", "sha256", "file_name", "size_bytes", "created_at"}
        )
        return cls(
            source="uploaded",
            shape=list(stored.event_shape),
            labels=_labels(stored.labels),
            notes=list(stored.notes),
            **shared,
        )

    @classmethod
    def built_in(cls, name: str, summary: Summary) -> DatasetBody:
        """Describe a dataset that comes with the program."""
        return cls(
            id=name,
            name=None,
            source="built-in",
            kind=summary.kind,
            count=summary.count,
            shape=list(summary.event_shape),
            labels=_labels(summary.labels),
        )

    @classmethod
    def in_folder(cls, name: str) -> DatasetBody:
        """Describe a dataset in the server's dataset folder, which is not read for this."""
        return cls(id=name, name=None, source="folder", kind=None, count=None, shape=None)


def _labels(found: Sequence[ClassCount]) -> list[LabelBody]:
    return [LabelBody(name=one.name, count=one.count) for one in found]


class DatasetListBody(BaseModel):
    """All datasets: uploaded ones, newest first, then built-in ones, then those in the server's folder."""

    datasets: list[DatasetBody]
