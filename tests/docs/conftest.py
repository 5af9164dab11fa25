"""The stack that the pages are read beside; collected by `-m docs` only (make test-docs)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.stack import UpCommand


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCommand]:
    """A running `recovery up`."""
    found = UpCommand(tmp_path_factory.mktemp("docs") / "recovery-data")
    try:
        found.wait_until_ready().close()
        yield found
    finally:
        assert found.end() == 0, found.output


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless it is asked for."""
    if "docs" not in config.option.markexpr:
        skip = [item for item in items if item.get_closest_marker("docs")]
        items[:] = [item for item in items if item not in skip]
        config.hook.pytest_deselected(items=skip)
