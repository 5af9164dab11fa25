"""Settings of the API process: those of the workers, and its own limits (RECOVERY_MAX_BODY_BYTES and so on)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from service.foreseen import ForeseenError
from worker.settings import Settings

_PREFIX = "RECOVERY_"

LOG_DENSITY_PATH = "/log-density"
CLASSIFY_PATH = "/classify"
DATASETS_PATH = "/datasets"
MAX_IMAGES = 256
"""The most samples of one request. It is part of the contract, so that the schema can say it."""
MAX_SCALE = 32
MAX_LEVELS = 64
MAX_ITEMS = 1024
"""The most items of one POST /log-density or POST /classify."""
MAX_ITEM_PATHS = 512
"""The most items times paths of one POST /log-density: each is some thousand evaluations of the network."""


class ServiceSettings(Settings):
    """The settings of the API process: the limits of requests, the file of keys, and how long it waits."""

    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """The largest body of a request; a larger one gets 413. A training configuration is a few kilobytes."""
    max_density_body_bytes: int = Field(default=67_108_864, ge=1024)
    """The largest body of POST /log-density and POST /classify, which carry data: 1,024 images of 32×32 in colour are
    12 MB as .npy."""
    max_dataset_bytes: int = Field(default=512 * 2**20, ge=1024)
    """The largest body of POST /datasets; the workers' settings `dataset_max_…` limit what it may unpack to."""
    keys_file: Path | None = None
    """The file with the hashes of the API keys (`recovery keys create`). With None, or without a key in the file, only
    this machine is served."""
    rate_limit_per_s: float = Field(default=50.0, gt=0)
    """Requests per second that one key may make, or one address where there are no keys; more get 429."""
    rate_limit_burst: int = Field(default=200, ge=1)
    """Requests that one caller may make at once before the rate limit holds."""
    max_jobs_per_key: int = Field(default=100, ge=1)
    """The most jobs of one key that wait or run; more get 429. Without keys there is no such limit."""
    max_chain_steps: int = Field(default=2_000_000, ge=1)
    """The most work of one POST /sample: images × chain steps × noise levels. 256 images of `digits` are 72,000."""
    max_pixels: int = Field(default=67_108_864, ge=1)
    """The most pixels of one answer of POST /sample: images × levels shown × height × width × scale²."""
    sample_timeout_s: float = Field(default=120.0, gt=0)
    """The seconds that POST /sample, POST /log-density and POST /classify wait for a sampler."""
    max_queued_requests: int = Field(default=256, ge=1)
    """The most requests that no sampler has taken yet; with more, those calls answer 429."""

    def body_limit_bytes(self, path: str) -> int:
        """Return the size, in bytes, of the largest body that a request to the path may have."""
        carrying_data = {
            LOG_DENSITY_PATH: self.max_density_body_bytes,
            CLASSIFY_PATH: self.max_density_body_bytes,
            DATASETS_PATH: self.max_dataset_bytes,
        }
        return carrying_data.get(path, self.max_body_bytes)


class SettingsError(ForeseenError):
    """A variable of the environment has a wrong value."""


def read_settings(environment: Mapping[str, str] = os.environ) -> ServiceSettings:
    """Read the settings from the RECOVERY_ variables. Raises SettingsError, which names the first that is wrong."""
    values = {
        name.removeprefix(_PREFIX).lower(): text for name, text in environment.items() if name.startswith(_PREFIX)
    }
    try:
        return ServiceSettings.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = _PREFIX + "_".join(map(str, wrong["loc"])).upper()
        raise SettingsError(f"the variable {name} is wrong: {wrong['msg'].removeprefix('Value error, ')}") from None
