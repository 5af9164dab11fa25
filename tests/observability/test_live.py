"""One real run, observed by a real Prometheus: every expression answers, every alert fires, nothing is left behind."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.grafana.write import DASHBOARDS
from tests.observability.catalogue import DEPLOY, names_in, rules, series_in_code, shown, variables
from tests.observability.pictures import draw
from tests.observability.prometheus import Labels
from tests.observability.scenario import Run, Scenario
from worker.observe import gpu_metrics
from worker.observe.series import declared

pytestmark = [pytest.mark.observability, pytest.mark.timeout(600)]

RATE_INTERVAL = "15s"
"""What Grafana would fill in for a scrape every three seconds, and a little more."""
WITHOUT_DATA = {"gpus": "this machine has no GPU"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The run, over; Prometheus and the stack still answer."""
    with Scenario(tmp_path_factory.mktemp("observed")).observed() as found:
        yield found


def filled(expr: str, run: Run) -> str:
    """An expression with a dashboard's variables filled in as when all of each are chosen."""
    expr = expr.replace("$__rate_interval", RATE_INTERVAL)
    for name, (metric, label) in variables().items():
        values = run.prometheus.label_values(metric, label, run.began_at)
        expr = expr.replace(f"${name}", "|".join(map(re.escape, values)).replace("\\", "\\\\") or ".*")
    assert "$" not in expr, expr
    return expr


def promtool(*arguments: str | Path) -> str:
    """What it prints; its words are the test's when it finds something."""
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration_and_the_rules(run: Run, tmp_path: Path) -> None:
    promtool("check", "config", run.prometheus.config)
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    key = tmp_path / "key"
    key.write_text("rk_test")
    config = tmp_path / "prometheus" / "prometheus.yml"
    config.write_text(config.read_text().replace("/run/secrets/metrics_key", str(key)))
    promtool("check", "config", config)
    found = promtool("check", "rules", *sorted((DEPLOY / "prometheus" / "rules").glob("*.yml")))
    assert f"SUCCESS: {len(rules())} rules found" in found


def test_every_alert_and_recording_rule_passes_its_unit_tests() -> None:
    tests = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
    promtool("test", "rules", *tests)
    text = "".join(path.read_text() for path in tests)
    # Two are plain ratios or differences of what others test.
    untested = {"recovery:http_requests:rate5m", "recovery:queue_oldest_age_seconds:max", "recovery:workers:alive"}
    untested |= {"recovery:job_checkpoint_interval_seconds", "recovery:job_silent_seconds"}
    assert [rule.name for rule in rules() if rule.name not in text and rule.name not in untested] == []


def test_every_expression_of_every_dashboard_is_accepted_and_shows_what_happened(run: Run) -> None:
    for one in shown():
        found = run.prometheus.curves(filled(one.expr, run), run.began_at, run.ended_at, 1)
        assert found or one.dashboard in WITHOUT_DATA, f"{one.dashboard}, {one.panel} shows nothing: {one.expr}"


def test_every_series_that_was_scraped_is_one_of_the_code_with_its_type_and_labels(run: Run) -> None:
    known = series_in_code()
    for name, (told, *_) in run.prometheus.metadata().items():
        if name.startswith(("recovery", "process")):
            base = f"{name}_total" if f"{name}_total" in known else name
            assert told["type"] == known[base].kind, name
    scraped: dict[str, set[str]] = {}
    for labels, _ in run.prometheus.ask(_everything(run)):
        (base,) = names_in(labels["__name__"])
        scraped.setdefault(base, set()).update(labels.keys() - {"__name__", "instance", "job", "le"})
    assert scraped.keys() <= known.keys()
    for name, names in scraped.items():
        assert names <= set(known[name].labels), name


def test_every_series_of_the_code_was_seen_but_those_of_gpus(run: Run) -> None:
    absent = {series.name for series in declared([gpu_metrics])}
    seen = {next(iter(names_in(labels["__name__"]))) for labels, _ in run.prometheus.ask(_everything(run))}
    assert series_in_code().keys() - absent - seen == set()


def _everything(run: Run) -> str:
    """Whatever was there at any time of the run."""
    return f'last_over_time({{__name__=~"(recovery|process)_.+"}}[{int(run.ended_at - run.began_at) + 60}s])'


def test_every_alert_fired_on_its_fault_and_ended_with_it(run: Run) -> None:
    fired = {name.partition("/")[0] for alerts in run.fired.values() for name in alerts}
    assert fired == {rule.name for rule in rules() if rule.alert}
    assert run.prometheus.firing() == set()


def test_nothing_is_left_of_jobs_that_ended(run: Run) -> None:
    assert len(run.jobs) >= 4
    left = run.prometheus.ask('{job_id=~".+", __name__!~"ALERTS.*"}')
    assert left == []
    shown_at_some_time = run.prometheus.label_values("recovery_job_info", "job_id", run.began_at)
    assert set(run.jobs.values()) - {run.jobs["late"]} <= set(shown_at_some_time)


def test_series_of_a_job_end_with_a_worker_that_is_killed(run: Run) -> None:
    assert run.vanished_after_s < 5  # two scrapes and the query; its lease ran for thirty seconds


def test_what_was_counted_is_what_was_done(run: Run) -> None:
    def count(expr: str) -> float | None:
        return run.prometheus.value(f"sum({expr})")

    attempts = "recovery_job_attempt_duration_seconds_count"
    assert count('recovery_jobs{status="succeeded"}') == 2
    assert count('recovery_jobs{status="cancelled"}') == 1
    assert count('recovery_jobs{status="failed"}') == 1
    assert count('recovery_jobs{status=~"queued|running"}') == 0
    assert count(f'{attempts}{{outcome="lease_lost"}}') == 1
    assert count(f'{attempts}{{outcome="failed"}}') == 1
    assert count(f'{attempts}{{outcome="succeeded"}}') == 2
    assert count("recovery_job_attempts_started_total") == count(attempts)
    rollbacks = run.prometheus.ask("max_over_time(recovery_job_rollbacks_total[10m])")
    assert {_job(labels): value for labels, value in rollbacks if value} == {run.jobs["diverging"]: 3}
    assert run.prometheus.value("max_over_time(recovery_job_attempt[10m]) > 1") == 2


def _job(labels: Labels) -> str:
    return labels["job_id"]


def test_the_targets_are_scraped_with_a_key_that_may_only_read(run: Run) -> None:
    health = {
        target["labels"]["job"]: target["health"] for target in run.prometheus.targets() if target["health"] == "up"
    }
    assert health.keys() == {"service", "trainer", "sampler"}


def test_pictures_of_the_dashboards_are_drawn(run: Run) -> None:
    """Into deploy/images, from the data of this run."""
    names = {job_id: name for name, job_id in run.jobs.items()} | _names_of_instances(run)
    for dashboard in DASHBOARDS:
        if dashboard.name in WITHOUT_DATA:
            continue
        path = DEPLOY / "images" / f"{dashboard.name}.png"
        empty = draw(
            dashboard,
            lambda expr: run.prometheus.curves(filled(expr, run), run.began_at, run.ended_at, 1),
            names,
            run.faults,
            (run.began_at, run.ended_at),
            path,
        )
        assert empty == []
        assert path.stat().st_size > 50_000


def _names_of_instances(run: Run) -> dict[str, str]:
    """`127.0.0.1:12345` says little in a legend."""
    targets = sorted(run.prometheus.targets(), key=lambda target: target["scrapeUrl"])
    return {target["labels"]["instance"]: target["labels"]["job"] for target in targets}
