"""The door: which key may do what, and that nothing but this machine is served without keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.door.keys import KeyFile, Scope
from service.door.security import FILES_PREFIX, OPEN_PATHS, is_loopback
from service.settings import ServiceSettings
from worker.ids import new_id

ABSENT = "01JD3Z6M3Q4R5S6T7V8W9X0Y1Z"
"""An id that nothing has; always the same, so that every process that collects the tests names them alike."""


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    """Where the application looks for keys."""
    return KeyFile(tmp_path / "keys.json")


@pytest.fixture
def make_key(file: KeyFile) -> Callable[..., dict[str, str]]:
    """Headers with a new key of some scopes."""

    def make(*scopes: Scope) -> dict[str, str]:
        return {"Authorization": f"Bearer {file.create('tests', scopes)[0]}"}

    return make


@pytest.fixture
def guarded(service_settings: ServiceSettings, file: KeyFile) -> Iterator[TestClient]:
    """A client of an application that looks for keys there."""
    settings = service_settings.model_copy(update={"keys_file": file.path})
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def problem(answer: Any) -> tuple[int, str]:
    """Status and kind."""
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].rpartition(":")[2]


def test_without_a_key_only_probes_and_documentation_are_served(
    guarded: TestClient, make_key: Callable[..., dict[str, str]]
) -> None:
    make_key(Scope.read)

    for path in ("/jobs", "/models", "/metrics", "/nowhere", f"/jobs/{new_id()}/events"):
        answer = guarded.get(path)
        assert problem(answer) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="recovery"'
    for path in (OPEN_PATHS | {f"{FILES_PREFIX}/main.js"}) - {"/readyz"}:
        assert guarded.get(path).status_code == 200
    assert guarded.get("/readyz").status_code == 503  # no worker here, but an answer


def test_an_unknown_key_is_told_from_none(guarded: TestClient, make_key: Callable[..., dict[str, str]]) -> None:
    make_key(Scope.read)

    answer = guarded.get("/jobs", headers={"Authorization": f"Bearer rk_abcdefgh_{'x' * 43}"})

    assert problem(answer) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].endswith('error="invalid_token"')


@pytest.mark.parametrize("given", ["Basic abc", "Bearer", "Bearer ", "rk_x", "bearer\ttoken", "Bearer \xff\xfe"])
def test_other_forms_of_authorization_are_refused(
    guarded: TestClient, make_key: Callable[..., dict[str, str]], given: str
) -> None:
    make_key(Scope.read)

    assert problem(guarded.get("/jobs", headers=[(b"Authorization", given.encode("latin-1"))]))[0] == 401


@pytest.mark.parametrize(
    ("scope", "method", "path"),
    [
        (Scope.read, "GET", "/jobs"),
        (Scope.read, "GET", "/metrics"),
        (Scope.sample, "POST", "/sample"),
        (Scope.sample, "POST", "/log-density"),
        (Scope.train, "POST", "/jobs/train"),
        (Scope.train, "POST", "/jobs/calibrate"),
        (Scope.train, "POST", f"/jobs/{ABSENT}/cancel"),
        (Scope.train, "POST", "/datasets"),
        (Scope.admin, "DELETE", f"/models/{ABSENT}"),
    ],
)
def test_a_key_opens_what_its_scope_names_and_nothing_else(
    guarded: TestClient, make_key: Callable[..., dict[str, str]], scope: Scope, method: str, path: str
) -> None:
    others = make_key(*(other for other in Scope if other not in (scope, Scope.admin)))

    refused = guarded.request(method, path, headers=others)
    let_in = guarded.request(method, path, headers=make_key(scope))
    as_admin = guarded.request(method, path, headers=make_key(Scope.admin))

    assert problem(refused) == (403, "missing-scope")
    assert f"lacks the scope `{scope}`" in refused.json()["detail"]
    assert f'scope="{scope}"' in refused.headers["WWW-Authenticate"]
    assert let_in.status_code not in (401, 403)
    assert as_admin.status_code not in (401, 403)


def test_every_operation_needs_a_scope_or_is_open_on_purpose(service_settings: ServiceSettings) -> None:
    document = create_app(service_settings).openapi()
    needed = {
        (method, path): operation.get("security")
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }

    assert {path for (_, path), security in needed.items() if security is None} == {"/healthz", "/readyz"}
    assert needed["post", "/sample"] == [{"key": ["sample"]}]
    assert needed["post", "/jobs/{job_id}/cancel"] == [{"key": ["train"]}]


def test_nothing_of_a_body_is_read_before_the_key(guarded: TestClient, make_key: Callable[..., dict[str, str]]) -> None:
    make_key(Scope.read)
    read = []

    def pieces() -> Iterator[bytes]:
        read.append(True)
        yield b"not even JSON"

    assert problem(guarded.post("/jobs/train", content=pieces()))[0] == 401


def test_keys_come_into_force_and_are_revoked_while_the_service_runs(guarded: TestClient, file: KeyFile) -> None:
    assert guarded.get("/jobs").status_code == 200

    text, key = file.create("tests", [Scope.read])
    headers = {"Authorization": f"Bearer {text}"}
    assert problem(guarded.get("/jobs"))[0] == 401
    assert guarded.get("/jobs", headers=headers).status_code == 200

    file.revoke(key.id)
    assert problem(guarded.get("/jobs", headers=headers))[0] == 401


def test_losing_the_file_or_its_sense_closes_the_door(
    guarded: TestClient, make_key: Callable[..., dict[str, str]], file: KeyFile
) -> None:
    headers = make_key(Scope.admin)
    assert guarded.get("/jobs", headers=headers).status_code == 200

    file.path.write_text("{")
    assert problem(guarded.get("/jobs", headers=headers)) == (503, "keys-unavailable")
    file.path.unlink()
    assert problem(guarded.get("/jobs", headers=headers)) == (401, "unauthorized")


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8000", "192.0.2.7", "[2001:db8::1]:8000"])
def test_without_keys_a_foreign_name_is_refused(guarded: TestClient, name: str) -> None:
    answer = guarded.get("/jobs", headers={"Host": name})

    assert problem(answer) == (403, "keys-needed")
    assert "recovery keys create" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["localhost", "localhost:8000", "127.0.0.1:8000", "127.8.9.1", "[::1]:8000"])
def test_without_keys_this_machine_is_served(guarded: TestClient, name: str) -> None:
    assert guarded.get("/jobs", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_what_counts_as_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"},
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": "http://testserver:81"},
    ],
)
def test_without_keys_a_foreign_web_page_changes_nothing(client: TestClient, headers: dict[str, str]) -> None:
    """Such a page could send a form, or a body that claims to be text, to 127.0.0.1."""
    for path in (f"/jobs/{new_id()}/cancel", "/datasets", "/jobs/train"):
        answer = client.post(path, headers=headers)
        assert problem(answer) == (403, "foreign-page")
    assert client.get("/jobs", headers=headers).status_code == 200  # which the browser does not show to that page


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://elsewhere"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://testserver"},
    ],
)
def test_programs_and_the_own_page_give_orders(client: TestClient, headers: dict[str, str]) -> None:
    assert problem(client.post(f"/jobs/{new_id()}/cancel", headers=headers)) == (404, "unknown-job")


def test_with_a_key_it_does_not_matter_where_an_order_comes_from(
    guarded: TestClient, make_key: Callable[..., dict[str, str]]
) -> None:
    """A browser adds no key by itself, so whoever sends one was given it."""
    headers = make_key(Scope.train) | {"Sec-Fetch-Site": "cross-site"}

    assert problem(guarded.post(f"/jobs/{new_id()}/cancel", headers=headers)) == (404, "unknown-job")
