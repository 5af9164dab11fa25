"""A real Prometheus on the configuration and rules of deploy/, hurried: what takes minutes there takes seconds here."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.observability.catalogue import DEPLOY, RULES
from tests.servers import free_ports, tethered, wait_until

SCRAPE_S = 3
"""The service answers within 2.5 s while its stores hang, and a scrape may last no longer than its interval."""
HURRIED = {
    "RecoveryQueueStuck": ("> 60", "> 3"),
    "RecoveryTrainingDiverging": ("< 900", "< 20"),
    "RecoveryTrainingStalled": ("> 900", "> 5"),
    "RecoveryCheckpointTooOld": ("> 3600", "> 5"),
}
"""The limits in seconds that alerts compare with, and what they are here. `for` is 1s, and rates are of 20 s."""

Labels = Mapping[str, str]
Curve = tuple[Labels, list[tuple[float, float]]]
"""(time, value) pairs of one series."""


def hurried_rules() -> dict[str, Any]:
    """The rules with short times and nothing else changed."""
    found = yaml.safe_load(RULES.read_text().replace("[5m]", "[20s]"))
    hurried = set()
    for rule in (rule for group in found["groups"] for rule in group["rules"]):
        if "for" in rule:
            rule["for"] = "1s"
        limit, short = HURRIED.get(rule.get("alert", ""), ("", ""))
        if limit and limit in rule["expr"]:
            rule["expr"] = rule["expr"].replace(limit, short)
            hurried.add(rule["alert"])
    assert hurried == HURRIED.keys()
    return dict(found)


def local_config(targets: Mapping[str, list[str]], key_file: Path, rules_file: Path) -> dict[str, Any]:
    """deploy/prometheus/prometheus.yml with the addresses of this run, scraped more often."""
    found = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    times = {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s", "evaluation_interval": "1s"}
    found["global"] = times
    found["rule_files"] = [str(rules_file)]
    for job in found["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets[job["job_name"]]}]
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(key_file)
        if job["job_name"] != "service":
            job |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    return dict(found)


class Prometheus:
    """One server, and questions to it."""

    def __init__(self, directory: Path, targets: Mapping[str, list[str]], key: str) -> None:
        self.directory = directory
        self.config = directory / "prometheus.yml"
        self._key_file = directory / "key"
        self._targets = copy.deepcopy(dict(targets))
        (self._port,) = free_ports(1)
        self._http = httpx2.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30, trust_env=False)
        directory.mkdir(parents=True)
        self._key_file.write_text(key)
        rules = directory / "rules.yml"
        rules.write_text(yaml.safe_dump(hurried_rules(), sort_keys=False))
        self.config.write_text(yaml.safe_dump(local_config(self._targets, self._key_file, rules), sort_keys=False))

    @contextlib.contextmanager
    def running(self) -> Iterator[Prometheus]:
        """Up within the block."""
        command = [
            "prometheus",
            f"--config.file={self.config}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        with (self.directory / "log").open("wb") as log, self._http:
            process = subprocess.Popen(tethered(command), stdout=log, stderr=log)
            try:
                wait_until(self._is_ready, "Prometheus")
                yield self
            finally:
                process.terminate()
                process.wait()

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return self._http.get("/-/ready").status_code == 200
        return False

    def ask(self, expr: str, at: float | None = None) -> list[tuple[Labels, float]]:
        """Instant query; raises AssertionError with Prometheus's words for an expression that it refuses."""
        result = self._get("query", {"query": expr, **({"time": at} if at else {})})
        return [(one["metric"], float(one["value"][1])) for one in result["result"]]

    def value(self, expr: str) -> float | None:
        """Of an expression with one result; None where there is none."""
        found = self.ask(expr)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def curves(
        self, expr: str, start: float, end: float, step_s: float
    ) -> list[tuple[Labels, list[tuple[float, float]]]]:
        """Range query: (time, value) pairs by labels."""
        result = self._get("query_range", {"query": expr, "start": start, "end": end, "step": step_s})
        return [(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in result["result"]]

    def firing(self) -> set[str]:
        """Alerts that fire now."""
        return {labels["alertname"] for labels, _ in self.ask('ALERTS{alertstate="firing"}')}

    def fired_since(self, start: float) -> set[str]:
        """Alerts that fired at some time since then, with the queue if they name one."""
        window_s = max(1, round(time.time() - start))
        found = self.ask(f'last_over_time(ALERTS{{alertstate="firing"}}[{window_s}s])')
        return {"/".join(filter(None, [labels["alertname"], labels.get("queue")])) for labels, _ in found}

    def label_values(self, metric: str, label: str, start: float) -> list[str]:
        """As a dashboard's variable lists them."""
        params = {"match[]": metric, "start": start}
        return list(self._get(f"label/{label}/values", params))

    def metadata(self) -> dict[str, Any]:
        """Type and help by metric, as scraped."""
        return dict(self._get("metadata", {}))

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, and how it went."""
        return list(self._get("targets", {})["activeTargets"])

    def _get(self, what: str, params: Mapping[str, Any]) -> Any:
        answer = self._http.get(f"/api/v1/{what}", params=dict(params)).json()
        assert answer["status"] == "success", f"{answer.get('error')}: {params}"
        return answer["data"]
