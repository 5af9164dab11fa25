"""The workers' settings, read from the environment: RECOVERY_REDIS_URL, RECOVERY_S3_BUCKET and so on.

Imports neither torch nor Celery, so that the HTTP service shares it. Secrets are SecretStr or hidden from `repr`; they
never reach a log, an event or an error.
"""

from __future__ import annotations

import tempfile
import urllib.parse
from dataclasses import fields
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.intake.limits import ReadLimits


class Settings(BaseSettings):
    """The settings that all processes share: where the stores are, how long a lease lives, what a worker keeps on its
    disk."""

    model_config = SettingsConfigDict(env_prefix="RECOVERY_", frozen=True, extra="ignore")

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    """May carry a password, hence not shown."""

    s3_endpoint_url: str | None = None
    """None is AWS; otherwise an S3-compatible store, addressed by path."""
    s3_bucket: str = "recovery"
    s3_region: str = "us-east-1"
    s3_access_key: SecretStr | None = None
    """None leaves the credentials to boto3's own chain (instance roles, profiles)."""
    s3_secret_key: SecretStr | None = None

    lease_s: float = Field(default=30.0, ge=1.0)
    """A job whose worker has been silent for so long is given to another."""
    heartbeat_s: float = Field(default=5.0, gt=0)
    """Between renewals of a lease, and between a worker's signs of life; at most a third of `lease_s` is used."""
    attempt_limit: int = Field(default=5, ge=1)
    """Attempts that may end without the job's say: a lost worker, a kill, a store that stayed away."""
    heartbeat_file: Path | None = None
    """Touched by a worker every `heartbeat_s`, for `python -m worker.heartbeat`; None touches none."""
    reaper_every_s: float = Field(default=5.0, gt=0)
    cancel_grace_s: float = Field(default=20.0, ge=0)
    """A cancelled or shut-down training gets so long to save a checkpoint before SIGTERM."""
    kill_grace_s: float = Field(default=45.0, ge=0)
    """From SIGTERM to SIGKILL, and a training whose supervisor died ends itself after as long."""
    nodes_patience_s: float = Field(default=600.0, gt=0)
    """How long a training of several trainers waits for the others; then it has lost an attempt."""
    storage_patience_s: float = Field(default=600.0, ge=0)
    """How long a finished training waits for storage that is away, to deliver its last checkpoints."""
    visibility_timeout_s: int = Field(default=3600, ge=1)
    """After which the broker hands out an unacknowledged message again; harmless, since the lease decides who runs."""
    keep_last: int = Field(default=10, ge=1)
    """Checkpoints of a training that are kept at least, its newest; a training may ask for another number."""
    keep_every: int = Field(default=10, ge=1)
    """Of its older ones, one in this many; 1 keeps them all. A training may ask for another number."""
    tuning_share: float = Field(default=0.1, ge=0)
    """The share of a training's time that measuring what its samples cost, at its end, may take; 0 leaves it out."""
    deletion_grace_s: float = Field(default=60.0, ge=0)
    """What was deleted is swept once more after so long, for what a slow process may have written meanwhile."""
    event_limit: int = Field(default=20_000, ge=100)
    """Events kept per job in Redis; older ones are dropped."""

    spool_dir: Path = Path(tempfile.gettempdir()) / "recovery-spool"
    """Checkpoints on their way to storage, and models fetched from it."""
    datasets_dir: Path | None = None
    """Dataset names that are not built in are paths below it; None offers the built-in ones only."""
    dataset_buckets: str = ""
    """Buckets, separated by commas, whose prefixes may be named as datasets, `s3://bucket/prefix`; none by default.
    Who may start a training may then train on anything in them: never list the service's own."""
    dataset_cache_bytes: int = Field(default=20 * 2**30, ge=0)
    """Arrays a worker keeps in its spool for the next job; the least recently used give way."""
    dataset_max_array_bytes: int = Field(default=ReadLimits.max_array_bytes, ge=1024)
    """Of the array that a dataset becomes, and of what is unpacked on the way; this and the limits below hold for
    uploads, for `s3://`, for `hf://` and for the folder of datasets."""
    dataset_max_members: int = Field(default=ReadLimits.max_members, ge=2)
    dataset_max_ratio: int = Field(default=ReadLimits.max_ratio, ge=1)
    """Bytes that a compressed byte of a zip may become, once a member is larger than a megabyte."""
    dataset_max_side: int = Field(default=ReadLimits.max_side, ge=4)
    """Pixels of an image in either direction."""
    dataset_max_items: int = Field(default=ReadLimits.max_items, ge=2)
    dataset_max_columns: int = Field(default=ReadLimits.max_columns, ge=1)
    cached_models: int = Field(default=4, ge=1)
    """Models a sampler keeps in memory."""
    cached_model_bytes: int = Field(default=4 * 2**30, ge=1)
    """The same in bytes, of the weights and of what is kept of them in other forms; whichever is less."""
    sampler_rows: int | None = Field(default=None, ge=1, le=65_536)
    """Chains of a sampler's batch; None measures, per model, where a larger batch stops paying or fitting."""
    sampler_queue_s: float = Field(default=60.0, gt=0)
    """A sampler whose accepted work takes longer than this, at its measured rate, refuses more (429)."""
    worker_metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Where a worker serves its Prometheus series; None serves none."""
    worker_metrics_host: str = "127.0.0.1"

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected redis://[:PASSWORD@]HOST:PORT/DATABASE, or the like with rediss:// or unix://")
        return url

    def secrets(self) -> list[str]:
        """The texts that must never be written anywhere."""
        given = (self.s3_access_key, self.s3_secret_key)
        password = urllib.parse.urlsplit(self.redis_url).password
        found = [secret.get_secret_value() for secret in given if secret is not None]
        return [*found, *([urllib.parse.unquote(password)] if password else [])]

    @property
    def read_limits(self) -> ReadLimits:
        """The limits on what a dataset may hold, wherever it comes from."""
        return ReadLimits(**{field.name: getattr(self, f"dataset_{field.name}") for field in fields(ReadLimits)})

    @property
    def renew_every_s(self) -> float:
        """Seconds between renewals of a lease: three may be missed before it runs out."""
        return min(self.heartbeat_s, self.lease_s / 3)
