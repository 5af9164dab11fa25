"""deploy/README.md: the sections that alerts link to, and the example of a command as it prints."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from service.cli import application
from tests.deploy.compose import ROOT

README = (ROOT / "deploy" / "README.md").read_text()
ALERTS = {
    "queue-stuck",
    "no-live-worker",
    "training-diverging",
    "training-stalled",
    "checkpoint-too-old",
    "error-rate",
    "redis-away",
    "s3-away",
}


def test_every_alert_has_its_section() -> None:
    assert set(re.findall(r"^### (\S+)$", README, re.M)) == ALERTS
    rules = "".join(path.read_text() for path in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
    assert set(re.findall(r"deploy/README\.md#(\S+)", rules)) == ALERTS


def test_the_capacity_example_is_what_the_command_prints() -> None:
    [arguments] = re.findall(r"^\$ recovery (capacity .*)$", README, re.M)
    printed = CliRunner().invoke(application, arguments.split(), env={"COLUMNS": "120"}).stdout
    assert printed.strip() in README
