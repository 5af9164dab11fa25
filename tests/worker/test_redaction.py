"""Secrets out of texts: those this process knows, and those that look like one."""

from __future__ import annotations

import pytest

from worker.observe import redaction
from worker.observe.redaction import hide, redact, redact_all
from worker.settings import Settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"key rk_abcd2345_{'x' * 43} here", "key rk_abcd2345_[hidden] here"),
        ("redis://:p4ss@host:6379/0", "redis://[hidden]@host:6379/0"),
        ("at https://user:p%40ss@host/x, and", "at https://[hidden]@host/x, and"),
        ("a password with an at: redis://:p@ss@host/0", "a password with an at: redis://[hidden]@host/0"),
        ("{'authorization': 'Bearer abc.def-123456'}", "{'authorization': 'Bearer [hidden]'}"),
        ("GET /x?X-Amz-Signature=abc123&y=1", "GET /x?X-Amz-Signature=[hidden]&y=1"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "GET /jobs lists them; send it as `Authorization: Bearer KEY`",
        "https://host:8000/docs and mail@example.org",
        "a basic understanding of bearer tokens",
        "checkpoint 01JD3Z6M3QMDE0N5K7C2B8F4GH@2000 of step 2000",
    ],
)
def test_other_words_stay(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_the_settings_are_hidden_in_every_way_of_writing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())
    settings = Settings(redis_url="redis://:pa%2Fss-word@host/0", s3_secret_key='quo"te/and+plus')  # type: ignore[arg-type]
    hide(settings.secrets())

    for text in ("pa/ss-word", "pa%2Fss-word", 'quo"te/and+plus', 'quo\\"te/and+plus', "quo%22te%2Fand%2Bplus"):
        assert redact(f"<{text}>") == "<[hidden]>"


def test_short_secrets_do_not_blank_out_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())
    hide(["", "a", "jobs"])

    assert redact("GET /jobs") == "GET /jobs"


def test_data_keep_their_form() -> None:
    data = {"a": [1, None, "redis://:secret@host"], "b": {"c": True}}

    assert redact_all(data) == {"a": [1, None, "redis://[hidden]@host"], "b": {"c": True}}
