"""What the bodies of requests share, and bodies made of the fields of a configuration.

A field that a configuration has is described there (`model.config`): its type, range, default and meaning. A request
that takes it takes that description.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from model.config import Seed, TrainConfig, to_dict
from model.fields import Config, types_of
from model.presets import PRESETS
from worker.ids import ULID_PATTERN

JOB_ID = "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"
MODEL_ID = "01JD3Z6M3QMDE0N5K7C2B8F4GH"
_SOME_CHAIN = replace(PRESETS["digits"].chain, target_acceptance=0.7)
SOME_CONFIG: dict[str, Any] = json.loads(
    json.dumps(to_dict(replace(PRESETS["digits"], chain=_SOME_CHAIN, microbatch_size=64, image_size=(8, 8))))
)
"""An example in which nothing is null: FastAPI leaves nulls out of the document."""
_RANDOM_SEEDS = 2**32
"""random seeds stay small enough to be typed again"""

ModelAt = Annotated[
    str,
    Field(
        max_length=64,
        examples=[MODEL_ID, f"{MODEL_ID}@2000"],
        # In the document only: what does not fit it is a model that does not exist, 404.
        json_schema_extra={"pattern": ULID_PATTERN.removesuffix("$") + "(@[0-9]{1,9})?$"},
    ),
]
Name = Annotated[str | None, Field(min_length=1, max_length=100, description="For people")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Field(description="`auto` takes a GPU when the trainer has one", examples=["auto"])
]
DrawnSeed = Annotated[
    Seed | None,
    Field(description="Drawn at random when absent; X-Seed, or the job's manifest, says which", examples=[0]),
]
ChainSteps = Annotated[
    int | None,
    Field(ge=0, le=1000, description="K, chain steps per level; the model's own when absent", examples=[10]),
]
NoiseScale = Annotated[
    float | None,
    Field(ge=0, le=2, description="Multiplies the chain's noise; the model's own when absent", examples=[1.0]),
]


class RequestBody(BaseModel):
    """A body that refuses unknown fields, and text in place of numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SchemaOf:
    """Beside the type of a field: the document describes another type there, and the value stays as it is.

    A stored configuration is answered as it was stored, whatever version wrote it.
    """

    def __init__(self, *kinds: Any) -> None:
        self._kinds = kinds

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Within a list, where pydantic refers to a component; alone it would write all of it here.
        lists: list[Any] = [list.__class_getitem__(kind) for kind in self._kinds]
        schemas = [handler(TypeAdapter(kinds).core_schema)["items"] for kinds in lists]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def meanings(config: type[Config]) -> dict[str, str]:
    """What each field of a configuration means, in words."""
    described = TypeAdapter(config).json_schema()["properties"]
    return {name: " ".join(found.get("description", "").split()) for name, found in described.items()}


def fields_of(config: type[Config], base: type[BaseModel], **examples: Any) -> Any:
    """A body with the fields of `base` and then those of a configuration, with its defaults."""
    defaults, told = config(), meanings(config)
    fields: dict[str, Any] = {}
    for name, hint in types_of(config).items():
        meaning = told[name].removesuffix(".")
        fields[name] = (hint, Field(getattr(defaults, name), description=meaning, examples=examples.get(name)))
    return create_model(base.__name__, __base__=base, **fields)


def overrides_of(config: type[Config], base: type[BaseModel], **changes: Any) -> Any:
    """A body with the fields of `base` and then some of a configuration, each of which may be absent.

    Types and ranges are the configuration's; a field of `changes` says what it means to change it.
    """
    types = types_of(config)
    fields: dict[str, Any] = {name: (types[name] | None, change) for name, change in changes.items()}
    return create_model(base.__name__, __base__=base, **fields)


def partial_of(config: type[Config]) -> type[BaseModel]:
    """A configuration of which any part may be absent, for the document: what is absent has no value of its own."""
    defaults, told = config(), meanings(config)

    def absent(schema: dict[str, Any]) -> None:
        schema.pop("default", None)

    fields: dict[str, Any] = {}
    for name, hint in types_of(config).items():
        if isinstance(hint, type) and issubclass(hint, Config):
            hint, meaning = partial_of(hint), told[name]
        else:
            meaning = f"{told[name]} Without a preset {TypeAdapter(hint).dump_json(getattr(defaults, name)).decode()}."
        fields[name] = (hint, Field(None, description=meaning or None, json_schema_extra=absent))
    made: type[BaseModel] = create_model(
        f"Partial{config.__name__}", __config__=ConfigDict(extra="forbid"), __doc__=config.__doc__, **fields
    )
    return made


PartialTrainConfig = partial_of(TrainConfig)


def random_seed() -> int:
    """A seed for a request that came without."""
    return secrets.randbelow(_RANDOM_SEEDS)
