"""Structured logs on stderr: JSON lines, or colours for a person at a terminal. Libraries' lines take the same form.

Every line passes `redact` when it is whole, so that no secret in a field, a message or a traceback gets out.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from worker.observe.redaction import hide, redact
from worker.settings import Settings


def configure_logging(level: int | str = "INFO", settings: Settings | None = None) -> None:
    """Send structlog and the standard library's logging to stderr, without the secrets of the settings."""
    hide((settings or Settings()).secrets())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer, _redacted],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [stream]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # they come with handlers of their own
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Their INFO lines say what ours already do; botocore's DEBUG lines would hold signed headers.
    for name in ("botocore", "boto3", "s3transfer", "urllib3", "kombu", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _redacted(_logger: Any, _method: str, line: Any) -> str:
    return redact(str(line))
