"""API keys, which are made and shown once, and the file that keeps their hashes.

A key is `rk_ID_SECRET`. The id is public and names the key in logs; the secret has 256 bits, so a plain sha256 is
enough: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.foreseen import ForeseenError

_PREFIX = "rk"
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 8
_SECRET_BYTES = 32
_NOBODY = hashlib.sha256(b"").hexdigest()


class Scope(StrEnum):
    """A scope, which says what a key allows its holder to do."""

    read = "read"
    """Look at everything."""
    sample = "sample"
    """Draw samples and score data."""
    train = "train"
    """Start, stop and resume jobs; bring data."""
    admin = "admin"
    """Do everything, including deletion."""


class KeysError(ForeseenError):
    """The keys could not be read or changed. The one sentence says why, and what to do."""


class Key(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=rf"^[{_ID_ALPHABET}]{{{_ID_LENGTH}}}$")
    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    """The hash of the whole text of the key."""
    scopes: tuple[Scope, ...] = Field(min_length=1)
    created_at: datetime

    def allows(self, scope: Scope) -> bool:
        """Say whether the key has the scope, or `admin`."""
        return scope in self.scopes or Scope.admin in self.scopes


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()


class KeyFile:
    """All keys of a service in one JSON file, which one process at a time changes whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[Key, ...]:
        """Return every key, or none when there is no file. Raises KeysError for a file that cannot be read."""
        try:
            return _Content.model_validate_json(self.path.read_bytes()).keys
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise KeysError(
                f"the keys in {self.path} cannot be read ({error.strerror}); give this user access"
            ) from error
        except ValidationError as error:
            raise KeysError(
                f"{self.path} is no file of keys ({error.error_count()} mistakes); "
                "restore it, or remove it and make new keys"
            ) from error

    def create(self, name: str, scopes: Sequence[Scope]) -> tuple[str, Key]:
        """Make a key; return its text, which cannot be had again, and the part of it that is kept. Raises KeysError."""
        key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
        text = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        try:
            made = Key(
                id=key_id,
                name=name,
                sha256=_digest(text),
                scopes=tuple(sorted(set(scopes), key=list(Scope).index)),
                created_at=datetime.now(UTC).replace(microsecond=0),
            )
        except ValidationError:
            raise KeysError("a key needs a name of 1 to 100 characters and at least one scope") from None
        with self._changing():
            self._write((*self.read(), made))
        return text, made

    def revoke(self, key_id: str) -> Key:
        """Remove a key and return it; the service refuses it from its next request on. Raises KeysError."""
        with self._changing():
            keys = self.read()
            found = [key for key in keys if key.id == key_id]
            if not found:
                raise KeysError(f"there is no key {key_id!r} in {self.path}; `recovery keys list` shows their ids")
            self._write(tuple(key for key in keys if key.id != key_id))
        return found[0]

    def _write(self, keys: tuple[Key, ...]) -> None:
        write_private(self.path, _Content(keys=keys).model_dump_json(indent=1) + "\n")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock of the file, because two commands at once would lose one of two keys."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def matching(keys: Sequence[Key], text: str) -> Key | None:
    """Return the key that has this text, or None.

    The time that it takes does not depend on how much of a wrong secret is right.
    """
    key_id = text.removeprefix(f"{_PREFIX}_").partition("_")[0]
    named = next((key for key in keys if key.id == key_id), None)
    # An unknown id takes the same comparison.
    same = hmac.compare_digest(_digest(text), named.sha256 if named else _NOBODY)
    return named if same else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_private(path: Path, text: str) -> None:
    """Write the file whole or not at all; only its owner can read it, from its first byte on."""
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)
