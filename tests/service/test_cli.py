"""The command: help, completion, exit statuses, one line for what went wrong, where the service is looked for."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from model.events import HealthEvent
from service.cli import application, main
from service.commands.request_options import complete_setting
from service.door.keys import Scope
from tests.servers import free_ports
from tests.service.conftest import store_model
from tests.service.serving import ROOT, Serving, with_key
from worker.jobs.kinds import JobKind
from worker.jobs.records import RecordStore
from worker.storage.artifacts import Artifacts


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, within this process: starting Python takes longer than anything else here."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", ["recovery", *arguments])
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), errors.getvalue())


def all_commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of every command, those of groups included."""
    below = getattr(command, "commands", {})
    for name, one in below.items():
        yield from all_commands(one, (*path, name))
    if not below:
        yield path, command


COMMANDS = dict(all_commands(typer.main.get_command(application)))


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
        "submit",
        "models",
        "rename",
        "delete",
        "sample",
        "calibrate",
        "tune",
        "log-density",
        "datasets",
        "serve",
        "keys",
        "doctor",
        "import-official",
        "capacity",
    ):
        assert f" {command} " in text


@pytest.mark.parametrize("arguments", [["jobs"], ["models"], ["train", "digits"], ["watch", "x"], ["datasets", "list"]])
def test_a_server_that_is_away_is_one_line_and_status_3(arguments: list[str]) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"

    result = run(*arguments, "--url", url)

    assert result.returncode == 3
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


@pytest.mark.parametrize("command", ["serve", "up"])
@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("RECOVERY_MAX_PIXELS", "many", "valid integer"),
        ("RECOVERY_SAMPLE_TIMEOUT_S", "-1", "greater than 0"),
        ("RECOVERY_SAMPLER_ROWS", "0", "greater than or equal to 1"),
    ],
)
def test_a_variable_that_cannot_be_read_is_one_line(
    command: str, variable: str, text: str, told: str, tmp_path: Path
) -> None:
    result = run(command, cwd=tmp_path, **{variable: text})

    assert result.returncode == 1
    assert result.stderr.startswith(f"recovery: the variable {variable} is wrong: ")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_not_redis_is_one_line_without_its_password() -> None:
    result = run("serve", RECOVERY_REDIS_URL="http://:hidden@cache:6379")

    assert result.returncode == 1
    assert "RECOVERY_REDIS_URL" in result.stderr
    assert "redis://" in result.stderr
    assert "hidden" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    result = run("up", "--data", str(tmp_path / "file"))

    assert result.returncode == 1
    assert result.stderr.startswith("recovery: ")
    assert len(result.stderr.splitlines()) == 1


def test_every_command_but_serve_prints_json_when_asked() -> None:
    without = [words for words, command in COMMANDS.items() if "--json" not in _options(command)]

    assert without == [("serve",)]


def _options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_of_the_help_are_commands_that_parse(words: tuple[str, ...], tmp_path: Path) -> None:
    lines = [line.strip() for line in (COMMANDS[words].epilog or "").splitlines() if "recovery " in line]
    for name in ("pictures", "a.png", "b.png", "points.npy", "points.csv"):
        (tmp_path / name).touch()

    for line in lines:
        given = line.partition("recovery ")[2].partition("  ")[0].partition(" | ")[0].split()
        arguments = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in given[len(words) :]]
        assert tuple(given[: len(words)]) == words
        COMMANDS[words].make_context(words[-1], arguments)


def test_the_shell_is_told_how_a_word_goes_on() -> None:
    def told(**environment: str) -> str:
        command = [str(Path(sys.executable).with_name("recovery"))]
        found = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
        )
        return found.stdout

    # what --show-completion prints in bash; the option itself asks which shell the test runs in, if any
    assert "_RECOVERY_COMPLETE=complete_bash" in told(_RECOVERY_COMPLETE="source_bash")
    words = {"_TYPER_COMPLETE_ARGS": "recovery train den", "COMP_WORDS": "recovery train den", "COMP_CWORD": "2"}
    assert told(_RECOVERY_COMPLETE="complete_bash", **words).split() == ["density-2d", "density-digits"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of its own: the developer's configuration must not decide."""
    return tmp_path_factory.mktemp("home")


def place(home: Path, cwd: Path, *arguments: str, **environment: str) -> str:
    """The address that is asked."""
    known = {"XDG_CONFIG_HOME": str(home), **environment}
    told = run("jobs", *arguments, cwd=cwd, **known)
    assert told.returncode == 3, told.stderr
    return told.stderr.partition("answers at ")[2].partition(";")[0]


def test_the_address_is_given_or_of_the_environment_or_of_the_file_or_of_the_folder(home: Path, tmp_path: Path) -> None:
    ports = free_ports(4)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    (tmp_path / "recovery-data").mkdir()
    (tmp_path / "recovery-data" / "endpoint.json").write_text(json.dumps({"url": urls[3]}))
    assert place(home, tmp_path) == urls[3]

    (home / "recovery").mkdir()
    (home / "recovery" / "config.toml").write_text(f'url = "{urls[2]}"\n')
    assert place(home, tmp_path) == urls[2]
    assert place(home, tmp_path, RECOVERY_URL=urls[1]) == urls[1]
    assert place(home, tmp_path, "--url", urls[0], RECOVERY_URL=urls[1]) == urls[0]


def test_a_job_is_shown_with_its_verdict_in_words(
    environment: dict[str, str], store: RecordStore, tmp_path: Path
) -> None:
    job_id = store.create(JobKind.train, {"config": {}}).id
    lease = store.acquire_lease(job_id, "a worker")
    assert lease is not None
    store.report_health(lease, HealthEvent(step=100, level="red", reason="0.02 (level 0)", remedy="a shorter step"))
    with Serving(environment, tmp_path / "log") as serving:
        shown = run("jobs", job_id, "--url", serving.url, COLUMNS="200")

    assert "red: 0.02 (level 0) — a shorter step" in shown.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [("url = ", "expected TOML with url and api_key"), ("server = 'x'", "has 'server'; expected only")],
)
def test_a_configuration_file_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "recovery").mkdir()
    (tmp_path / "recovery" / "config.toml").write_text(text)

    result = run("jobs", XDG_CONFIG_HOME=str(tmp_path))

    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert told in result.stderr


def test_the_key_of_the_file_goes_to_the_address_of_the_file_only(environment: dict[str, str], tmp_path: Path) -> None:
    guarded, key = with_key(environment, tmp_path / "keys.json", Scope.read)
    (tmp_path / "recovery").mkdir()
    with Serving(guarded, tmp_path / "log") as serving:
        (tmp_path / "recovery" / "config.toml").write_text(f'url = "{serving.url}"\napi_key = "{key}"\n')
        known: dict[str, Any] = {"XDG_CONFIG_HOME": str(tmp_path)}
        by_file = run("jobs", "--json", **known)
        same_server_other_name = run("jobs", "--url", serving.url.replace("127.0.0.1", "localhost"), **known)
        by_variable = run("jobs", "--json", "--url", serving.url, RECOVERY_API_KEY=key, XDG_CONFIG_HOME="/nowhere")

    assert (by_file.returncode, json.loads(by_file.stdout)) == (0, [])
    assert (by_variable.returncode, json.loads(by_variable.stdout)) == (0, [])
    assert same_server_other_name.returncode == 1
    assert "this service needs a key" in same_server_other_name.stderr


def test_an_option_has_the_range_of_its_field() -> None:
    refused = [run("train", "--steps", "0"), run("train", "--device", "tpu"), run("train", "--batch-size", "large")]
    told = run("train", "--help", COLUMNS="200").stdout

    assert [one.returncode for one in refused] == [2, 2, 2]
    assert "1<=x<=100000000" in refused[0].stderr
    assert "'auto', 'cpu', 'cuda'" in refused[1].stderr
    assert "'large' is no number, nor auto" in refused[2].stderr
    assert "All training steps; the phases keep their shares" in told
    assert "<auto|cpu|cuda>" in told


def test_the_command_passes_on_the_options_that_were_given_and_no_other(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with Serving(environment, tmp_path / "log") as serving:
        known: dict[str, Any] = {"RECOVERY_URL": serving.url}
        words = [
            "--steps",
            "44",
            "--batch-size",
            "auto",
            "--no-calibrate",
            "--name",
            "small",
            "--set",
            "chain.num_steps=3",
        ]
        made = json.loads(run("train", "density-2d", "--json", *words, **known).stdout)
        wrong = run("train", "--set", "chain.stepsize=3", **known)

    config = made["config"]
    assert (config["steps"], config["batch_size"], config["calibrate"], made["name"]) == (44, "auto", False, "small")
    assert (config["chain"]["num_steps"], config["checkpoint_every"], made["device"]) == (3, 1000, "auto")
    assert wrong.returncode == 1
    assert "body.config.chain.stepsize: unknown field chain.stepsize; expected one of kernel" in wrong.stderr


def test_a_field_below_one_that_was_set_to_a_value_is_wrong_usage() -> None:
    result = run("train", "--set", "chain=3", "--set", "chain.num_steps=8")

    assert result.returncode == 2
    assert "names a field of chain" in result.stderr


def test_the_fields_of_a_configuration_are_completed_with_what_they_mean() -> None:
    found = dict(complete_setting("chain.num"))

    assert list(found) == ["chain.num_steps="]
    assert found["chain.num_steps="].startswith("K, the number of steps of a chain")
    assert {"steps=", "schedule.kind="} <= dict(complete_setting("s")).keys()


def test_models_and_jobs_are_deleted_after_a_question_and_models_renamed(
    environment: dict[str, str], tmp_path: Path, s3: Artifacts
) -> None:
    model_id = store_model(s3, tmp_path, "digits")
    with Serving(environment, tmp_path / "log") as serving:
        known: dict[str, Any] = {"RECOVERY_URL": serving.url}
        renamed = run("rename", "tests", "wide", "--tag", "paper", "--tag", "seed 0", **known)
        listed = run("models", "--json", **known)
        unanswered = run("delete", "model", "wide", **known)
        job_id = run("train", "digits", **known).stdout.strip()
        running = run("delete", "job", job_id, "--yes", **known)
        run("cancel", job_id, **known)
        deleted = [run("delete", "job", job_id, "-y", **known), run("delete", "model", "wide", "-y", **known)]
        again = run("delete", "model", model_id, "-y", **known)

    assert renamed.stdout == "wide · paper · seed 0\n"
    assert [model["tags"] for model in json.loads(listed.stdout)] == [["paper", "seed 0"]]
    assert (unanswered.returncode, "Delete model wide: 1 checkpoints" in unanswered.stderr) == (1, True)
    assert (running.returncode, "cancel it first" in running.stderr) == (1, True)
    assert [one.stdout for one in deleted] == [f"deleted {job_id}\n", f"deleted {model_id}\n"]
    assert again.returncode == 1
    assert list(s3.list_keys("models/")) == []
    assert run("rename", "wide").returncode == 2
