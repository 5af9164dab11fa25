"""Secrets out of texts that others read: log lines, errors, events.

Two nets: the secrets this process was started with, word for word, and the forms that secrets have anywhere.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterable
from typing import Any

HIDDEN = "[hidden]"
_MIN_LENGTH = 6
"""A shorter secret would blank out ordinary words."""
_FORMS = (
    # An API key; its id stays, it is what names the key.
    (re.compile(r"\b(rk_[a-z0-9]{8}_)[A-Za-z0-9_-]{16,}"), rf"\1{HIDDEN}"),
    # Credentials in a URL.
    (re.compile(r"(?<=://)[^/\s@\"'<>]*:[^/\s\"'<>]*(?=@)"), HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)(?=\S*[0-9_~+/=-])[A-Za-z0-9._~+/=-]{12,}"), rf"\1\2{HIDDEN}"),
    # Presigned S3 addresses.
    (re.compile(r"(?i)(x-amz-(?:signature|credential|security-token)=)[^&\s\"']+"), rf"\1{HIDDEN}"),
)
_known: set[str] = set()


def hide(secrets: Iterable[str]) -> None:
    """Have `redact` remove these from now on, for the life of the process, in each way they may be written."""
    for secret in secrets:
        if len(secret) >= _MIN_LENGTH:
            _known.update((secret, json.dumps(secret)[1:-1], urllib.parse.quote(secret, safe=""), repr(secret)[1:-1]))


def redact(text: str) -> str:
    """The text with secrets replaced."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for form, replacement in _FORMS:
        text = form.sub(replacement, text)
    return text


def redact_all(value: Any) -> Any:
    """JSON-like data with secrets replaced in every text."""
    match value:
        case str():
            return redact(value)
        case dict():
            return {key: redact_all(item) for key, item in value.items()}
        case list() | tuple():
            return [redact_all(item) for item in value]
        case _:
            return value
