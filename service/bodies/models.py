"""Bodies of answers about models: their checkpoints, and log Z where it is known."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from model.config import TrainConfig
from service.bodies.fields import JOB_ID, MODEL_ID, SOME_CONFIG, Name, RequestBody, SchemaOf


class LogZBody(BaseModel):
    """log of the normalizer from both sides, nats. The density's own error is `std_error`, the same for every item."""

    estimate: float = Field(description="Midway between the sides", examples=[-118.24])
    std_error: float = Field(
        description="Half the gap of the sides and their own standard errors, in quadrature", examples=[0.09]
    )
    lower: float = Field(description="Stochastic lower bound: annealed importance sampling", examples=[-118.31])
    upper: float = Field(description="Stochastic upper bound: the same walk backwards", examples=[-118.17])
    lower_std_error: float = Field(examples=[0.04])
    upper_std_error: float = Field(examples=[0.05])
    lower_effective_sample_size: float = Field(examples=[410.2])
    upper_effective_sample_size: float = Field(examples=[388.7])
    upper_start: Literal["exact", "chain"] = Field(
        description="Where the backward walk began: `exact` samples, or the ends of `chain`s, as good as those chains"
    )
    acceptance_rate: float = Field(examples=[0.74])
    num_chains: int = Field(examples=[512])
    num_bridges: int = Field(description="Temperatures between neighbouring noise levels", examples=[8])


class QuantileBody(BaseModel):
    """A share `level` of the training data has a log density below `log_density`."""

    level: float = Field(examples=[0.5])
    log_density: float = Field(examples=[17.4])


class CalibrationBody(BaseModel):
    """log Z of a checkpoint, and how its data score with it; nats, in the data's units."""

    log_z: LogZBody
    event_shape: list[int] = Field(description="Of one item: (C, H, W) or (D)", examples=[[1, 8, 8]])
    seed: int = Field(examples=[0])
    tolerance: float = Field(description="Nats between the sides that were asked for", examples=[0.13])
    converged: bool = Field(description="Whether `log_z.std_error` is within the tolerance")
    num_held_out: int = Field(
        description="Held-out items that were scored; 0 when the model's data are not known", examples=[897]
    )
    held_out_log_density: float | None = Field(
        description="Their mean log density, discrete data dequantized", examples=[17.67]
    )
    held_out_bits_per_dim: float | None = Field(
        description="null for continuous data, and when none were scored", examples=[2.6]
    )
    bin_width: float | None = Field(
        description="Spacing of the values of discrete data; null for continuous ones", examples=[0.125]
    )
    blur_std: float = Field(
        description="The density is that of the data plus Gaussian noise of this std, scaled units", examples=[0.02]
    )
    train_quantiles: list[QuantileBody] = Field(description="Of the training data's log densities")
    created_at: datetime


class CheckpointBody(BaseModel):
    """A committed checkpoint."""

    step: int = Field(examples=[4400])
    size_bytes: int = Field(examples=[812_345])
    committed_at: datetime
    calibration: CalibrationBody | None = Field(description="null until POST /jobs/calibrate, or a training, made one")


class ModelBody(BaseModel):
    """A model: what it was trained on and how, and what there is of it."""

    id: str = Field(examples=[MODEL_ID])
    name: str | None = Field(examples=["my first model"])
    tags: list[str] = Field([], description="For people", examples=[["for the paper"]])
    dataset: str | None = Field(examples=["digits"])
    job_id: str | None = Field(description="The job that trained it; null when it was imported", examples=[JOB_ID])
    origin: str | None = Field(
        description="Where an imported model comes from, in words; null when it was trained here", examples=[None]
    )
    created_at: datetime | None
    config: Annotated[dict[str, Any], SchemaOf(TrainConfig)] | None = Field(examples=[SOME_CONFIG])
    checkpoints: list[CheckpointBody] = Field(description="In order of their step; /sample uses the last by default")


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
