"""schemathesis against a running service: every operation of its OpenAPI document, with every check.

That every error is problem+json is among them: the document says so of every status, and nothing else may be answered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@dataclass(frozen=True)
class Findings:
    """What one run came to."""

    num_requests: int
    by_status: Mapping[int, int]
    failed: bool
    output: str


def fuzz(
    url: str, key: str, directory: Path, *, ids: Mapping[str, Sequence[str]], examples: int, seed: int
) -> Findings:
    """Run it once. `ids` are values that exist, by the name of the parameter that takes them, `body.model` say."""
    configuration = directory / "schemathesis.toml"
    configuration.write_text(CONFIGURATION.read_text() + _dictionaries(ids))
    report = directory / "requests.ndjson"
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(configuration), "--no-color"]
    command += ["run", f"{url}/openapi.json", "--checks", "all", "--header", f"Authorization: Bearer {key}"]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--report", "ndjson"]
    command += ["--report-ndjson-path", str(report), "--request-timeout", "150"]
    # The proxies of the environment are for the way out.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    run = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=3600
    )
    assert report.exists(), run.stdout + run.stderr
    statuses = _statuses(report)
    return Findings(
        num_requests=sum(statuses.values()),
        by_status=statuses,
        failed=run.returncode != 0,
        output=run.stdout + run.stderr,
    )


def _dictionaries(ids: Mapping[str, Sequence[str]]) -> str:
    """Every parameter takes a value that exists half of the time."""
    lines = ["", "[parameters]"]
    lines += [f'"{name}" = {{ dictionary = "known-{index}", probability = 0.5 }}' for index, name in enumerate(ids)]
    for index, values in enumerate(ids.values()):
        lines += [f"[dictionaries.known-{index}]", f"values = {json.dumps(list(values))}"]
    return "\n".join(lines) + "\n"


def _statuses(report: Path) -> Counter[int]:
    """How many requests had which answer, as the tool wrote them down."""
    found: Counter[int] = Counter()
    with report.open() as lines:
        for line in lines:
            recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
            for one in recorder.get("interactions", {}).values():
                found[(one.get("response") or {}).get("status_code", 0)] += 1
    return found
