"""One running stack for every test that does not stop it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.client import Recovery
from tests.integration.stack import UpCommand


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCommand]:
    """A running stack."""
    found = UpCommand(tmp_path_factory.mktemp("stack") / "data")
    try:
        found.wait_until_ready().close()
        yield found
    finally:
        assert found.end() == 0, found.output


@pytest.fixture
def recovery(command: UpCommand) -> Iterator[Recovery]:
    """A client of it."""
    with Recovery(command.url) as found:
        yield found
