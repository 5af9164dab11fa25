"""Settings of the HTTP process: those of the workers, and its own limits (RECOVERY_MAX_BODY_BYTES and so on)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from service.foreseen import ForeseenError
from worker.settings import Settings

_PREFIX = "RECOVERY_"

LOG_DENSITY_PATH = "/log-density"
DATASETS_PATH = "/datasets"
MAX_IMAGES = 256
"""Samples of one request; part of the contract, so that the schema can say it."""
MAX_SCALE = 32
MAX_LEVELS = 64
MAX_ITEMS = 1024
"""Items of one /log-density request."""
MAX_ITEM_PATHS = 512
"""Items times paths of one /log-density request: each is some thousand evaluations of the network."""


class ServiceSettings(Settings):
    """The settings of the API: what it allows, and how long it waits."""

    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Larger requests get 413; a training configuration is a few kilobytes."""
    max_density_body_bytes: int = Field(default=67_108_864, ge=1024)
    """The same for POST /log-density, which carries data: 1,024 32×32 images in colour are 12 MB as .npy."""
    max_dataset_bytes: int = Field(default=512 * 2**20, ge=1024)
    """The same for POST /datasets; what such a file may become is said by the `dataset_max_…` of the workers."""
    keys_file: Path | None = None
    """Hashes of the API keys (`recovery keys create`). None, or a file without keys, serves this machine only."""
    rate_limit_per_s: float = Field(default=50.0, gt=0)
    """Requests a second of one key, or of one address without keys; more get 429."""
    rate_limit_burst: int = Field(default=200, ge=1)
    """Requests that one caller may make at once before that rate holds."""
    max_jobs_per_key: int = Field(default=100, ge=1)
    """Jobs of one key that wait or run; more get 429. Without keys there is no such limit."""
    max_chain_steps: int = Field(default=2_000_000, ge=1)
    """Work of one POST /sample: images × chain steps × noise levels. 256 images of `digits` are 72 thousand."""
    max_pixels: int = Field(default=67_108_864, ge=1)
    """Pixels of one answer of POST /sample: images × levels shown × height × width × scale²."""
    sample_timeout_s: float = Field(default=120.0, gt=0)
    """How long POST /sample and POST /log-density wait for a sampler."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests that no sampler has taken yet; with more, POST /sample and POST /log-density answer 429."""

    def body_limit_bytes(self, path: str) -> int:
        """The largest body, in bytes, that a request to the path may have."""
        carrying_data = {LOG_DENSITY_PATH: self.max_density_body_bytes, DATASETS_PATH: self.max_dataset_bytes}
        return carrying_data.get(path, self.max_body_bytes)


class SettingsError(ForeseenError):
    """A variable that cannot be read."""


def read_settings(environment: Mapping[str, str] = os.environ) -> ServiceSettings:
    """The settings that the RECOVERY_ variables state. Raises SettingsError naming the first that is wrong."""
    values = {
        name.removeprefix(_PREFIX).lower(): text for name, text in environment.items() if name.startswith(_PREFIX)
    }
    try:
        return ServiceSettings.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = _PREFIX + "_".join(map(str, wrong["loc"])).upper()
        raise SettingsError(f"the variable {name} is wrong: {wrong['msg'].removeprefix('Value error, ')}") from None
