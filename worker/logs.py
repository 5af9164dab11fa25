"""Structured logs on stderr: JSON lines, or colours for a person at a terminal. Libraries' lines take the same form."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure_logging(level: int | str = "INFO") -> None:
    """Send structlog and the standard library's logging to stderr."""
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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [stream]
    root.setLevel(level)
    # Their INFO lines say what ours already do; botocore's DEBUG lines would hold signed headers.
    for name in ("botocore", "boto3", "s3transfer", "urllib3", "kombu", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
