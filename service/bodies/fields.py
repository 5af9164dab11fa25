"""Fields that several request bodies share, and functions that make a body of the fields of a configuration.

A field of a configuration is described once, in `model.config`, with its type, range, default and meaning. A request
that takes the field takes over that description.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from model.composition import MAX_GUIDANCE
from model.config import Seed, TrainConfig, to_dict
from model.fields import Config, types_of
from model.frontier import Quality
from model.intake.labels import MAX_CLASSES
from model.presets import PRESETS
from worker.ids import ULID_PATTERN

JOB_ID = "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"
MODEL_ID = "01JD3Z6M3QMDE0N5K7C2B8F4GH"
SOME_CONFIG: dict[str, Any] = json.loads(
    json.dumps(
        to_dict(
            replace(
                PRESETS["digits"],
                microbatch_size=64,
                image_size=(8, 8),
                label_column="kind",
                sampling=replace(PRESETS["digits"].sampling, adjusted=True),
            )
        )
    )
)
"""An example in which no field is null, because FastAPI leaves nulls out of the document."""
_RANDOM_SEEDS = 2**32
"""Random seeds lie below this number, so that a person can type them again."""

ModelAt = Annotated[
    str,
    Field(
        max_length=64,
        examples=[MODEL_ID, f"{MODEL_ID}@2000"],
        # The pattern is in the document only: text that does not fit it names a model that does not exist, a 404.
        json_schema_extra={"pattern": ULID_PATTERN.removesuffix("$") + "(@[0-9]{1,9})?$"},
    ),
]
Name = Annotated[str | None, Field(min_length=1, max_length=100, description="A name for people")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    Field(description="Where to compute; `auto` takes a GPU when the trainer has one", examples=["auto"]),
]
DrawnSeed = Annotated[
    Seed | None,
    Field(
        description="Seed of the samples, drawn at random when absent; the header X-Seed or the job's manifest says "
        "which it was",
        examples=[0],
    ),
]
ChainSteps = Annotated[
    int | None,
    Field(
        ge=0,
        le=1000,
        description="K, the chain steps per noise level, from the model's own start; `quality` decides when absent",
        examples=[10],
    ),
]
AskedQuality = Annotated[
    Quality | None,
    Field(
        description="How good samples are to be for what they cost, by the measured settings of the checkpoint: "
        "`draft` is the cheapest, `best` the nearest to the data, and `standard`, the default, as near to them within "
        "the noise for fewer evaluations. A checkpoint that was not tuned has its model's own settings; the answer "
        "says which were used. Not together with `steps`",
        examples=["standard"],
    ),
]
NoiseScale = Annotated[
    float | None,
    Field(ge=0, le=2, description="Factor on the chain's noise; the model's own when absent", examples=[1.0]),
]

Guidance = Annotated[
    float | None,
    Field(
        ge=0,
        le=MAX_GUIDANCE,
        description="The weight w ≥ 0 with which labels are exaggerated: density ∝ p(x) p(label | x)^(1 + w); 0, a "
        "class as it is, when absent. Only for conditional models",
        examples=[0.5],
    ),
]
Adjusted = Annotated[
    bool | None,
    Field(
        description="Whether a Metropolis test accepts or rejects each step of the chains; when absent, as the model's "
        "own chains do, and true if labels are multiplied (`all_of`), which unadjusted chains do not draw from",
    ),
]


class RequestBody(BaseModel):
    """The base of request bodies: it refuses unknown fields, and text where a number is expected."""

    model_config = ConfigDict(extra="forbid", strict=True)


Label = Annotated[
    str | int,
    Field(
        description="The name of a class of the model, or its index unless all classes are named by numbers",
        examples=["3"],
        union_mode="smart",
    ),
]


class WeightedLabelBody(RequestBody):
    """A factor of a product of labels: p(label | x) to the power of the weight."""

    label: Label
    weight: float = Field(1.0, ge=-MAX_GUIDANCE, le=MAX_GUIDANCE, description="Negative to lead away from the label")


class CompositionBody(RequestBody):
    """Several labels asked of a sample. With both fields, the sample is to be of any of the ones and all of the others.

    The density is ∝ p(x) Σ p(label | x) over `any_of`, a mixture, times Π p(label | x)^weight over `all_of`.
    """

    any_of: list[Label] = Field(
        [], max_length=MAX_CLASSES, description="The sample is of one of these classes, as often as each has samples"
    )
    all_of: list[WeightedLabelBody | Label] = Field(
        [],
        max_length=MAX_CLASSES,
        description="The sample is of all of these classes at once, or with a negative weight not of one; a label "
        "alone has the weight 1",
        examples=[[{"label": "8", "weight": 1.0}, {"label": "0", "weight": -1.0}]],
    )


Labels = Annotated[
    list[Label | CompositionBody | None] | None,
    Field(
        min_length=1,
        max_length=MAX_CLASSES,
        description="What the samples of a conditional model are to be of; they take these in turn, so that one serves "
        "all. Each is the name or index of a class, `any_of` or `all_of` several, or null for any class. When absent, "
        "every class in turn; GET /models/{id} lists the classes",
        examples=[["3", {"any_of": ["3", "5"]}]],
    ),
]


class SchemaOf:
    """An annotation that has the OpenAPI document describe a field by other types and leaves the value as it is.

    It lets a stored configuration be answered as it was stored, whatever version of the program wrote it.
    """

    def __init__(self, *kinds: Any) -> None:
        self._kinds = kinds

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Within a list pydantic refers to a component; the type alone it would write out in full here.
        lists: list[Any] = [list.__class_getitem__(kind) for kind in self._kinds]
        schemas = [handler(TypeAdapter(kinds).core_schema)["items"] for kinds in lists]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def meanings(config: type[Config]) -> dict[str, str]:
    """Return the meaning of each field of a configuration, in words, by the field's name."""
    described = TypeAdapter(config).json_schema()["properties"]
    return {name: " ".join(found.get("description", "").split()) for name, found in described.items()}


def fields_of(config: type[Config], base: type[BaseModel], **examples: Any) -> Any:
    """Make a body that has the fields of `base`, then those of a configuration with the configuration's defaults."""
    defaults, told = config(), meanings(config)
    fields: dict[str, Any] = {}
    for name, hint in types_of(config).items():
        meaning = told[name].removesuffix(".")
        fields[name] = (hint, Field(getattr(defaults, name), description=meaning, examples=examples.get(name)))
    return create_model(base.__name__, __base__=base, **fields)


def overrides_of(config: type[Config], base: type[BaseModel], **changes: Any) -> Any:
    """Make a body that has the fields of `base`, then some fields of a configuration, each of which may be absent.

    `changes` names those fields, and says of each what it means to change it. Types and ranges are the configuration's.
    """
    types = types_of(config)
    fields: dict[str, Any] = {name: (types[name] | None, change) for name, change in changes.items()}
    return create_model(base.__name__, __base__=base, **fields)


def partial_of(config: type[Config]) -> type[BaseModel]:
    """Make a body, for the OpenAPI document, that is a configuration of which any part may be absent.

    Its fields have no defaults, because a field that is absent takes the preset's value.
    """
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
    """Draw a seed for a request that names none."""
    return secrets.randbelow(_RANDOM_SEEDS)
