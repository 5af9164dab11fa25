"""A Python client of the HTTP interface: `Recovery("http://127.0.0.1:8000")`. Synchronous, on httpx2."""

from __future__ import annotations

import io
import json
import os
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import httpx2
import numpy as np
import numpy.typing as npt

from service.folder_zip import zipped

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "RECOVERY_URL"
KEY_VARIABLE = "RECOVERY_API_KEY"
_TIMEOUT = httpx2.Timeout(10.0, read=180.0)
"""a /sample call answers when the samples are there"""
_UPLOAD_TIMEOUT = httpx2.Timeout(10.0, read=1800.0, write=180.0)
"""an upload answers when all of it was decoded"""

_IN_FLIGHT = "urn:recovery:problem:request-in-flight"

Json = dict[str, Any]


class ClientError(Exception):
    """The service could not be asked, or refused; one sentence that says what to do."""


class BrokenOffError(ClientError):
    """The connection broke before the answer was there; what was asked for may have been done."""


class RefusedError(ClientError):
    """The service answered with a problem (RFC 9457)."""

    def __init__(self, problem: Json) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or problem))
        self.problem = problem
        self.status = int(problem.get("status", 0))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Samples, and what is needed to draw the same again."""

    x: npt.NDArray[np.float32]
    """(N, *event); with levels (levels + 1, N, *event), noisiest first"""
    seed: int
    model: str
    """id@step"""
    gradient_evaluations: int
    """per sample"""


class Recovery:
    """The service at one address, with a key where it asks for one.

    Methods raise RefusedError for its problems, ClientError when it is away.
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        """What is absent comes from RECOVERY_URL and RECOVERY_API_KEY."""
        self.url = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        # Proxies of the environment are for the way out; they would swallow calls to a service on this machine.
        key = api_key or os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=self.url, timeout=_TIMEOUT, trust_env=False, headers=headers)

    def __enter__(self) -> Recovery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def train(self, **request: Any) -> Json:
        """Start a training job with the fields of POST /jobs/train: `preset`, `num_gpus=2`, …; the job."""
        return self._create("/jobs/train", request)

    def jobs(self, *, status: str | None = None) -> list[Json]:
        """All jobs, newest first."""
        found: list[Json] = []
        query: Json = {"limit": 200, **({"status": status} if status else {})}
        while True:
            page = self._json("GET", "/jobs", params=query)
            found += page["jobs"]
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]

    def job(self, job_id: str, *, wait_s: int | None = None) -> Json:
        """One job, waiting up to `wait_s` (the service allows 60) for its end."""
        headers = {} if wait_s is None else {"Prefer": f"wait={wait_s}"}
        return self._json("GET", f"/jobs/{_quoted(job_id)}", headers=headers)

    def events(
        self, job_id: str, *, after: str | None = None, idle_fn: Callable[[], None] | None = None
    ) -> Iterator[Json]:
        """Everything that happens in a job until it ends: {id, type, at, data}. Reconnects after a broken stream.

        `idle_fn` is called every few seconds while nothing happens.
        """
        last = after
        failures = 0
        while failures < 5:
            try:
                for event in self._event_stream(job_id, last, idle_fn):
                    yield event
                    last, failures = event["id"], 0
                return
            except httpx2.TransportError:
                failures += 1
                time.sleep(0.2 * failures)
        raise ClientError(f"the event stream of job {job_id} broke {failures} times; is {self.url} still there?")

    def cancel(self, job_id: str) -> Json:
        """Ask for the job's end; the job."""
        return self._json("POST", f"/jobs/{_quoted(job_id)}/cancel")

    def resume(self, job_id: str, *, steps: int | None = None) -> Json:
        """Queue a failed or cancelled job again; the job."""
        return self._json(
            "POST", f"/jobs/{_quoted(job_id)}/resume", json={"steps": steps} if steps is not None else None
        )

    def upload_dataset(self, source: Path | BinaryIO, *, file_name: str | None = None, name: str | None = None) -> Json:
        """Upload a .zip of images, .npy, .npz or .csv, or a folder of images; the dataset, whose id trainings take.

        An open file, read once from its beginning, needs a `file_name`. Raises OSError for what cannot be read.
        """
        if isinstance(source, Path) and source.is_dir():
            with zipped(source) as packed:
                return self.upload_dataset(packed, file_name=f"{source.name}.zip", name=name)
        if isinstance(source, Path):
            with source.open("rb") as file:
                return self.upload_dataset(file, file_name=file_name or source.name, name=name)
        form = {"file": (file_name or "data", source)}
        fields = {} if name is None else {"name": name}
        return self._json("POST", "/datasets", files=form, data=fields, timeout=_UPLOAD_TIMEOUT)

    def datasets(self) -> list[Json]:
        """All datasets: uploaded ones, newest first, built-in ones, those in the server's folder."""
        found: list[Json] = self._json("GET", "/datasets")["datasets"]
        return found

    def dataset(self, dataset_id: str) -> Json:
        """One uploaded or built-in dataset."""
        return self._json("GET", f"/datasets/{_quoted(dataset_id)}")

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete an uploaded dataset that no job uses."""
        self._ask("DELETE", f"/datasets/{_quoted(dataset_id)}")

    def models(self) -> list[Json]:
        """All models, newest first."""
        models: list[Json] = self._json("GET", "/models")["models"]
        return models

    def model(self, model_id: str) -> Json:
        """One model with its checkpoints."""
        return self._json("GET", f"/models/{_quoted(model_id)}")

    def sample(
        self, model: str, num_images: int = 1, *, seed: int | None = None, levels: Sequence[int] = (), **more: Any
    ) -> Drawn:
        """Samples as numbers, images in [−1, 1]."""
        body = {"model": model, "num_images": num_images, "levels": list(levels), **more}
        if seed is not None:
            body["seed"] = seed
        answer = self._ask("POST", "/sample", json=body, headers={"Accept": "application/x-npy"})
        return Drawn(
            x=np.load(io.BytesIO(answer.content), allow_pickle=False),
            seed=int(answer.headers["X-Seed"]),
            model=answer.headers["X-Model"],
            gradient_evaluations=int(answer.headers["X-NFE"]),
        )

    def sample_png(self, model: str, num_images: int = 1, **more: Any) -> bytes:
        """Samples as one PNG."""
        body = {"model": model, "num_images": num_images, **more}
        return self._ask("POST", "/sample", json=body, headers={"Accept": "image/png"}).content

    def calibrate(self, model: str, **options: Any) -> Json:
        """Start an estimate of log Z of a checkpoint, as POST /jobs/calibrate; the job."""
        return self._create("/jobs/calibrate", {"model": model, **options})

    def sample_in_bulk(self, model: str, num_images: int, **options: Any) -> Json:
        """Start a job that draws many samples into storage, as POST /jobs/sample; the job."""
        return self._json("POST", "/jobs/sample", json={"model": model, "num_images": num_images, **options})

    def shards(self, job_id: str) -> Json:
        """Manifest of a bulk sampling that has ended."""
        return self._json("GET", f"/jobs/{_quoted(job_id)}/shards")

    def shard(self, job_id: str, name: str) -> bytes:
        """One of its files, .npy."""
        return self._ask("GET", f"/jobs/{_quoted(job_id)}/shards/{_quoted(name)}").content

    def log_density(self, model: str, x: npt.ArrayLike | Sequence[Path], **options: Any) -> Json:
        """log densities of numbers (N, *event), or of image files or one .npy file, as POST /log-density.

        Options: `path`, `num_paths`, `seed`. Raises OSError for a file that cannot be read.
        """
        if isinstance(x, Sequence) and x and isinstance(x[0], Path):
            files = [(path.name, path.read_bytes()) for path in x if isinstance(path, Path)]
        else:
            packed = io.BytesIO()
            np.save(packed, np.asarray(x), allow_pickle=False)
            files = [("x.npy", packed.getvalue())]
        fields = {name: str(value).lower() for name, value in options.items() if value is not None}
        form = [("files", file) for file in files]
        return self._json("POST", "/log-density", data={"model": model, **fields}, files=form)

    def density_png(self, model_id: str) -> bytes:
        """The density of a 2-D model beside its data."""
        return self._ask("GET", f"/models/{_quoted(model_id)}/density.png").content

    def _event_stream(self, job_id: str, after: str | None, idle_fn: Callable[[], None] | None) -> Iterator[Json]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        with self._http.stream("GET", f"/jobs/{_quoted(job_id)}/events", headers=headers) as answer:
            if answer.is_error:
                answer.read()
                raise _refusal(answer)
            for line in answer.iter_lines():
                if line.startswith(":") and idle_fn is not None:  # the server's sign of life
                    idle_fn()
                # Every event carries itself, id and type included, in its data, on one line.
                if line.startswith("data: "):
                    event: Json = json.loads(line.removeprefix("data: "))
                    if "id" not in event:  # the server's last words
                        raise httpx2.ReadError(str(event.get("detail")))
                    yield event

    def _create(self, path: str, request: Json) -> Json:
        """A new job; asked for again when the connection broke, which the key makes safe."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        for pause_s in (0.2, 1.0):
            try:
                return self._json("POST", path, json=request, headers=headers)
            except RefusedError as error:
                if error.problem.get("type") != _IN_FLIGHT:
                    raise
            except BrokenOffError:
                pass
            time.sleep(pause_s)
        return self._json("POST", path, json=request, headers=headers)

    def _json(self, method: str, path: str, **more: Any) -> Json:
        found: Json = self._ask(method, path, **more).json()
        return found

    def _ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **more)
        except httpx2.ConnectError:
            raise ClientError(f"nothing answers at {self.url}; start it with `recovery up`, or give --url") from None
        except httpx2.TransportError as error:
            raise BrokenOffError(f"{self.url} broke off: {error or type(error).__name__}") from None
        if answer.is_error:
            raise _refusal(answer)
        return answer


def _quoted(text: str) -> str:
    """As one segment of a path, whatever it holds."""
    return urllib.parse.quote(text, safe="")


def _refusal(answer: httpx2.Response) -> RefusedError:
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"status": answer.status_code, "detail": f"{answer.url} answered {answer.status_code}"}
    return RefusedError(problem)
