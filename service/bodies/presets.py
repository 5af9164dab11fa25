"""Bodies of answers about configurations that have a name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from model.config import TrainConfig
from service.bodies.fields import SOME_CONFIG, SchemaOf


class PresetBody(BaseModel):
    """A configuration by name."""

    name: str = Field(description="Give it as `preset` to POST /jobs/train", examples=["digits"])
    summary: str
    config: Annotated[dict[str, Any], SchemaOf(TrainConfig)] = Field(
        description="The whole configuration", examples=[SOME_CONFIG]
    )


class PresetListBody(BaseModel):
    """All configurations that have a name."""

    presets: list[PresetBody]
