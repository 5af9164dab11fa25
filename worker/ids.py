"""Identifiers: ULIDs, checked by a pattern before they become part of a storage key."""

from __future__ import annotations

import re

from ulid import ULID

ULID_PATTERN = r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
_ULID = re.compile(ULID_PATTERN.removesuffix("$") + r"\Z")


class InvalidId(ValueError):
    """A text that is not an id."""


def new_id() -> str:
    """A fresh id; later ones sort after earlier ones."""
    return str(ULID())


def checked_id(text: str) -> str:
    """`text` itself when it is an id. Raises InvalidId."""
    if not _ULID.match(text):
        raise InvalidId(f"{text[:40]!r} is not an id; expected the 26 characters of a ULID")
    return text
