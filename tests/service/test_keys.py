"""API keys: what is kept of them, who they are known by, and how the command makes and revokes them."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.door.keys import Key, KeyFile, KeysError, Scope, matching


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    """A file that is not there yet."""
    return KeyFile(tmp_path / "keys.json")


def test_only_a_hash_is_kept_for_the_owner_alone(file: KeyFile) -> None:
    text, key = file.create("laptop", [Scope.read, Scope.sample])

    stored = file.path.read_text()
    assert text not in stored
    assert text.split("_", 2)[2] not in stored
    assert json.loads(stored)["keys"][0]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.read() == (key,)
    assert key.sha256 not in repr(key)


def test_a_key_is_known_by_its_whole_text_only(file: KeyFile) -> None:
    text, key = file.create("a", [Scope.read])
    other, _ = file.create("b", [Scope.read])
    secret = other.split("_", 2)[2]

    assert matching(file.read(), text) == key
    for wrong in ("", "rk_", key.id, text[:-1], text + "x", text.upper(), f"rk_{key.id}_", f"rk_{key.id}_{secret}"):
        assert matching(file.read(), wrong) is None


def test_admin_may_everything_and_others_only_what_they_were_given(file: KeyFile) -> None:
    _, admin = file.create("a", [Scope.admin])
    _, reader = file.create("b", [Scope.read])

    assert all(admin.allows(scope) for scope in Scope)
    assert [scope for scope in Scope if reader.allows(scope)] == [Scope.read]


def test_a_revoked_key_is_gone_and_the_others_stay(file: KeyFile) -> None:
    text, key = file.create("a", [Scope.read])
    _, stays = file.create("b", [Scope.read])

    assert file.revoke(key.id) == key
    assert file.read() == (stays,)
    assert matching(file.read(), text) is None
    with pytest.raises(KeysError, match="keys list"):
        file.revoke(key.id)


def test_keys_made_at_once_are_all_kept(file: KeyFile) -> None:
    with ThreadPoolExecutor(8) as pool:
        made: list[Key] = [key for _, key in pool.map(lambda n: file.create(str(n), [Scope.read]), range(24))]

    assert {key.id for key in file.read()} == {key.id for key in made}


@pytest.mark.parametrize("content", ["", "{", '{"version": 2}', '{"keys": [{"id": "x"}]}', "\udcff"])
def test_a_damaged_file_is_an_error_that_says_so_not_a_file_without_keys(file: KeyFile, content: str) -> None:
    file.path.write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(KeysError, match="no file of keys"):
        file.read()


def test_a_key_needs_a_name_and_a_scope(file: KeyFile) -> None:
    for name, scopes in (("", [Scope.read]), ("x" * 101, [Scope.read]), ("a", [])):
        with pytest.raises(KeysError, match="needs a name"):
            file.create(name, scopes)
    assert not file.path.exists()


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", "keys", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_makes_lists_and_revokes(file: KeyFile) -> None:
    at = ("--file", str(file.path))
    made = _run("create", "laptop", "--scope", "read", "--scope", "train", *at)
    text = made.stdout.strip()
    key = matching(file.read(), text)
    assert key is not None
    assert key.scopes == (Scope.read, Scope.train)
    assert text not in made.stderr

    listed = _run("list", *at).stdout
    assert key.id in listed
    assert "laptop" in listed
    assert text.split("_", 2)[2] not in listed

    assert _run("revoke", key.id, *at).stdout == f"revoked {key.id} (laptop)\n"
    again = _run("revoke", key.id, *at)
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    assert file.read() == ()
