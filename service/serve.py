"""The API process, which `recovery serve` runs, in containers and in the embedded stack."""

from __future__ import annotations

import os

import uvicorn

from service.door.protocol import ProblemProtocol
from service.door.security import require_keys
from service.settings import read_settings
from worker.observe.logs import configure_logging

_DRAIN_S = 3
"""The seconds of a shutdown after which event streams, which stay open for hours, are cut."""


def serve(host: str, port: int) -> None:
    """Serve until a signal arrives.

    Raises SettingsError, and KeysError for an address that needs keys and has none, before anything listens.
    """
    settings = read_settings()
    require_keys(host, settings.keys_file)
    configure_logging(settings=settings)
    uvicorn.run(
        "service.app:app",
        host=host,
        port=port,
        http=ProblemProtocol,
        ws="none",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
        # By default uvicorn believes the X-Forwarded-For of anybody on this machine, but limits count by address.
        forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS", ""),
    )
