"""Bodies of the answers about datasets."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from model.event_kinds.registry import KindName
from model.intake.limits import Summary
from model.presets import BUILT_IN_DATASETS

if TYPE_CHECKING:  # a client that reads these bodies needs no storage
    from worker.storage.datasets import StoredDataset

_DATASET_ID = "01JD3Z6M3Q9A0B1C2D3E4F5G6H"
DATASET_NAMES = (
    f"A built-in dataset ({', '.join(BUILT_IN_DATASETS)}), the id of an uploaded one (POST /datasets), "
    "`s3://bucket/prefix`, `hf://owner/name:split/column`, or a path below the server's dataset folder"
)


class DatasetBody(BaseModel):
    """A dataset that POST /jobs/train takes by its id."""

    id: str = Field(description="Give it as `dataset` to POST /jobs/train", examples=[_DATASET_ID, "digits"])
    name: str | None = Field(description="For people", examples=["my pictures"])
    source: Literal["uploaded", "built-in", "folder"] = Field(
        description="`folder`: below the folder of datasets on the server, read when a training starts"
    )
    kind: KindName | None = Field(description="null for what has not been read yet")
    count: int | None = Field(description="Items; a tenth is held out", examples=[1200])
    shape: list[int] | None = Field(description="Of one item: (C, H, W) or (D)", examples=[[3, 32, 32], [2]])
    sha256: str | None = Field(default=None, description="Of the uploaded file", examples=["9f2e…"])
    file_name: str | None = Field(default=None, description="Of the uploaded file", examples=["pictures.zip"])
    size_bytes: int | None = Field(default=None, description="Of the uploaded file", examples=[1_234_567])
    created_at: datetime | None = None

    @classmethod
    def uploaded(cls, stored: StoredDataset) -> DatasetBody:
        """The public view of a manifest."""
        shared = stored.model_dump(
            include={"id", "name", "kind", "count", "sha256", "file_name", "size_bytes", "created_at"}
        )
        return cls(source="uploaded", shape=list(stored.event_shape), **shared)

    @classmethod
    def built_in(cls, name: str, summary: Summary) -> DatasetBody:
        """One that comes with the program."""
        shape = list(summary.event_shape)
        return cls(id=name, name=None, source="built-in", kind=summary.kind, count=summary.count, shape=shape)

    @classmethod
    def in_folder(cls, name: str) -> DatasetBody:
        """One below the folder of datasets."""
        return cls(id=name, name=None, source="folder", kind=None, count=None, shape=None)


class DatasetListBody(BaseModel):
    """All datasets: uploaded ones, newest first, then built-in ones, then those in the server's folder."""

    datasets: list[DatasetBody]
