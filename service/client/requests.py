"""What is sent for each call of the service, and how its answer is read."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypedDict, TypeVar

import httpx2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ValidationError

from service.bodies.sampling import ClassificationBody, LogDensityBody
from service.client.call import Call, ClientError, Json, Send, answered, given, quoted
from service.client.folder_zip import zipped
from service.client.options import ClassifyOptions, DensityOptions, SampleOptions
from service.client.samples import Samples

_UPLOAD_TIMEOUT = httpx2.Timeout(10.0, read=1800.0, write=180.0)
"""an upload answers when all of it was decoded"""
_PAGE = 200
B = TypeVar("B", bound=BaseModel)

Scorable: TypeAlias = npt.ArrayLike | Samples | Image.Image | Path | Sequence[Image.Image] | Sequence[Path | str]
"""What POST /log-density takes: numbers (N, *event), pictures, or files: images, or one .npy."""


class Answer:
    """An answer whose fields can also be read by their JSON names, as in a dictionary."""

    def __getitem__(self: Any, name: str) -> Any:
        return self.model_dump(mode="json")[name]

    def keys(self: Any) -> list[str]:
        """The names of the fields."""
        return list(type(self).model_fields)


class ModelChanges(TypedDict, total=False):
    """Fields of PATCH /models/{id}; those that are left out stay as they are."""

    name: str | None
    """For people; None takes the name away."""
    tags: list[str]
    """In place of all that the model has."""


class Densities(Answer, LogDensityBody):
    """Log densities of items in nats, with what is known of their error."""

    @property
    def log_density(self) -> npt.NDArray[np.float64]:
        """The log densities (N,) in nats, NaN where the energy overflows."""
        return np.array([np.nan if item.log_density is None else item.log_density for item in self.items])


class Classes(Answer, ClassificationBody):
    """The classes of items, and whether the items are like any of them."""

    @property
    def labels(self) -> list[str]:
        """The most probable class of each item (N,)."""
        return [item.label for item in self.items]

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """p(class | item) (N, K), in the order of `classes`, NaN where the energy overflows."""
        return np.array([[np.nan if one is None else one for one in item.probabilities] for item in self.items])


def parsed(kind: type[B], body: Json) -> B:
    """A body as what it is. What an older service does not say yet is None. Raises ClientError where that cannot be."""
    absent = dict.fromkeys(name for name, field in kind.model_fields.items() if field.is_required())
    try:
        return kind.model_validate({**absent, **body})
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
        raise ClientError(
            f"the service answered what this client does not understand ({fields}); "
            "are they of one version? `recovery doctor` compares them"
        ) from None


def read(path: str, **query: Any) -> Call[Json]:
    """The JSON that GET answers."""
    reply = yield from answered(Send("GET", path, {"params": query} if query else {}, repeatable=True))
    found: Json = reply.json()
    return found


def read_bytes(path: str) -> Call[bytes]:
    """The file that GET answers."""
    reply = yield from answered(Send("GET", path, repeatable=True))
    content: bytes = reply.content
    return content


def create_job(kind: str, body: Json, idempotency_key: str | None) -> Call[Json]:
    """A new job of a kind. The idempotency key makes it safe to ask again when the answer got lost."""
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    reply = yield from answered(
        Send("POST", f"/jobs/{quoted(kind)}", {"json": body, "headers": headers}, repeatable=True)
    )
    made: Json = reply.json()
    return made


def act(path: str, body: Json | None = None, *, repeatable: bool) -> Call[Json]:
    """The JSON that POST answers."""
    reply = yield from answered(Send("POST", path, {"json": body}, repeatable=repeatable))
    found: Json = reply.json()
    return found


def change(path: str, changes: Json) -> Call[Json]:
    """The JSON that PATCH answers."""
    found: Json = (yield from answered(Send("PATCH", path, {"json": changes}))).json()
    return found


def all_jobs(status: str | None) -> Call[list[Json]]:
    """All jobs, from every page of GET /jobs."""
    found: list[Json] = []
    query: Json = given(limit=_PAGE, status=status)
    while True:
        page = yield from read("/jobs", **query)
        found += page["jobs"]
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


def draw(model: str, num_images: int, levels: Iterable[int], options: SampleOptions) -> Call[Samples]:
    """Samples, as numbers."""
    body = given(model=model, num_images=num_images, levels=list(levels) or None, **options)
    # Asking twice costs only work: a seed gives the same samples every time.
    request = Send("POST", "/sample", {"json": body, "headers": {"Accept": "application/x-npy"}}, repeatable=True)
    reply = yield from answered(request)
    x = np.load(io.BytesIO(reply.content), allow_pickle=False)
    with_levels = "levels" in body
    return Samples(
        x=x[-1] if with_levels else x,
        levels=x[:-1] if with_levels else None,
        seed=int(reply.headers["X-Seed"]),
        model=reply.headers["X-Model"],
        gradient_evaluations=int(reply.headers["X-NFE"]),
        quality=reply.headers.get("X-Quality", "own"),
        labels=json.loads(reply.headers.get("X-Labels", "[]")),
        guidance=float(reply.headers["X-Guidance"]) if "X-Guidance" in reply.headers else None,
        kernel=reply.headers.get("X-Kernel"),
    )


def draw_png(model: str, num_images: int, levels: Iterable[int], scale: int, options: SampleOptions) -> Call[bytes]:
    """Samples, as one picture."""
    body = given(model=model, num_images=num_images, levels=list(levels) or None, scale=scale, **options)
    request = Send("POST", "/sample", {"json": body, "headers": {"Accept": "image/png"}}, repeatable=True)
    reply = yield from answered(request)
    content: bytes = reply.content
    return content


def score(model: str, x: Scorable, options: DensityOptions) -> Call[Densities]:
    """The log densities of items. Raises OSError for a file that cannot be read."""
    return parsed(Densities, (yield from _post_items("/log-density", model, x, given(**options))))


def classify(model: str, x: Scorable, options: ClassifyOptions) -> Call[Classes]:
    """The classes of items. Raises OSError for a file that cannot be read."""
    return parsed(Classes, (yield from _post_items("/classify", model, x, given(**options))))


def _post_items(path: str, model: str, x: Scorable, options: Json) -> Call[Json]:
    fields = {name: str(value).lower() for name, value in options.items()}
    form = {"data": {"model": model, **fields}, "files": [("files", file) for file in _files(x)]}
    reply = yield from answered(Send("POST", path, form, repeatable=True))
    found: Json = reply.json()
    return found


def _files(x: Scorable) -> list[tuple[str, bytes]]:
    """(name, content) of each file of the form."""
    match x:
        case Samples():
            return [("x.npy", _npy(x.x))]
        case str() | Path() | Image.Image():
            return [_file(x)]
        case [str() | Path() | Image.Image(), *_]:
            return [_file(one) for one in x]  # type: ignore[arg-type]
        case _:
            return [("x.npy", _npy(np.asarray(x)))]


def _file(one: Path | str | Image.Image) -> tuple[str, bytes]:
    if not isinstance(one, Image.Image):
        one = Path(one)
        return one.name, one.read_bytes()
    packed = io.BytesIO()
    one.save(packed, "png")
    return "image.png", packed.getvalue()


def _npy(x: npt.NDArray[Any]) -> bytes:
    packed = io.BytesIO()
    np.save(packed, x, allow_pickle=False)
    return packed.getvalue()


def upload(source: Path | str | BinaryIO, file_name: str | None, **fields: str | None) -> Call[Json]:
    """A dataset out of a file, or of a folder of images; text is a path. Raises OSError for what cannot be read."""
    source = Path(source) if isinstance(source, str) else source
    if isinstance(source, Path) and source.is_dir():
        with zipped(source) as packed:
            return (yield from _upload(packed, f"{source.resolve().name}.zip", fields))
    if isinstance(source, Path):
        with source.open("rb") as file:
            return (yield from _upload(file, file_name or source.name, fields))
    return (yield from _upload(source, file_name or "data", fields))


def _upload(file: BinaryIO, file_name: str, fields: Mapping[str, str | None]) -> Call[Json]:
    form = {"files": {"file": (file_name, file)}, "data": given(**fields), "timeout": _UPLOAD_TIMEOUT}
    reply = yield from answered(Send("POST", "/datasets", form))
    found: Json = reply.json()
    return found


def job_path(job_id: str, *more: str) -> str:
    """The path of a job, below /jobs."""
    return "/".join(["/jobs", quoted(job_id), *more])


def model_path(model_id: str, *more: str) -> str:
    """The path of a model, below /models."""
    return "/".join(["/models", quoted(model_id), *more])
