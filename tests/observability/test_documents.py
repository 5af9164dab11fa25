"""Dashboards, rules, and the page that explains them speak of the series that there are."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import yaml

from deploy.grafana.write import DASHBOARDS, FOLDER, rendered
from tests.observability.catalogue import (
    DEPLOY,
    ROOT,
    RULES,
    Shown,
    dashboards,
    documented,
    labels_in,
    names_in,
    rules,
    series_in_code,
    shown,
    variables,
)

RECORDED = {rule.name for rule in rules() if rule.alert is None}


def test_every_series_is_documented_with_its_type_and_labels() -> None:
    known = {name: (series.kind, frozenset(series.labels)) for name, series in series_in_code().items()}
    told = {name: (row.kind, row.labels) for name, row in documented().items()}
    assert told == known
    assert all(row.meaning for row in documented().values())


def test_series_are_declared_in_one_way_only() -> None:
    """Else the catalogue that the other tests use would not be complete."""
    makers = re.compile(r"\b(Counter|Gauge|Histogram|Summary|Info|Enum|\w+MetricFamily)\(\s*\"")
    sources = [path for folder in ("model", "worker", "service") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in sources if makers.search(path.read_text())] == []


@pytest.mark.parametrize("name", sorted(series_in_code()))
def test_names_follow_the_conventions_of_prometheus(name: str) -> None:
    series = series_in_code()[name]
    assert (series.kind == "counter") == name.endswith("_total")
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert series.kind != "histogram" or name.endswith("_seconds")
    assert not re.search(r"_(ms|milliseconds|kb|mb|percent|minutes)(_|$)", name), "base units only"


@pytest.mark.parametrize("one", list(shown()), ids=lambda one: f"{one.dashboard}: {one.panel}")
def test_dashboards_show_what_there_is(one: Shown) -> None:
    names, known = names_in(one.expr), series_in_code()
    assert names
    assert names <= known.keys() | RECORDED
    possible = {label for name in names for label in _labels(name)}
    assert labels_in(one.expr) <= possible


def test_rules_use_what_there_is() -> None:
    for rule in rules():
        names = names_in(rule.expr)
        assert names
        assert names <= series_in_code().keys() | RECORDED, rule.name
        assert labels_in(rule.expr) <= {label for name in names for label in _labels(name)}, rule.name


def _labels(name: str) -> set[str]:
    """Of a series; of a recording rule those of what it is made from, and no more than it keeps."""
    if name in series_in_code():
        return set(series_in_code()[name].labels)
    expr = next(rule.expr for rule in rules() if rule.name == name)
    return {label for used in names_in(expr) for label in _labels(used)}


def test_variables_list_labels_that_there_are() -> None:
    for name, (metric, label) in variables().items():
        assert label == "instance" or label in series_in_code()[metric].labels, name
    for dashboard in dashboards().values():
        known = {variable["name"] for variable in dashboard["templating"]["list"]}
        text = str(dashboard["panels"])
        assert set(re.findall(r"\$\{?([a-z]\w*)", text)) <= known


def test_every_recording_rule_and_alert_is_documented() -> None:
    page = (DEPLOY / "METRICS.md").read_text()
    for rule in rules():
        assert f"`{rule.name}`" in page


def test_every_alert_says_what_it_is_and_where_help_is() -> None:
    alerts = [rule.alert for rule in rules() if rule.alert]
    anchors = {alert["annotations"]["runbook"].removeprefix("deploy/README.md#") for alert in alerts}
    assert anchors == {
        "queue-stuck",
        "no-live-worker",
        "training-diverging",
        "training-stalled",
        "checkpoint-too-old",
        "error-rate",
        "redis-away",
        "s3-away",
    }
    headings = re.findall(r"^#+ (.+)$", (DEPLOY / "README.md").read_text(), flags=re.MULTILINE)
    assert anchors <= set(headings)
    for alert in alerts:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"].endswith(".")


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_the_json_of_a_dashboard_is_what_its_description_says(dashboard: Any) -> None:
    assert (FOLDER / f"{dashboard.name}.json").read_text() == rendered(dashboard), "run python -m deploy.grafana.write"


@pytest.mark.parametrize("name", sorted(dashboards()))
def test_a_dashboard_is_one_that_grafana_can_lay_out(name: str) -> None:
    dashboard = dashboards()[name]
    assert dashboard["uid"] == f"recovery-{name}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references) > 0


def test_a_row_a_gpu() -> None:
    rows = [panel for panel in dashboards()["gpus"]["panels"] if panel["type"] == "row"]
    assert [row["repeat"] for row in rows] == ["gpu"]
    assert "gpu" in variables()


def test_grafana_is_pointed_at_the_datasource_and_the_folder_that_dashboards_name() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    for dashboard in dashboards().values():
        (chosen,) = (one for one in dashboard["templating"]["list"] if one["type"] == "datasource")
        assert chosen["current"]["value"] == source["uid"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "recovery.yml").read_text())["providers"]
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]


def test_prometheus_is_told_to_read_these_rules() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["rules/*.yml"]
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]["volumes"]
    assert "./deploy/prometheus/rules:/etc/prometheus/rules:ro" in mounts
    assert RULES.parent == DEPLOY / "prometheus" / "rules"
    assert {one["job_name"] for one in config["scrape_configs"]} == {"service", "trainer", "sampler"}
