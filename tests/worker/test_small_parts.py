"""Settings, datasets, pictures, presence, the broker's settings and metrics: a few lines each."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError
from tests.servers import wait_until
from worker.datasets.names import resolve_dataset
from worker.ids import new_id
from worker.jobs.kinds import JobKind
from worker.jobs.records import RecordStore
from worker.observe.presence import Presence, WorkerReport, live_workers, worker_reports
from worker.pictures import picture_of
from worker.queue.broker import make_app, send_request, wake
from worker.queue.tasks import SampleRequest
from worker.redis_keys import SAMPLE_QUEUE, TRAIN_QUEUE
from worker.settings import Settings
from worker.trainer.exits import Exit, death_in_words, read_outcome, write_outcome


def test_settings_come_from_the_environment_and_do_not_show_secrets(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], settings: Settings
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RECOVERY_REDIS_URL", "redis://:hunter2@host/0")
    read = Settings()
    assert read == settings.model_copy(update={"redis_url": "redis://:hunter2@host/0"})
    assert read.s3_secret_key is not None
    for secret in ("hunter2", read.s3_secret_key.get_secret_value()):
        assert secret not in repr(read)
        assert secret not in str(read)


def test_a_lease_is_renewed_three_times_before_it_runs_out() -> None:
    assert Settings(lease_s=3, heartbeat_s=60).renew_every_s == 1


def test_a_dataset_is_a_built_in_one_or_a_path_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "mine.npy").write_bytes(b"")
    (tmp_path / "secret.npy").write_bytes(b"")
    (tmp_path / "sets" / "link.npy").symlink_to(tmp_path / "secret.npy")
    assert resolve_dataset("digits", None) == "digits"
    assert resolve_dataset("mine.npy", tmp_path / "sets") == str(tmp_path / "sets" / "mine.npy")
    for name in ("absent.npy", "../secret.npy", str(tmp_path / "secret.npy"), "link.npy", "", ".", "a\0b", "x" * 5000):
        with pytest.raises(DataError):
            resolve_dataset(name, tmp_path / "sets")
    with pytest.raises(DataError, match="digits"):
        resolve_dataset("mine.npy", None)


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (4, 3, 6, 5), (2, 5, 6, 5), (9, 2), (9, 1), (3, 7), (2, 1, 30, 4)])
def test_samples_of_any_shape_have_a_picture(shape: tuple[int, ...]) -> None:
    samples = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert Image.open(io.BytesIO(picture_of(samples))).width > 200


def test_a_training_on_images_with_alpha_is_shown_as_images_with_alpha() -> None:
    samples = np.stack([np.full((4, 8, 8), value, np.float32) for value in (-1, 0.5)])
    samples[:, 3] = 1
    picture = Image.open(io.BytesIO(picture_of(samples)))
    scale = picture.width // 17
    assert (picture.mode, picture.size) == ("RGBA", (17 * scale, 8 * scale))
    assert [picture.getpixel((x * scale, scale)) for x in (1, 10)] == [(0, 0, 0, 255), (191, 191, 191, 255)]


def test_images_of_two_channels_are_shown_as_two_grey_ones_side_by_side() -> None:
    samples = np.stack([np.full((8, 8), value, np.float32) for value in (-1, 1)])[None]
    picture = Image.open(io.BytesIO(picture_of(samples)))
    scale = picture.width // 16
    assert [picture.getpixel((x * scale, scale)) for x in (3, 12)] == [0, 255]


def test_a_grid_shows_the_images_row_by_row() -> None:
    images = np.linspace(-1, 1, 4, dtype=np.float32).reshape(4, 1, 1, 1) * np.ones((4, 1, 8, 8), np.float32)
    picture = Image.open(io.BytesIO(picture_of(images)))
    scale = picture.width // 17
    corners = [picture.getpixel((x * 9 * scale + scale, y * 9 * scale + scale)) for y in (0, 1) for x in (0, 1)]
    assert corners == [0, 85, 170, 255]


def test_a_worker_is_alive_until_it_leaves_or_falls_silent(store: RecordStore) -> None:
    presence = Presence(store.redis, ["train", "sample"], "both@host", every_s=0.1)
    presence.start()
    store.redis.set("worker:train:silent@host", "", px=1)
    assert live_workers(store.redis) in ({"train": 1, "sample": 1}, {"train": 2, "sample": 1})
    reports = {(kind, name): report for kind, name, report in worker_reports(store.redis)}
    presence.stop()
    wait_until(lambda: live_workers(store.redis) == {}, "silence")

    said = reports["train", "both@host"]
    assert reports["sample", "both@host"] == said
    assert said.version is not None
    assert abs(said.clock_ahead_s or 0) < 1
    assert reports.get(("train", "silent@host"), WorkerReport()) == WorkerReport()


def test_messages_are_json_named_by_their_job_and_carry_only_its_id(store: RecordStore, settings: Settings) -> None:
    job_id = new_id()
    with make_app(settings) as app:
        wake(app, JobKind.train, job_id)
        request = SampleRequest(request_id=new_id(), model_id=new_id(), num_images=1, seed=0, deadline=1)
        send_request(app, request)
        body, headers = _only_message(store, TRAIN_QUEUE)
        assert (body[0], body[1], headers["id"]) == ([job_id], {}, job_id)
        body, _ = _only_message(store, SAMPLE_QUEUE)
        assert SampleRequest.model_validate(body[0][0]) == request
        assert app.conf.accept_content == ["json"]
        assert app.conf.worker_disable_prefetch


def _only_message(store: RecordStore, queue: str) -> tuple[Any, dict[str, Any]]:
    (packed,) = store.redis.lrange(queue, 0, -1)
    message = json.loads(packed)
    assert message["content-type"] == "application/json"
    return json.loads(base64.b64decode(message["body"])), message["headers"]


def test_a_reason_left_by_a_training_is_read_and_none_is_none(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) == (None, None)
    write_outcome(tmp_path, Exit.failed, "no “dataset”")
    assert read_outcome(tmp_path) == (Exit.failed, "no “dataset”")
    assert read_outcome(tmp_path, rank=1) == (None, None)


def test_a_death_by_signal_is_told_in_words() -> None:
    assert death_in_words(signal.SIGKILL).endswith(
        "killed by SIGKILL, most likely because the machine ran out of memory"
    )
    assert "SIGSEGV" in death_in_words(signal.SIGSEGV)
    assert "signal 63" in death_in_words(63)


def test_logs_are_json_lines_with_libraries_in_the_same_form() -> None:
    code = (
        "from worker.observe.logs import configure_logging; configure_logging(); import logging, structlog;"
        "structlog.get_logger('a').info('ours', step=1); logging.getLogger('b').warning('theirs %s', 2)"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["ours", "theirs 2"]
