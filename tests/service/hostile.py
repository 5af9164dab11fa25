"""A request that must be refused, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hostile:
    """One hostile request."""

    name: str
    request: Callable[[], dict[str, Any]]
    """Keyword arguments of httpx's `Client.request`, made anew for every use."""
    status: int
    type: str
    """The last part of the problem's type."""
