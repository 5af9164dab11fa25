"""The installed version."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "recovery-likelihood"


def version() -> str:
    """The version of the installed distribution, or a stand-in when the code runs from a checkout."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+checkout"
