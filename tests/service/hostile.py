"""One hostile request, and the refusal it must get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hostile:
    """Made when it is sent: some are large."""

    name: str
    request: Callable[[], dict[str, Any]]
    """Arguments of the client's `request`."""
    status: int
    type: str
    """Last part of the problem's type."""
