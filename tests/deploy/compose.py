"""docker-compose.yml as Docker reads it: anchors merged, variables filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
DEV_ENVIRONMENT = ROOT / "deploy" / "dev.env"
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[?-])(?P<rest>[^}]*))?\}")


class MissingVariable(Exception):
    """What Docker refuses to start with; its message is ours."""


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """`${NAME:?message}` and `${NAME:-default}` replaced. Raises MissingVariable."""

    def value(found: re.Match[str]) -> str:
        given = environment.get(found["name"], "")
        if given:
            return given
        if found["kind"] == "?":
            raise MissingVariable(f"{found['name']}: {found['rest']}")
        return found["rest"] or ""

    return _VARIABLE.sub(value, text)


def parsed(environment: Mapping[str, str]) -> dict[str, Any]:
    """The whole file."""
    found: dict[str, Any] = yaml.safe_load(interpolated(FILE.read_text(), environment))
    return found


def read_environment(path: Path) -> dict[str, str]:
    """An env file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def variables() -> dict[str, str | None]:
    """Names that the file asks for, each with its default; None where it must be given."""
    found = _VARIABLE.finditer(FILE.read_text())
    return {match["name"]: None if match["kind"] == "?" else match["rest"] or "" for match in found}
