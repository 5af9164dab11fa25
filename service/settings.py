"""Settings of the HTTP process: those of the workers, and its own limits (RECOVERY_MAX_BODY_BYTES and so on)."""

from __future__ import annotations

from pydantic import Field

from worker.settings import Settings

LOG_DENSITY_PATH = "/log-density"
MAX_IMAGES = 256
"""Samples of one request; part of the contract, so that the schema can say it."""
MAX_SCALE = 32
MAX_LEVELS = 64
MAX_ITEMS = 1024
"""Items of one /log-density request."""
MAX_ITEM_PATHS = 512
"""Items times paths of one /log-density request: each is some thousand evaluations of the network."""


class ServiceSettings(Settings):
    """What the API allows and how long it waits."""

    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Larger requests get 413; a training configuration is a few kilobytes."""
    max_density_body_bytes: int = Field(default=67_108_864, ge=1024)
    """The same for POST /log-density, which carries data: 1,024 32×32 images in colour are 12 MB as .npy."""
    sample_timeout_s: float = Field(default=120.0, gt=0)
    """How long POST /sample and POST /log-density wait for a sampler."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests that no sampler has taken yet; with more, POST /sample and POST /log-density answer 429."""

    def body_limit_bytes(self, path: str) -> int:
        """How large a request to that path may be."""
        return self.max_density_body_bytes if path == LOG_DENSITY_PATH else self.max_body_bytes
