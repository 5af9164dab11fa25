"""Tests marked `observability` need Prometheus and minutes; `make test-observability` runs them, `make test` not."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave them out unless they are asked for by their marker."""
    if "observability" in str(config.option.markexpr):
        return
    unwanted = [item for item in items if item.get_closest_marker("observability")]
    config.hook.pytest_deselected(items=unwanted)
    items[:] = [item for item in items if item not in unwanted]
