"""The command: help, exit statuses, one line for what went wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import free_ports


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_names_every_command() -> None:
    text = run("--help").stdout

    for command in (
        "up",
        "demo",
        "train",
        "jobs",
        "watch",
        "cancel",
        "resume",
        "models",
        "sample",
        "calibrate",
        "log-density",
        "datasets",
        "serve",
        "keys",
        "import-official",
        "capacity",
    ):
        assert f" {command} " in text


@pytest.mark.parametrize("arguments", [["jobs"], ["models"], ["train", "digits"], ["watch", "x"], ["datasets", "list"]])
def test_a_server_that_is_away_is_one_line_and_status_1(arguments: list[str]) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"

    result = run(*arguments, "--url", url)

    assert result.returncode == 1
    assert result.stderr == f"recovery: nothing answers at {url}; start it with `recovery up`, or give --url\n"


def test_wrong_usage_is_status_2() -> None:
    assert run("up", "--port", "zero").returncode == 2
    assert run("fly").returncode == 2


def test_an_import_without_a_running_stack_or_storage_is_one_line(tmp_path: Path) -> None:
    result = run("import-official", "ckpt", "--data", str(tmp_path))

    assert result.returncode == 1
    assert result.stderr == (
        f"recovery: no `recovery up` runs on {tmp_path}; start one, or give the --data folder of the one that runs\n"
    )


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    result = run("up", "--data", str(tmp_path / "file"))

    assert result.returncode == 1
    assert result.stderr.startswith("recovery: ")
    assert len(result.stderr.splitlines()) == 1
