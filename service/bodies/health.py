"""Bodies of answers about the service itself: whether it is ready, and which workers live."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class CheckBody(BaseModel):
    """Whether one thing the service needs is there."""

    name: str = Field(examples=["redis"])
    ok: bool
    detail: str = Field(examples=["answers"])


class ReadinessBody(BaseModel):
    """Whether jobs and samples can be served now."""

    status: Literal["ready"]
    checks: list[CheckBody]


class WorkerBody(BaseModel):
    """A worker that gives signs of life, and what it says of itself."""

    kind: str = Field(description="The queue it serves", examples=["train"])
    name: str = Field(examples=["trainer@gpu-1"])
    version: str | None = Field(description="Of the program; should be the service's own", examples=["0.1.0"])
    gpus: list[str] = Field(description="NVIDIA devices of its machine", examples=[["NVIDIA H100 80GB HBM3"]])
    clock_ahead_s: float | None = Field(description="Of Redis's clock, which decides about leases", examples=[0.01])


class WorkerListBody(BaseModel):
    """All live workers, by kind and name."""

    workers: list[WorkerBody]


class HealthBody(BaseModel):
    """That the process is alive."""

    status: Literal["alive"] = "alive"
