"""`recovery import-official` against a real store named by the environment, and where it cannot work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import application
from tests.model.checkpoints.official import CHECKPOINT
from tests.servers import free_ports
from worker.storage.artifacts import Artifacts


def test_the_store_of_the_environment_gets_a_checkpoint_and_a_model(
    s3: Artifacts, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    told = CliRunner().invoke(application, ["import-official", f"{CHECKPOINT}.index", "--levels", "4"])

    model_id = told.stdout.split()[0]
    assert s3.list_models() == [model_id]
    assert s3.get_model(model_id)["config"]["schedule"]["num_levels"] == 4
    assert s3.fetch_checkpoint(model_id, None, tmp_path / "checkpoint") == 1234
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} == {
        "config.json",
        "ema.safetensors",
        "state.safetensors",
    }


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, after some Python, in a process that knows of a store nobody listens at."""
    away = f"http://127.0.0.1:{free_ports(1)[0]}"
    keys = {"RECOVERY_S3_ENDPOINT_URL": away, "RECOVERY_S3_ACCESS_KEY": "a", "RECOVERY_S3_SECRET_KEY": "b"}
    line = f"import sys; {code}; sys.argv = ['recovery', 'import-official', {str(CHECKPOINT)!r}]"
    return subprocess.run(
        [sys.executable, "-c", f"{line}; from service.cli import main; main()"],
        env=os.environ | keys | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("code", "environment", "told"),
    [
        ("sys.modules['torch'] = None", {}, "torch is missing, which converting needs; install it with `pip install"),
        ("pass", {"RECOVERY_LEASE_S": "long"}, "the variable RECOVERY_LEASE_S is wrong: "),
        ("pass", {}, "storage did not answer for "),
    ],
)
def test_what_is_missing_is_one_line(code: str, environment: dict[str, str], told: str) -> None:
    result = _run(code, **environment)

    assert result.returncode == 1
    assert result.stderr.startswith(f"recovery: {told}")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
