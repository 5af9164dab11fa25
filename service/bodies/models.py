"""The bodies of the answers about models: their checkpoints, and log Z where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator, model_validator

from model.config import ChainStart, TrainConfig
from model.densities.verdict import EXPLANATIONS, Verdict
from model.frontier import Quality
from service.bodies.fields import JOB_ID, MODEL_ID, SOME_CONFIG, Name, RequestBody, SchemaOf

VERDICT: Any = Field(
    description="What the sides of log Z tell: `converged` (known within the tolerance), `sides_apart` (its error is "
    "larger), `not_known` (the weights do not tell an error), `data_elsewhere` (chains that start from data find "
    "another log Z)",
    examples=["converged"],
)


class LogZBody(BaseModel):
    """log Z, the log of the normalizer, estimated from both sides, in nats.

    `std_error` is also the error of every log density, the same shift for all items.
    """

    estimate: float = Field(description="The middle between `lower` and `upper`", examples=[-118.24])
    std_error: float | None = Field(
        description="Half the gap between the sides and the standard errors of both, added in quadrature; null where "
        "the chains' weights do not tell it",
        examples=[0.09],
    )
    interval: tuple[float, float] | None = Field(
        None,
        description="The two sides, each with two of its standard errors further out; null where these are not known",
        examples=[[-118.39, -118.07]],
    )
    lower: float = Field(description="Stochastic lower bound, by sequential Monte Carlo", examples=[-118.31])
    upper: float = Field(description="Stochastic upper bound, by the same walk backwards", examples=[-118.17])
    lower_std_error: float | None = Field(description="null where it is not known", examples=[0.04])
    upper_std_error: float | None = Field(description="null where it is not known", examples=[0.05])
    data_upper: float | None = Field(
        None,
        description="The upper side of a walk that started from held-out data; null if none did",
        examples=[-118.2],
    )
    data_upper_std_error: float | None = Field(None, examples=[0.07])
    data_drift: float | None = Field(
        None,
        description="By how much the mean energy of chains that start from held-out data changes while they move, in "
        "nats a dimension; near 0 if the data are like the model's own samples",
        examples=[-0.01],
    )
    lower_effective_sample_size: float = Field(examples=[410.2])
    upper_effective_sample_size: float = Field(examples=[388.7])
    upper_start: Literal["exact", "chain"] = Field(
        description="Where the backward walk started: at `exact` samples, or at the ends of `chain`s, which make it as "
        "good as those chains"
    )
    acceptance_rate: float = Field(examples=[0.74])
    num_chains: int = Field(examples=[512])
    num_bridges: int = Field(description="Number of temperatures between neighbouring noise levels", examples=[8])


UsedQuality = Quality | Literal["own"]
USED_QUALITY: Any = Field(
    "own",
    description="The quality whose settings were used; `own` stands for the model's own settings, where the checkpoint "
    "is not tuned, beside `steps` or `adjusted`, and for products of labels",
    examples=["standard"],
)


class SettingBody(BaseModel):
    """A setting of the sampler."""

    start: ChainStart = Field(description="Where the chain of each level starts", examples=["multistep"])
    num_steps: int = Field(description="K, the chain steps per noise level", examples=[0])


class PointBody(SettingBody):
    """A setting, measured: what a sample costs, and how near samples come to held-out data."""

    evaluations: int = Field(description="Gradient evaluations that a sample takes", examples=[14])
    frechet: float = Field(description="Fréchet distance of samples to held-out data; 0 is perfect", examples=[0.47])
    frechet_error: float = Field(description="Its standard error", examples=[0.02])
    one_nn: float = Field(
        description="Accuracy of the nearest neighbour at telling samples from held-out data; 0.5 is perfect",
        examples=[0.63],
    )
    one_nn_error: float = Field(description="Its standard error", examples=[0.01])


class FrontierBody(BaseModel):
    """What samples of a checkpoint cost and how good they are, and the settings that were chosen by it."""

    points: list[PointBody] = Field(description="The settings that were measured, by their evaluations")
    draft: SettingBody = Field(description="The fewest evaluations within one and a half of the best distance")
    standard: SettingBody = Field(description="The fewest evaluations that the noise does not tell from the best")
    best: SettingBody = Field(description="The smallest Fréchet distance")
    features: Literal["data", "pca"] = Field(
        description="What was compared: the data as the network sees them, or, where they have too many values for the "
        "number of items, their largest principal components"
    )
    num_features: int = Field(examples=[64])
    num_samples: int = Field(description="Samples of each setting", examples=[1000])
    num_held_out: int = Field(description="Held-out items that they were compared with", examples=[897])
    seed: int = Field(examples=[0])
    created_at: datetime


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
    converged: bool = Field(description="Whether log Z is known within the tolerance: the verdict `converged`")
    verdict: Verdict = VERDICT

    @model_validator(mode="before")
    @classmethod
    def _stored_before_verdicts(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "verdict" not in values:
            return {**values, "verdict": "converged" if values.get("converged") else "sides_apart"}
        return values

    @computed_field(description="The verdict in words, and what to do", examples=[EXPLANATIONS["converged"]])  # type: ignore[prop-decorator]
    @property
    def explanation(self) -> str:
        return EXPLANATIONS[self.verdict]

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
    frontier: FrontierBody | None = Field(
        None,
        description="What samples cost and how good they are, as POST /jobs/tune, or the training itself, measured; "
        "null until then",
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
    event_shape: list[int] | None = Field(
        None,
        description="Shape of one item: (C, H, W) or (D); null for models that an earlier version stored",
        examples=[[1, 8, 8]],
    )
    classes: list[str] = Field(
        [],
        description="The names of a conditional model's classes, of which POST /sample draws and POST /classify tells; "
        "empty for other models",
        examples=[[]],
    )
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
