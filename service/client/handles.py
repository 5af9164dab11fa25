"""Jobs and models as a client holds them: what the service says of them, and what can be done with them.

Both are the bodies of the HTTP interface with methods on top. `job["status"]` works beside `job.status`, and gives what
the JSON has.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar, Unpack

from pydantic import BaseModel, ConfigDict, PrivateAttr

from service.bodies.jobs import JobBody
from service.bodies.models import ModelBody
from service.client import requests
from service.client.call import Call, ClientError, JobFailedError, Json, Send, answered, described, given
from service.client.options import (
    BulkOptions,
    CalibrateOptions,
    ClassifyOptions,
    DensityOptions,
    SampleOptions,
    TuneOptions,
)
from service.client.requests import Answer, Classes, Densities, ModelChanges, Scorable
from service.client.samples import Samples
from worker.jobs.record import JobStatus

J = TypeVar("J")
_LONGEST_WAIT_S = 60.0
"""the service's own limit of one waiting request"""


class JobCalls(Answer, JobBody):
    """A job, as both clients hold it."""

    model_config = ConfigDict(ignored_types=(described,))
    _client: Any = PrivateAttr()

    @described
    def refresh(self) -> Call[None]:
        """Ask the service again how the job stands."""
        self.take((yield from requests.read(requests.job_path(self.id))))

    @described
    def cancel(self) -> Call[None]:
        """Ask for the job's end. Its checkpoints stay."""
        self.take((yield from requests.act(requests.job_path(self.id, "cancel"), repeatable=True)))

    @described
    def resume(self, *, steps: int | None = None) -> Call[None]:
        """Queue a failed or cancelled job again, with another number of all training steps if given."""
        body = None if steps is None else {"steps": steps}
        self.take((yield from requests.act(requests.job_path(self.id, "resume"), body, repeatable=False)))

    @described
    def delete(self) -> Call[None]:
        """Delete the job, which must have ended; the model that it trained stays, unless it has no checkpoint."""
        yield from answered(Send("DELETE", requests.job_path(self.id)))

    def take(self, found: Json) -> None:
        """Take over what the service now says."""
        _take(self, requests.parsed(JobBody, found))

    def require_success(self) -> None:
        """Raises JobFailedError with the job's reason."""
        if self.status is not JobStatus.succeeded:
            raise JobFailedError(f"job {self.id} ended as {self.status}: {self.error or 'no reason given'}")

    def until_ended(self, timeout_s: float | None) -> Call[None]:
        """Wait at the service for the job's end. Raises ClientError when it has not come in time."""
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = _LONGEST_WAIT_S if give_up_at is None else min(_LONGEST_WAIT_S, give_up_at - time.monotonic())
            headers = {"Prefer": f"wait={max(0, round(left_s))}"}
            request = Send("GET", requests.job_path(self.id), {"headers": headers}, repeatable=True)
            self.take((yield from answered(request)).json())
            if self.status.is_terminal:
                return
            if left_s <= 0:
                raise ClientError(f"job {self.id} is still {self.status} after {timeout_s:g} s; it goes on")

    def __repr__(self) -> str:
        done = self.progress
        return f"<{self.kind} job {self.id}, {self.status}, step {done.step} of {done.total_steps}>"


class ModelCalls(Answer, ModelBody, Generic[J]):
    """A model, as both clients hold it. Calls are about its newest checkpoint, unless a `step` is named."""

    model_config = ConfigDict(ignored_types=(described,))
    _client: Any = PrivateAttr()
    __hash__: ClassVar[Any] = None

    @described
    def refresh(self) -> Call[None]:
        """Ask again which checkpoints there are."""
        _take(self, requests.parsed(ModelBody, (yield from requests.read(requests.model_path(self.id)))))

    @described
    def change(self, **changes: Unpack[ModelChanges]) -> Call[None]:
        """Name the model (None: it has none) and tag it; what is not given stays as it is."""
        found = yield from requests.change(requests.model_path(self.id), {**changes})
        _take(self, requests.parsed(ModelBody, found))

    @described
    def delete(self) -> Call[None]:
        """Delete the model with its checkpoints; no job may be using it."""
        yield from answered(Send("DELETE", requests.model_path(self.id)))

    @described
    def sample(
        self,
        num_images: int = 1,
        *,
        step: int | None = None,
        levels: Iterable[int] = (),
        **options: Unpack[SampleOptions],
    ) -> Call[Samples]:
        """Draw samples. Options are those of `SampleOptions`, fields of POST /sample."""
        return (yield from requests.draw(self.at(step), num_images, levels, options))

    @described
    def log_density(
        self, x: Scorable, *, step: int | None = None, **options: Unpack[DensityOptions]
    ) -> Call[Densities]:
        """Score numbers (N, *event), pictures or files; it must be calibrated. Options: `DensityOptions`."""
        return (yield from requests.score(self.at(step), x, options))

    @described
    def classify(self, x: Scorable, *, step: int | None = None, **options: Unpack[ClassifyOptions]) -> Call[Classes]:
        """Tell the classes of numbers, pictures or files; the model must be conditional. Options: `ClassifyOptions`."""
        return (yield from requests.classify(self.at(step), x, options))

    @described
    def calibrate(self, *, step: int | None = None, **options: Unpack[CalibrateOptions]) -> Call[J]:
        """Start an estimate of log Z, which log_density needs. Options are those of `CalibrateOptions`."""
        body = given(model=self.at(step), **options)
        job: J = self._client.job_of((yield from requests.create_job("calibrate", body, None)))
        return job

    @described
    def tune(self, *, step: int | None = None, **options: Unpack[TuneOptions]) -> Call[J]:
        """Start a measurement of what samples cost. Options are those of `TuneOptions`."""
        body = given(model=self.at(step), **options)
        job: J = self._client.job_of((yield from requests.create_job("tune", body, None)))
        return job

    @described
    def sample_in_bulk(self, num_images: int, *, step: int | None = None, **options: Unpack[BulkOptions]) -> Call[J]:
        """Start a job that draws many samples into storage. Options are those of `BulkOptions`."""
        body = given(model=self.at(step), num_images=num_images, **options)
        job: J = self._client.job_of((yield from requests.create_job("sample", body, None)))
        return job

    @described
    def density_png(self) -> Call[bytes]:
        """The density of a 2-D model beside its data."""
        return (yield from requests.read_bytes(requests.model_path(self.id, "density.png")))

    @described
    def samples_png(self) -> Call[bytes]:
        """The grid drawn last while it trained."""
        return (yield from requests.read_bytes(requests.model_path(self.id, "samples.png")))

    def at(self, step: int | None) -> str:
        """The model as `id@step`, or as `id` for its newest checkpoint."""
        return self.id if step is None else f"{self.id}@{step}"

    def __repr__(self) -> str:
        steps = ", ".join(str(one.step) for one in self.checkpoints) or "none yet"
        return f"<model {self.id} of {self.dataset or 'unknown data'}, checkpoints: {steps}>"


def _take(handle: BaseModel, found: BaseModel) -> None:
    for name in type(found).model_fields:
        setattr(handle, name, getattr(found, name))
