"""Settings of the HTTP process: those of the workers, and its own limits (RECOVERY_MAX_BODY_BYTES and so on)."""

from __future__ import annotations

from pydantic import Field

from worker.settings import Settings

MAX_IMAGES = 256
"""Samples of one request; part of the contract, so that the schema can say it."""
MAX_SCALE = 32
MAX_LEVELS = 64


class ServiceSettings(Settings):
    """What the API allows and how long it waits."""

    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Larger requests get 413; a training configuration is a few kilobytes."""
    sample_timeout_s: float = Field(default=120.0, gt=0)
    """How long POST /sample waits for a sampler."""
