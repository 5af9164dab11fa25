"""The Python client of the service: `Recovery("http://127.0.0.1:8000")`, or `AsyncRecovery` with asyncio.

    client = Recovery()
    job = client.train("digits", seed=0)
    model = job.wait(progress=True).model()
    model.sample(64, seed=0).grid(scale=8).save("samples.png")

Methods raise RefusedError when the service answers with a problem, and ClientError when it cannot be reached. A request
that is safe to repeat is repeated: reads, samples and densities as they are, new jobs with an idempotency key.
"""

from __future__ import annotations

from service.client.address import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE
from service.client.awaited import AsyncJob, AsyncModel, AsyncRecovery
from service.client.blocking import Job, Model, Recovery
from service.client.call import BrokenOffError, ClientError, JobFailedError, RefusedError, UnreachableError
from service.client.calls import Dataset
from service.client.events import Event
from service.client.requests import Classes, Densities
from service.client.samples import Samples

__all__ = [
    "DEFAULT_URL",
    "KEY_VARIABLE",
    "URL_VARIABLE",
    "AsyncJob",
    "AsyncModel",
    "AsyncRecovery",
    "BrokenOffError",
    "Classes",
    "ClientError",
    "Dataset",
    "Densities",
    "Event",
    "Job",
    "JobFailedError",
    "Model",
    "Recovery",
    "RefusedError",
    "Samples",
    "UnreachableError",
]
