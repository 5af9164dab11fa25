"""The bodies of the answers about models: their checkpoints, and log Z where it is known."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from model.config import TrainConfig
from service.bodies.fields import JOB_ID, MODEL_ID, SOME_CONFIG, Name, RequestBody, SchemaOf


class LogZBody(BaseModel):
    """log Z, the log of the normalizer, estimated from both sides, in nats.

    `std_error` is also the error of every log density, the same shift for all items.
    """

    estimate: float = Field(description="The middle between `lower` and `upper`", examples=[-118.24])
    std_error: float = Field(
        description="Half the gap between the sides and the standard errors of both, added in quadrature",
        examples=[0.09],
    )
    lower: float = Field(description="Stochastic lower bound, by annealed importance sampling", examples=[-118.31])
    upper: float = Field(description="Stochastic upper bound, by the same walk backwards", examples=[-118.17])
    lower_std_error: float = Field(examples=[0.04])
    upper_std_error: float = Field(examples=[0.05])
    lower_effective_sample_size: float = Field(examples=[410.2])
    upper_effective_sample_size: float = Field(examples=[388.7])
    upper_start: Literal["exact", "chain"] = Field(
        description="Where the backward walk started: at `exact` samples, or at the ends of `chain`s, which make it as "
        "good as those chains"
    )
    acceptance_rate: float = Field(examples=[0.74])
    num_chains: int = Field(examples=[512])
    num_bridges: int = Field(description="Number of temperatures between neighbouring noise levels", examples=[8])


class QuantileBody(BaseModel):
    """A quantile: the share `level` of the training data has a log density below `log_density`."""

    level: float = Field(examples=[0.5])
    log_density: float = Field(examples=[17.4])


class CalibrationBody(BaseModel):
    """log Z of a checkpoint, and the densities of the model's data under it; nats, in the data's units."""

    log_z: LogZBody
    event_shape: list[int] = Field(description="Shape of one item: (C, H, W) or (D)", examples=[[1, 8, 8]])
    seed: int = Field(examples=[0])
    tolerance: float = Field(description="The `log_z.std_error` that was asked for, in nats", examples=[0.13])
    converged: bool = Field(description="Whether `log_z.std_error` is within the tolerance")
    num_held_out: int = Field(
        description="Number of held-out items that were scored; 0 when the model's data are not known", examples=[897]
    )
    held_out_log_density: float | None = Field(
        description="Mean log density of the held-out items in nats; discrete data are dequantized", examples=[17.67]
    )
    held_out_bits_per_dim: float | None = Field(
        description="The same in bits per dimension; null for continuous data, and when no item was scored",
        examples=[2.6],
    )
    bin_width: float | None = Field(
        description="Distance between neighbouring values of discrete data; null for continuous data", examples=[0.125]
    )
    blur_std: float = Field(
        description="The density is that of the data plus Gaussian noise of this std, in scaled units", examples=[0.02]
    )
    train_quantiles: list[QuantileBody] = Field(description="Quantiles of the training data's log densities")
    created_at: datetime


class CheckpointBody(BaseModel):
    """A committed checkpoint of a model."""

    step: int = Field(examples=[4400])
    size_bytes: int = Field(examples=[812_345])
    committed_at: datetime
    calibration: CalibrationBody | None = Field(
        description="The calibration that POST /jobs/calibrate, or the training itself, made; null until then"
    )


class ModelBody(BaseModel):
    """A model: what it was trained on, with which configuration, and its checkpoints."""

    id: str = Field(examples=[MODEL_ID])
    name: str | None = Field(examples=["my first model"])
    tags: list[str] = Field([], description="For people", examples=[["for the paper"]])
    dataset: str | None = Field(examples=["digits"])
    job_id: str | None = Field(
        description="The job that trained it; null when it was imported, or the job deleted", examples=[JOB_ID]
    )
    origin: str | None = Field(
        description="In words, where an imported model comes from; null when it was trained here", examples=[None]
    )
    created_at: datetime | None
    config: Annotated[dict[str, Any], SchemaOf(TrainConfig)] | None = Field(examples=[SOME_CONFIG])
    checkpoints: list[CheckpointBody] = Field(
        description="The checkpoints by their step; /sample uses the last unless told"
    )


Tag = Annotated[str, Field(min_length=1, max_length=40)]


class ModelChangeRequest(RequestBody):
    """What a model is called; a field that is absent stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "digits, wide", "tags": ["for the paper"]}]})

    name: Name = Field(None, description="null takes the name away", examples=["digits, wide"])
    tags: list[Tag] = Field([], max_length=20, description="In place of all that it has", examples=[["for the paper"]])

    @field_validator("tags")
    @classmethod
    def _each_once(cls, tags: list[str]) -> list[str]:
        return list(dict.fromkeys(tags))


class ModelListBody(BaseModel):
    """All models, newest first."""

    models: list[ModelBody]
