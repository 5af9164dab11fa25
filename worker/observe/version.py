"""The installed version."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "recovery-likelihood"


def version() -> str:
    """Of the distribution, or a stand-in when run from a checkout."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+checkout"
