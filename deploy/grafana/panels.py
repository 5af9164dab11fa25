"""Dashboards as plain data, and their JSON as Grafana 12 reads it, as far as this project's dashboards need it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SCHEMA_VERSION = 41
_COLUMNS = 24
"""The number of columns of Grafana's grid."""


@dataclass(frozen=True)
class Query:
    """A Prometheus query; `legend` names a curve by its labels, written as {{label}}."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A panel of curves, a number or a table, with a text that says what they mean."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    text: str = ""
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    width: int = 8
    height: int = 8
    log_scale: bool = False
    stacked: bool = False
    largest: float | None = None
    """The top of the axis; the bottom is 0 unless there are negative values."""
    words: dict[int, str] = field(default_factory=dict)
    """The words that are shown in place of numbers."""

    def json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Return the panel as JSON, with its number and its place in the grid."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": _DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": _DATASOURCE,
                    "editorMode": "code",
                    "expr": query.expr,
                    "legendFormat": query.legend or "__auto",
                    "range": self.kind == "timeseries",
                    "instant": self.kind != "timeseries",
                    **({"format": "table"} if self.kind == "table" else {}),
                }
                for index, query in enumerate(self.queries)
            ],
        }

    def _defaults(self) -> dict[str, Any]:
        found: dict[str, Any] = {"unit": self.unit}
        if self.largest is not None:
            found |= {"min": 0, "max": self.largest}
        if self.words:
            named = {
                str(number): {"text": word, "index": index} for index, (number, word) in enumerate(self.words.items())
            }
            found["mappings"] = [{"type": "value", "options": named}]
            steps = [{"color": "red", "value": None}, {"color": "green", "value": 1}]
            found |= {"thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
        if self.kind == "timeseries":
            found["custom"] = {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 25 if self.stacked else 0,
                "showPoints": "auto",
                "spanNulls": False,
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "scaleDistribution": {"type": "log", "log": 10} if self.log_scale else {"type": "linear"},
            }
        return found

    def _options(self) -> dict[str, Any]:
        match self.kind:
            case "stat":
                reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
                return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
            case "table":
                return {"showHeader": True, "cellHeight": "sm"}
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def panel(title: str, *queries: tuple[str, str], **more: Any) -> Panel:
    """Make a panel of (expression, legend) pairs; `more` are fields of Panel."""
    return Panel(title=title, queries=tuple(Query(*query) for query in queries), **more)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of panels below a heading. If it has a variable `repeat`, it is shown once for every value of it."""

    title: str
    panels: tuple[Panel, ...]
    repeat: str | None = None


@dataclass(frozen=True)
class Variable:
    """A variable of a dashboard, for which a person chooses among the values of a label."""

    name: str
    title: str
    metric: str
    label: str

    def json(self) -> dict[str, Any]:
        """Return the variable as JSON. Several values can be chosen, and at first all are."""
        query = f"label_values({self.metric}, {self.label})"
        return {
            "type": "query",
            "name": self.name,
            "label": self.title,
            "datasource": _DATASOURCE,
            "definition": query,
            "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
            "options": [],
            "regex": "",
            "hide": 0,
        }


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A dashboard, which is one page of Grafana."""

    name: str
    """The name of its file and, with a prefix, its uid."""
    title: str
    text: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return the dashboard as the JSON that Grafana's provisioning reads."""
        return {
            "uid": f"recovery-{self.name}",
            "title": self.title,
            "description": self.text,
            "tags": ["recovery-likelihood"],
            "schemaVersion": _SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "annotations": {"list": []},
            "links": [_LINKS],
            "templating": {"list": [_CHOOSE_DATASOURCE, *(variable.json() for variable in self.variables)]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        """Place the panels from left to right; one that does not fit goes to the next line."""
        panels: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            heading: dict[str, Any] = {"id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False}
            heading |= {"gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1}, "panels": []}
            panels.append(heading | ({"repeat": row.repeat} if row.repeat else {}))
            x, y, line_height = 0, y + 1, 0
            for panel in row.panels:
                if x + panel.width > _COLUMNS:
                    x, y, line_height = 0, y + line_height, 0
                panels.append(panel.json(len(panels) + 1, x, y))
                x, line_height = x + panel.width, max(line_height, panel.height)
            y += line_height
        return panels


_LINKS = {
    "type": "dashboards",
    "title": "recovery-likelihood",
    "tags": ["recovery-likelihood"],
    "asDropdown": True,
    "includeVars": False,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "url": "",
    "tooltip": "",
}
_CHOOSE_DATASOURCE = {
    "type": "datasource",
    "name": "datasource",
    "label": "Prometheus",
    "query": "prometheus",
    "regex": "",
    "refresh": 1,
    "multi": False,
    "includeAll": False,
    "current": {"text": "Prometheus", "value": "prometheus"},
    "options": [],
    "hide": 0,
}
