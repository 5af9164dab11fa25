"""The bodies of the answers about the service itself: whether it is ready, and which workers are alive."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class CheckBody(BaseModel):
    """The result of a check: whether one thing that the service needs is there."""

    name: str = Field(examples=["redis"])
    ok: bool
    detail: str = Field(examples=["answers"])


class ReadinessBody(BaseModel):
    """The answer that jobs and samples can be served now, and the checks behind it."""

    status: Literal["ready"]
    checks: list[CheckBody]


class WorkerBody(BaseModel):
    """A live worker, as its heartbeat describes it."""

    kind: str = Field(description="The queue it serves", examples=["train"])
    name: str = Field(examples=["trainer@gpu-1"])
    version: str | None = Field(
        description="Version of the worker's program; it should be the service's", examples=["0.1.0"]
    )
    gpus: list[str] = Field(description="NVIDIA devices of the worker's machine", examples=[["NVIDIA H100 80GB HBM3"]])
    clock_ahead_s: float | None = Field(
        description="Seconds that the worker's clock is ahead of Redis's, which decides about leases", examples=[0.01]
    )


class WorkerListBody(BaseModel):
    """All live workers, ordered by kind and name."""

    workers: list[WorkerBody]


class HealthBody(BaseModel):
    """The answer of a service process that is alive."""

    status: Literal["alive"] = "alive"
