"""The bodies of the requests that samplers answer, for samples and for densities, and of the answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.config import ChainStart, KernelKind, Precision, Seed
from model.densities.verdict import Verdict
from service.bodies.fields import (
    MODEL_ID,
    Adjusted,
    AskedQuality,
    ChainSteps,
    CompositionBody,
    DrawnSeed,
    Guidance,
    Labels,
    ModelAt,
    NoiseScale,
    RequestBody,
)
from service.bodies.models import USED_QUALITY, VERDICT, LogZBody, UsedQuality
from service.settings import MAX_IMAGES, MAX_ITEM_PATHS, MAX_ITEMS, MAX_LEVELS, MAX_SCALE


class SampleRequestBody(RequestBody):
    """A request for samples of a model. Sample i of a seed is the same whatever `num_images` is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": MODEL_ID, "num_images": 64, "seed": 0, "scale": 4},
                {"model": f"{MODEL_ID}@2000", "num_images": 4, "levels": [15, 10, 5], "scale": 8},
            ]
        }
    )

    model: ModelAt = Field(
        description="Id of a model, or `id@step` for one of its earlier checkpoints; GET /models lists them",
    )
    num_images: int = Field(1, ge=1, le=MAX_IMAGES, description=f"Number of samples, 1…{MAX_IMAGES}", examples=[64])
    seed: DrawnSeed = None
    quality: AskedQuality = None
    steps: ChainSteps = None
    noise_scale: NoiseScale = None
    labels: Labels = None
    guidance: Guidance = None
    adjusted: Adjusted = None
    levels: list[Annotated[int, Field(ge=0, lt=1000)]] = Field(
        default_factory=list,
        max_length=MAX_LEVELS,
        description="Noise levels whose intermediate samples are answered too; the answer has the noisiest first",
        examples=[[15, 10, 5]],
    )
    precision: Precision = Field(
        "float32", description="Precision of the network's arithmetic; bfloat16 is faster on some hardware, not exact"
    )
    scale: int = Field(1, ge=1, le=MAX_SCALE, description="Magnification of PNGs, pixels per pixel", examples=[4])


class SampleLevelBody(BaseModel):
    """The intermediate samples at one noise level."""

    level: int
    images: list[str] | None = Field(None, description="Samples of an image model, as base64 PNGs")
    values: list[Any] | None = Field(None, description="Samples of a vector model, as numbers")


class SampleBody(BaseModel):
    """The samples of a request, as JSON."""

    model: str = Field(description="The checkpoint that was sampled, as `id@step`", examples=[f"{MODEL_ID}@4400"])
    seed: int = Field(examples=[0])
    shape: list[int] = Field(
        description="Shape of all samples together: (N, C, H, W) or (N, D)", examples=[[1, 1, 8, 8]]
    )
    gradient_evaluations: int = Field(description="Gradient evaluations per sample", examples=[14])
    quality: UsedQuality = USED_QUALITY
    start: ChainStart | None = Field(
        None, description="Where the chains started, by the quality; null for the model's own", examples=["multistep"]
    )
    steps: int | None = Field(None, description="K as asked; null for the model's own", examples=[0])
    labels: list[str | CompositionBody | None] | None = Field(
        None, description="What was asked of each sample's label; null for a model without classes", examples=[["3"]]
    )
    guidance: float | None = Field(None, description="Of the labels; null for a model without classes", examples=[0.5])
    kernel: KernelKind | None = Field(None, description="By which the chains moved", examples=["mala"])
    note: str | None = Field(
        None, description="Why the chains moved otherwise than the model's own do, in words", examples=[None]
    )
    images: list[str] | None = Field(
        None, description="Samples of an image model, as base64 PNGs", examples=[["iVBORw0KGgo…"]]
    )
    values: list[Any] | None = Field(None, description="Samples of a vector model, as numbers", examples=[None])
    levels: list[SampleLevelBody] = Field(default_factory=list, examples=[[]])


Items = Annotated[
    list[Any],
    Field(
        description=f"Up to {MAX_ITEMS} items as nested lists of shape (N, D), in the data's units, or (N, C, H, W), "
        "images in [−1, 1]",
        examples=[[[0.5, -1.2], [0.1, 2.0]]],
    ),
]


class LogDensityOptions(BaseModel):
    """The fields of a request for densities beside its items; they come as fields of a form, or in JSON."""

    model_config = ConfigDict(extra="forbid")

    model: ModelAt = Field(description="Id of a model, or `id@step`")
    path: bool = Field(
        False,
        description="Whether to make the second, independent estimate along the diffusion path too, which takes longer",
    )
    num_paths: int = Field(
        4,
        ge=1,
        le=64,
        description=f"Number of paths that `path` averages; items times paths are at most {MAX_ITEM_PATHS}",
        examples=[4],
    )
    seed: Seed | None = Field(
        None, description="Seed of the paths; drawn at random when absent, and always in the answer"
    )


class LogDensityRequestBody(LogDensityOptions):
    """A request, as JSON, for the densities of some items."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [{"model": MODEL_ID, "x": [[0.5, -1.2], [0.1, 2.0]]}]}
    )

    x: Items


class ItemDensityBody(BaseModel):
    """The density of one item; items have the order of the request."""

    log_density: float | None = Field(
        description="Log density of the item as it was sent, not dequantized, in nats; null where the energy overflows",
        examples=[61.03],
    )
    bits_per_dim: float | None = Field(
        None, description="The same in bits per dimension; null for continuous data", examples=[2.6]
    )
    energy: float | None = Field(description="Energy at the cleanest noise level, in nats", examples=[57.2])
    path_log_density: float | None = Field(
        None, description="With `path`: log density, importance-weighted over the paths; an estimate, not a bound"
    )
    path_spread: float | None = Field(
        None,
        description="With `path`: standard deviation of single paths, which shows how far the noise levels disagree",
    )


class LogDensityBody(BaseModel):
    """The densities of the items of a request, as JSON."""

    model: str = Field(description="The checkpoint that scored the items, as `id@step`", examples=[f"{MODEL_ID}@4900"])
    level: Literal[0] = Field(description="The noise level whose energy is answered, the cleanest")
    blur_std: float = Field(
        description="The density is that of the data plus Gaussian noise of this std, in scaled units", examples=[0.02]
    )
    log_z: LogZBody
    std_error: float | None = Field(
        description="Error of every log_density in nats, that of log_z: one and the same shift for all items; null "
        "where it is not known",
        examples=[0.09],
    )
    converged: bool = Field(description="Whether log_z is known within the calibration's tolerance")
    verdict: Verdict = VERDICT
    explanation: str = Field(
        description="The verdict in words, and what to do", examples=["log Z is known to within the tolerance."]
    )
    seed: int | None = Field(None, description="With `path`: the seed that was used")
    num_paths: int | None = Field(None, description="With `path`: the number of paths that were averaged")
    items: list[ItemDensityBody]


class ClassifyOptions(BaseModel):
    """The fields of a request for classes beside its items; they come as fields of a form, or in JSON."""

    model_config = ConfigDict(extra="forbid")

    model: ModelAt = Field(description="Id of a conditional model, or `id@step`")
    noise_std: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Standard deviation of the Gaussian noise that the items are known to hold, in scaled units (image "
        "values, or each coordinate's own standard deviation); the noise level that comes nearest is asked",
        examples=[0.0],
    )


class ClassifyRequestBody(ClassifyOptions):
    """A request, as JSON, for the classes of some items."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [{"model": MODEL_ID, "x": [[0.5, -1.2], [0.1, 2.0]]}]}
    )

    x: Items


class ItemClassBody(BaseModel):
    """The class of one item; items have the order of the request."""

    label: str = Field(description="The most probable class", examples=["3"])
    probability: float | None = Field(description="Of that class; null where the energy overflows", examples=[0.97])
    probabilities: list[float | None] = Field(
        description="p(class | item) of all classes, in the order of `classes`", examples=[[0.01, 0.97, 0.02]]
    )
    energy: float | None = Field(description="Energy whatever the class, in nats", examples=[-31.2])
    less_likely: float | None = Field(
        None,
        description="The share of held-out data whose energy is higher; null where it is not known",
        examples=[0.4],
    )
    none_of_these: bool | None = Field(
        None,
        description="Whether the item is less likely than nearly all held-out data, and so like none of the classes, "
        "whatever their probabilities say; null where it is not known",
        examples=[False],
    )


class ClassificationBody(BaseModel):
    """The classes of the items of a request, as JSON."""

    model: str = Field(description="The checkpoint that classified, as `id@step`", examples=[f"{MODEL_ID}@4900"])
    classes: list[str] = Field(examples=[["2", "3", "5"]])
    noise_std: float = Field(examples=[0.0])
    explanation: str = Field(
        description="What `none_of_these` judges by, or why it is not known", examples=["Judged by held-out data."]
    )
    items: list[ItemClassBody]
