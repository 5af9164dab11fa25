"""What there is: series in the code, names in expressions, rows of deploy/METRICS.md, expressions of dashboards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from service.http import metrics as service_metrics
from worker.observe import gpu_metrics, series
from worker.observe import metrics as worker_metrics
from worker.observe.series import Series, declared
from worker.sampler import metrics as sampler_metrics
from worker.trainer import metrics

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "recovery.yml"
MODULES = (service_metrics, worker_metrics, sampler_metrics, metrics, gpu_metrics, series)
_NAME = re.compile(r"\b(?:recovery|process)[_:][a-z0-9_:]*")
_LABELS_OF_SCRAPES = {"instance", "job"}


def series_in_code() -> dict[str, Series]:
    """Everything that any process exports, by name."""
    processes = [
        Series(_scraped_name(family.name, family.type), family.type, family.documentation)  # type: ignore[arg-type]
        for family in ProcessCollector(registry=CollectorRegistry()).collect()
    ]
    return {found.name: found for found in [*processes, *declared(MODULES)]}


def _scraped_name(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def names_in(expr: str) -> set[str]:
    """Series and recording rules that an expression names; a histogram by its own name."""
    known = series_in_code()
    found = set()
    for name in _NAME.findall(_without_values(expr)):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        found.add(base if base in known and known[base].kind == "histogram" else name)
    return found


def _without_values(expr: str) -> str:
    """Label values may be anything; only that of `__name__` names series."""
    return re.sub(r'(__name__=~)?"[^"]*"', lambda found: found[0] if found[1] else '""', expr)


def labels_in(expr: str) -> set[str]:
    """Labels that an expression selects or groups by."""
    grouped = re.findall(r"\b(?:by|on|without|group_left)\s*\(([^()]*)\)", expr)
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expr)
    names = {name.strip() for group in grouped for name in group.split(",")} | set(selected)
    return names - {"", "le", "__name__"} - _LABELS_OF_SCRAPES


@dataclass(frozen=True)
class Rule:
    """One of the rules file."""

    name: str
    expr: str
    alert: dict[str, Any] | None


def rules() -> list[Rule]:
    """All of them, in order."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [
        Rule(rule.get("record") or rule["alert"], rule["expr"], rule if "alert" in rule else None)
        for group in groups
        for rule in group["rules"]
    ]


def dashboards() -> dict[str, dict[str, Any]]:
    """The JSON files, by name."""
    return {
        path.stem: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    }


@dataclass(frozen=True)
class Shown:
    """An expression that a dashboard shows."""

    dashboard: str
    panel: str
    expr: str


def shown() -> Iterator[Shown]:
    """Of every panel of every dashboard, and what their variables list."""
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield Shown(name, panel["title"], target["expr"])


def variables() -> dict[str, tuple[str, str]]:
    """(series, label) that a dashboard's variable takes its values from, by the variable's name."""
    found = {}
    for dashboard in dashboards().values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
                assert match is not None, variable["definition"]
                found[variable["name"]] = (match[1], match[2])
    return found


@dataclass(frozen=True)
class Documented:
    """A row of METRICS.md."""

    kind: str
    labels: frozenset[str]
    meaning: str


def documented() -> dict[str, Documented]:
    """Series in METRICS.md, by name. Each row has five cells."""
    found = {}
    for line in (DEPLOY / "METRICS.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) == 5 and cells[0].startswith("`"):
            name, kind, labels, _, meaning = cells
            assert name.strip("`") not in found, f"{name} is there twice"
            found[name.strip("`")] = Documented(kind, frozenset(filter(None, labels.split(", "))), meaning)
    return found
