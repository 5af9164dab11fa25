"""Content negotiation by RFC 9110."""

from __future__ import annotations

import pytest

from service.http.accept import preferred

OFFERED = ("image/png", "application/zip", "application/json")


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (None, "image/png"),
        ("", "image/png"),
        ("*/*", "image/png"),
        ("application/json", "application/json"),
        ("APPLICATION/JSON; charset=utf-8", "application/json"),
        ("application/*", "application/zip"),
        ("image/png;q=0.5, application/zip", "application/zip"),
        ("*/*;q=0.1, application/json;q=0.2", "application/json"),
        ("*/*, image/png;q=0", "application/zip"),
        ("text/html, */*;q=0.8", "image/png"),
        ("text/html", None),
        ("image/png;q=0", None),
        ("application/json;q=nonsense", None),
        (";;,,=", None),
    ],
)
def test_the_most_wanted_offered_type_is_chosen(header: str | None, chosen: str | None) -> None:
    assert preferred(header, OFFERED) == chosen
