"""Bodies of the requests that samplers answer, and of their answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.config import Precision, Seed
from service.bodies.fields import MODEL_ID, ChainSteps, DrawnSeed, ModelAt, NoiseScale, RequestBody
from service.bodies.models import LogZBody
from service.settings import MAX_IMAGES, MAX_ITEM_PATHS, MAX_ITEMS, MAX_LEVELS, MAX_SCALE


class SampleRequestBody(RequestBody):
    """Samples of a model. Sample i of a seed is the same whatever `num_images` is."""

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
    num_images: int = Field(1, ge=1, le=MAX_IMAGES, description=f"1…{MAX_IMAGES} samples", examples=[64])
    seed: DrawnSeed = None
    steps: ChainSteps = None
    noise_scale: NoiseScale = None
    levels: list[Annotated[int, Field(ge=0, lt=1000)]] = Field(
        default_factory=list,
        max_length=MAX_LEVELS,
        description="Noise levels whose intermediate samples are returned too, noisiest first in the answer",
        examples=[[15, 10, 5]],
    )
    precision: Precision = Field(
        "float32", description="Of the network's arithmetic; bfloat16 is faster on some hardware and not exact"
    )
    scale: int = Field(1, ge=1, le=MAX_SCALE, description="Magnification of PNGs: pixels per pixel", examples=[4])


class SampleLevelBody(BaseModel):
    """Intermediate samples at one level."""

    level: int
    images: list[str] | None = Field(None, description="Base64 PNGs, of image models")
    values: list[Any] | None = Field(None, description="Numbers, of vector models")


class SampleBody(BaseModel):
    """Samples as JSON."""

    model: str = Field(description="`id@step`", examples=[f"{MODEL_ID}@4400"])
    seed: int = Field(examples=[0])
    shape: list[int] = Field(description="Of all samples together: (N, C, H, W) or (N, D)", examples=[[1, 1, 8, 8]])
    gradient_evaluations: int = Field(description="Per sample", examples=[200])
    images: list[str] | None = Field(None, description="Base64 PNGs, of image models", examples=[["iVBORw0KGgo…"]])
    values: list[Any] | None = Field(None, description="Numbers, of vector models", examples=[None])
    levels: list[SampleLevelBody] = Field(default_factory=list, examples=[[]])


class LogDensityOptions(BaseModel):
    """What a request for densities says beside its items; as fields of a form, or in JSON."""

    model_config = ConfigDict(extra="forbid")

    model: ModelAt = Field(description="Id of a model, or `id@step`")
    path: bool = Field(False, description="Also the second, independent estimate along the diffusion path; slower")
    num_paths: int = Field(
        4, ge=1, le=64, description=f"Paths it averages; items times paths are at most {MAX_ITEM_PATHS}", examples=[4]
    )
    seed: Seed | None = Field(None, description="Of the paths; drawn at random when absent, always in the answer")


class LogDensityRequestBody(LogDensityOptions):
    """Items to score."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [{"model": MODEL_ID, "x": [[0.5, -1.2], [0.1, 2.0]]}]}
    )

    x: list[Any] = Field(
        description=f"Up to {MAX_ITEMS} items as nested lists of shape (N, D), in the data's units, or (N, C, H, W), "
        "images in [−1, 1]",
        examples=[[[0.5, -1.2], [0.1, 2.0]]],
    )


class ItemDensityBody(BaseModel):
    """One item, in the order of the request."""

    log_density: float | None = Field(
        description="Nats, null where the energy overflows, of the item as given: nothing is dequantized",
        examples=[61.03],
    )
    bits_per_dim: float | None = Field(None, description="null for continuous data", examples=[2.6])
    energy: float | None = Field(description="Of the cleanest noise level, nats", examples=[57.2])
    path_log_density: float | None = Field(
        None, description="With `path`: importance-weighted over the paths; an estimate, not a bound"
    )
    path_spread: float | None = Field(
        None, description="With `path`: standard deviation of single paths, how far the noise levels disagree"
    )


class LogDensityBody(BaseModel):
    """Densities as JSON."""

    model: str = Field(description="`id@step`", examples=[f"{MODEL_ID}@4900"])
    level: Literal[0] = Field(description="The noise level whose energy this is: the cleanest")
    blur_std: float = Field(
        description="The density is that of the data plus Gaussian noise of this std, scaled units", examples=[0.02]
    )
    log_z: LogZBody
    std_error: float = Field(
        description="Of every log_density, nats, one and the same shift: that of log_z", examples=[0.09]
    )
    converged: bool = Field(
        description="Whether std_error is within the calibration's tolerance; if not, more bridges or chains may help"
    )
    seed: int | None = Field(None, description="With `path`: the one that was used")
    num_paths: int | None = Field(None, description="With `path`")
    items: list[ItemDensityBody]
