"""Every call of the service, described once for both clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, Unpack

from service.bodies.datasets import DatasetBody
from service.client import requests
from service.client.call import Call, Json, RefusedError, Send, answered, described, given, quoted
from service.client.handles import JobCalls, ModelCalls
from service.client.options import (
    BulkOptions,
    CalibrateOptions,
    ClassifyOptions,
    DensityOptions,
    SampleOptions,
    TrainOptions,
    TuneOptions,
)
from service.client.requests import Answer, Classes, Densities, ModelChanges, Scorable, parsed
from service.client.samples import Samples

J = TypeVar("J", bound=JobCalls)
M = TypeVar("M", bound=ModelCalls[Any])


class Dataset(Answer, DatasetBody):
    """A dataset, which trainings take by its id."""


class Calls(Generic[J, M]):
    """The calls of both clients. Every method is described once."""

    job_of: Callable[[Json], J]
    model_of: Callable[[Json], M]

    @described
    def submit(self, kind: str, /, *, idempotency_key: str | None = None, **fields: Any) -> Call[J]:
        """Start a job of any kind that the service knows. `fields` are those of POST /jobs/KIND."""
        return self.job_of((yield from requests.create_job(kind, given(**fields), idempotency_key)))

    @described
    def train(
        self, preset: str | None = None, *, idempotency_key: str | None = None, **options: Unpack[TrainOptions]
    ) -> Call[J]:
        """Start a training job. Options are those of `TrainOptions`, the fields of POST /jobs/train."""
        body = given(preset=preset, **options)
        return self.job_of((yield from requests.create_job("train", body, idempotency_key)))

    @described
    def jobs(self, *, status: str | None = None) -> Call[list[J]]:
        """All jobs, newest first."""
        return [self.job_of(one) for one in (yield from requests.all_jobs(status))]

    @described
    def job(self, job_id: str, *, wait_s: int | None = None) -> Call[J]:
        """One job, waiting up to `wait_s` (the service allows 60) for its end."""
        headers = {} if wait_s is None else {"Prefer": f"wait={wait_s}"}
        request = Send("GET", requests.job_path(job_id), {"headers": headers}, repeatable=True)
        return self.job_of((yield from answered(request)).json())

    @described
    def cancel(self, job_id: str) -> Call[J]:
        """Ask for a job's end, and return the job."""
        return self.job_of((yield from requests.act(requests.job_path(job_id, "cancel"), repeatable=True)))

    @described
    def resume(self, job_id: str, *, steps: int | None = None) -> Call[J]:
        """Queue a failed or cancelled job again, and return the job."""
        body = None if steps is None else {"steps": steps}
        return self.job_of((yield from requests.act(requests.job_path(job_id, "resume"), body, repeatable=False)))

    @described
    def delete_job(self, job_id: str) -> Call[None]:
        """Delete a job that has ended; the model that it trained stays, unless it has no checkpoint."""
        yield from answered(Send("DELETE", requests.job_path(job_id)))

    @described
    def upload_dataset(
        self,
        source: Path | str | BinaryIO,
        *,
        file_name: str | None = None,
        name: str | None = None,
        image_size: str | None = None,
        label_column: str | None = None,
    ) -> Call[Dataset]:
        """Upload a .zip of images, .npy, .npz or .csv, or a folder of images, by its path; trainings take its id.

        An open file, read once from its beginning, needs a `file_name`. `image_size`, "64" or "48x64" (height x width),
        crops and resizes images. `label_column` names the column of a .csv, or the array of a .npz, that holds the
        class of each item; images in a folder for each class are labelled by it. Raises OSError for what cannot be
        read.
        """
        fields = {"name": name, "image_size": image_size, "label_column": label_column}
        return parsed(Dataset, (yield from requests.upload(source, file_name, **fields)))

    @described
    def datasets(self) -> Call[list[Dataset]]:
        """All datasets: uploaded ones, newest first, built-in ones, those in the server's folder."""
        return [parsed(Dataset, one) for one in (yield from requests.read("/datasets"))["datasets"]]

    @described
    def dataset(self, dataset_id: str) -> Call[Dataset]:
        """One uploaded or built-in dataset."""
        return parsed(Dataset, (yield from requests.read(f"/datasets/{quoted(dataset_id)}")))

    @described
    def delete_dataset(self, dataset_id: str) -> Call[None]:
        """Delete an uploaded dataset that no job uses."""
        yield from answered(Send("DELETE", f"/datasets/{quoted(dataset_id)}"))

    @described
    def models(self) -> Call[list[M]]:
        """All models, newest first."""
        return [self.model_of(one) for one in (yield from requests.read("/models"))["models"]]

    @described
    def model(self, model_id: str) -> Call[M]:
        """One model with its checkpoints."""
        return self.model_of((yield from requests.read(requests.model_path(model_id))))

    @described
    def change_model(self, model_id: str, **changes: Unpack[ModelChanges]) -> Call[M]:
        """Name a model (None: it has none) and tag it; what is not given stays as it is."""
        return self.model_of((yield from requests.change(requests.model_path(model_id), {**changes})))

    @described
    def delete_model(self, model_id: str) -> Call[None]:
        """Delete a model with its checkpoints; no job may be using it."""
        yield from answered(Send("DELETE", requests.model_path(model_id)))

    @described
    def sample(
        self, model: str, num_images: int = 1, *, levels: Iterable[int] = (), **options: Unpack[SampleOptions]
    ) -> Call[Samples]:
        """Samples of a model (`id` or `id@step`). Options are those of `SampleOptions`, fields of POST /sample."""
        return (yield from requests.draw(model, num_images, levels, options))

    @described
    def sample_png(
        self,
        model: str,
        num_images: int = 1,
        *,
        levels: Iterable[int] = (),
        scale: int = 1,
        **options: Unpack[SampleOptions],
    ) -> Call[bytes]:
        """Samples as one PNG, pixels magnified `scale` times."""
        return (yield from requests.draw_png(model, num_images, levels, scale, options))

    @described
    def calibrate(
        self, model: str, *, idempotency_key: str | None = None, **options: Unpack[CalibrateOptions]
    ) -> Call[J]:
        """Start an estimate of log Z of a checkpoint. Options are those of `CalibrateOptions`."""
        body = given(model=model, **options)
        return self.job_of((yield from requests.create_job("calibrate", body, idempotency_key)))

    @described
    def tune(self, model: str, *, idempotency_key: str | None = None, **options: Unpack[TuneOptions]) -> Call[J]:
        """Start a measurement of what samples of a checkpoint cost. Options are those of `TuneOptions`."""
        body = given(model=model, **options)
        return self.job_of((yield from requests.create_job("tune", body, idempotency_key)))

    @described
    def sample_in_bulk(
        self, model: str, num_images: int, *, idempotency_key: str | None = None, **options: Unpack[BulkOptions]
    ) -> Call[J]:
        """Start a job that draws many samples into storage. Options are those of `BulkOptions`."""
        body = given(model=model, num_images=num_images, **options)
        return self.job_of((yield from requests.create_job("sample", body, idempotency_key)))

    @described
    def shards(self, job_id: str) -> Call[Json]:
        """The manifest of a bulk sampling that has ended."""
        return (yield from requests.read(requests.job_path(job_id, "shards")))

    @described
    def shard(self, job_id: str, name: str) -> Call[bytes]:
        """One .npy file of a bulk sampling."""
        return (yield from requests.read_bytes(requests.job_path(job_id, "shards", quoted(name))))

    @described
    def log_density(self, model: str, x: Scorable, **options: Unpack[DensityOptions]) -> Call[Densities]:
        """log densities of numbers (N, *event), pictures, image files or one .npy file, as POST /log-density.

        Options are those of `DensityOptions`. Raises OSError for a file that cannot be read.
        """
        return (yield from requests.score(model, x, options))

    @described
    def classify(self, model: str, x: Scorable, **options: Unpack[ClassifyOptions]) -> Call[Classes]:
        """The classes of numbers (N, *event), pictures or files by a conditional model, as POST /classify.

        Options are those of `ClassifyOptions`. Raises OSError for a file that cannot be read.
        """
        return (yield from requests.classify(model, x, options))

    @described
    def density_png(self, model_id: str) -> Call[bytes]:
        """The density of a 2-D model beside its data."""
        return (yield from requests.read_bytes(requests.model_path(model_id, "density.png")))

    @described
    def samples_png(self, model_id: str) -> Call[bytes]:
        """The grid of samples that was drawn last while the model trained."""
        return (yield from requests.read_bytes(requests.model_path(model_id, "samples.png")))

    @described
    def workers(self) -> Call[list[Json]]:
        """Live workers: kind, name, version, gpus, clock_ahead_s."""
        found: list[Json] = (yield from requests.read("/workers"))["workers"]
        return found

    @described
    def checks(self) -> Call[list[Json]]:
        """What GET /readyz found, whether or not all is well: name, ok, detail of each check."""
        try:
            found: list[Json] = (yield Send("GET", "/readyz")).json()["checks"]
        except RefusedError as error:
            if "checks" not in error.problem:
                raise
            found = error.problem["checks"]
        return found

    @described
    def server_version(self) -> Call[str]:
        """The version of the program that serves."""
        return str((yield from requests.read("/openapi.json"))["info"]["version"])
