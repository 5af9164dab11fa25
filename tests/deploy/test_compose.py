"""docker-compose.yml: valid, pinned, without secrets of its own; its stores started as it says, from their wheels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from service.settings import ServiceSettings
from tests.deploy.compose import DEV_ENVIRONMENT, FILE, ROOT, MissingVariable, parsed, read_environment, variables
from tests.servers import SeaweedFS, _valkey_binary, free_ports, tethered, wait_until

OURS = ("service", "trainer", "sampler", "trainer-gpu", "sampler-gpu")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """As the dev environment fills it."""
    return parsed(read_environment(DEV_ENVIRONMENT))


def test_the_file_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parent / "schemas" / "compose.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(compose)
    with pytest.raises(jsonschema.ValidationError, match="healthchek"):
        validator.validate({"services": {"a": {"image": "b:1", "healthchek": {}}}})


def test_every_image_is_pinned_and_ours_carry_the_projects_version(compose: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in compose["services"].items():
        repository, _, tag = service["image"].rpartition(":")
        assert repository, f"{name}: {service['image']} has no tag"
        assert re.search(r"\d+\.\d+", tag), f"{name}: {service['image']} is not fixed to a version"
        if name in OURS:
            assert tag.split("-")[0] == version


def test_every_variable_of_ours_is_a_setting(compose: dict[str, Any]) -> None:
    known = {f"RECOVERY_{name.upper()}" for name in ServiceSettings.model_fields}
    for name in OURS:
        assert set(compose["services"][name]["environment"]) <= known
    asked = {name for name in variables() if name.startswith("RECOVERY_")}
    assert asked <= known


def test_no_secret_has_a_default_and_only_the_dev_environment_gives_them(compose: dict[str, Any]) -> None:
    required = {name for name, default in variables().items() if default is None}
    assert required == {"VALKEY_PASSWORD", "RECOVERY_S3_ACCESS_KEY", "RECOVERY_S3_SECRET_KEY", "GRAFANA_PASSWORD"}
    dev = read_environment(DEV_ENVIRONMENT)
    assert set(dev) == required | {"METRICS_KEY"}
    for name in required:
        assert dev[name].startswith("dev-only-")
        assert dev[name] not in FILE.read_text()
        with pytest.raises(MissingVariable, match=r"set it in \.env"):
            parsed({other: value for other, value in dev.items() if other != name})
    assert compose["secrets"] == {"metrics_key": {"environment": "METRICS_KEY"}}


def test_each_profile_has_one_trainer_and_one_sampler_under_the_names_that_prometheus_asks_for(
    compose: dict[str, Any],
) -> None:
    for profile in ("cpu", "gpu"):
        started = {n: s for n, s in compose["services"].items() if profile in s.get("profiles", [profile])}
        names = [*started, *(a for s in started.values() for a in _aliases(s))]
        assert {"service", "trainer", "sampler"} <= set(names)
        workers = {name for name in started if name.startswith(("trainer", "sampler"))}
        assert len(workers) == 2
        for name in workers:
            assert ("deploy" in started[name]) == (profile == "gpu")
            assert ("args" in started[name]["build"]) == (profile == "cpu")


def _aliases(service: dict[str, Any]) -> list[str]:
    networks = service["networks"]
    return [] if isinstance(networks, list) else [a for network in networks.values() for a in network["aliases"]]


def test_what_is_mounted_from_the_repository_is_there(compose: dict[str, Any]) -> None:
    sources = [v.split(":")[0] for s in compose["services"].values() for v in s.get("volumes", [])]
    bound = [source for source in sources if source.startswith(".")]
    assert len(bound) == 4
    assert [source for source in bound if not (ROOT / source).exists()] == []
    named = {source for source in sources if not source.startswith(".")}
    assert named == set(compose["volumes"])


def test_files_are_mounted_where_prometheus_and_grafana_look_for_them(compose: dict[str, Any]) -> None:
    def mounted(name: str) -> dict[str, str]:
        bound = [volume.split(":") for volume in compose["services"][name]["volumes"]]
        return {source: target for source, target, *_ in bound if source.startswith(".")}

    [providers] = (ROOT / "deploy" / "grafana" / "provisioning" / "dashboards").glob("*.yml")
    [provider] = yaml.safe_load(providers.read_text())["providers"]
    assert mounted("grafana")["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert (ROOT / "deploy" / "prometheus" / "rules").is_dir()
    scraping = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert scraping["rule_files"] == ["rules/*.yml"]
    assert mounted("prometheus")["./deploy/prometheus/rules"] == "/etc/prometheus/rules"
    credentials = [
        job["authorization"]["credentials_file"] for job in scraping["scrape_configs"] if "authorization" in job
    ]
    assert credentials == [f"/run/secrets/{name}" for name in compose["services"]["prometheus"]["secrets"]]


def test_nothing_but_loopback_is_published_and_the_stores_are_not(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
    assert compose["networks"]["stores"]["internal"] is True
    for name in ("valkey", "seaweedfs"):
        assert compose["services"][name]["networks"] == ["stores"]
        assert "ports" not in compose["services"][name]


def test_our_processes_may_write_only_to_their_volumes_and_have_time_to_end(compose: dict[str, Any]) -> None:
    settings = ServiceSettings()
    for name in OURS:
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["restart"] == "unless-stopped"
    assert _seconds(compose["services"]["trainer"]["stop_grace_period"]) > settings.kill_grace_s
    assert _seconds(compose["services"]["sampler"]["stop_grace_period"]) > settings.sample_timeout_s


def _seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


@pytest.mark.stack
def test_valkey_takes_the_configuration_keeps_everything_and_asks_for_the_password(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    [port] = free_ports(1)
    text = compose["configs"]["valkey"]["content"].replace("dir /data", f"dir {tmp_path}")
    (tmp_path / "valkey.conf").write_text(text)
    command = [_valkey_binary(), str(tmp_path / "valkey.conf"), "--port", str(port), "--bind", "127.0.0.1"]
    process = subprocess.Popen(tethered(command), stdout=subprocess.DEVNULL)
    password = read_environment(DEV_ENVIRONMENT)["VALKEY_PASSWORD"]
    try:
        with Redis(port=port, password=password, retry=Retry(NoBackoff(), 0)) as client:
            wait_until(lambda: _pings(client), "Valkey's first answer")
            wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
            assert {name: client.config_get(name)[name] for name in wanted} == wanted
        with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
    finally:
        process.kill()
        process.wait()


def _pings(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@pytest.mark.stack
def test_seaweedfs_takes_the_command_and_stores_in_the_bucket_with_those_keys_only(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    service = compose["services"]["seaweedfs"]
    ports = dict(zip(("s3.port", "filer.port", "master.port", "volume.port", "admin.port"), free_ports(5), strict=True))
    here = {"-dir": str(tmp_path / "data"), "-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-s3.port": ports["s3.port"]}
    options = [option.partition("=") for option in service["command"]]
    (tmp_path / "data").mkdir()
    command = [f"{name}{'=' if name in here or sign else ''}{here.get(name, value)}" for name, sign, value in options]
    command += [f"-{name}={port}" for name, port in ports.items() if name != "s3.port"]
    weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
    with (tmp_path / "log").open("wb") as log:
        environment = os.environ | service["environment"]
        process = subprocess.Popen(tethered([weed, *command]), env=environment, stdout=log, stderr=log)
    server = SeaweedFS(list(ports.values()), tmp_path / "data", process)
    try:
        wait_until(lambda: _stores(server, service["environment"]), "SeaweedFS's first write", every_s=0.2)
        assert not _stores(server, service["environment"] | {"AWS_SECRET_ACCESS_KEY": "another"})
    finally:
        server.stop()
        for number in [*ports.values(), *(port + 10_000 for port in ports.values())]:
            for file in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                file.unlink(missing_ok=True)


def _stores(server: SeaweedFS, keys: dict[str, str]) -> bool:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        config=Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1}),
    )
    try:
        client.put_object(Bucket="recovery", Key="probe", Body=b"")
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()
    return True


def test_the_dockerfile_is_lint_free_pinned_and_runs_as_nobody() -> None:
    lint = [str(Path(sys.executable).with_name("hadolint")), str(ROOT / "Dockerfile")]
    found = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
    text = (ROOT / "Dockerfile").read_text()
    outside = {image for image in re.findall(r"^FROM (\S+)", text, re.M) if ":" in image}
    assert outside == {"python:3.11.15-slim-bookworm"}
    for stage in ("service", "worker"):
        body = text.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
        assert "\nUSER 10001:10001\n" in body
        assert "\nHEALTHCHECK " in body
    known = {f"RECOVERY_{name.upper()}" for name in ServiceSettings.model_fields}
    instructions = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert set(re.findall(r"RECOVERY_[A-Z0-9_]+", instructions)) <= known


def test_the_sampler_is_started_as_recovery_up_starts_it(compose: dict[str, Any]) -> None:
    command = compose["services"]["sampler"]["command"]
    assert command[:4] == ["celery", "-A", "worker.app", "worker"]
    assert command[command.index("--pool") + 1] == "threads"
    assert command[command.index("-Q") + 1] == "sample"


def test_the_files_here_are_plain_yaml_without_duplicate_services() -> None:
    class Strict(yaml.SafeLoader):
        """Refuses a key given twice."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        assert len(keys) == len(set(keys)), f"given twice: {keys}"
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert yaml.load(FILE.read_text(), Loader=Strict)["name"] == "recovery-likelihood"
