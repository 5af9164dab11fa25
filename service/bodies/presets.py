"""The bodies of the answers about presets, which are configurations with a name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from model.config import TrainConfig
from service.bodies.fields import SOME_CONFIG, SchemaOf


class PresetBody(BaseModel):
    """A preset: a configuration with a name."""

    name: str = Field(description="The name that POST /jobs/train takes as `preset`", examples=["digits"])
    summary: str
    of_paper: bool = Field(default=False, description="Whether it is one of the paper's experiments", examples=[False])
    config: Annotated[dict[str, Any], SchemaOf(TrainConfig)] = Field(
        description="The whole configuration", examples=[SOME_CONFIG]
    )


class PresetListBody(BaseModel):
    """All presets."""

    presets: list[PresetBody]
