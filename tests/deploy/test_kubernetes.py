"""deploy/k8s: every object follows its schema, and what the objects promise fits the code they start."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.door.keys import KeyFile, matching
from service.settings import ServiceSettings
from tests.deploy.compose import ROOT
from tests.deploy.kustomize import Object, containers, pod_template, rendered
from worker.redis_keys import SAMPLE_QUEUE, TRAIN_QUEUE

K8S = ROOT / "deploy" / "k8s"
FOLDERS = ("base", "overlays/cpu-dev", "overlays/gpu", "overlays/nodes")
SCHEMAS = {
    kind: schema
    for name in ("keda.json", "monitors.json")
    for kind, schema in json.loads((Path(__file__).parent / "schemas" / name).read_text())["kinds"].items()
}
OURS = ("service", "trainer", "sampler")


@pytest.fixture(params=FOLDERS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """Of the base and of each overlay."""
    return rendered(K8S / request.param)


def _validate(item: Object) -> None:
    """Strictly: an unknown field is an error."""
    if item["kind"] not in SCHEMAS:
        kubernetes_validate.validate(item, "1.37", strict=True)
        return
    schema = SCHEMAS[item["kind"]]
    jsonschema.Draft202012Validator(schema).validate(item)
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "ConfigMap", "metadata": item["metadata"]}, "1.37", True)
    template = pod_template(item)
    if template is not None:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": {"template": template}}
        kubernetes_validate.validate(job, "1.37", strict=True)


def _named(objects: list[Object], kind: str, name: str) -> Object:
    [found] = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def _ours(objects: list[Object]) -> dict[str, Object]:
    """Pod templates of our three processes."""
    started = {item["metadata"]["name"]: template for item in objects if (template := pod_template(item)) is not None}
    return {name: started[name] for name in OURS}


def test_every_object_follows_its_schema(objects: list[Object]) -> None:
    for item in objects:
        _validate(item)
    assert {"Deployment", "ScaledJob", "ScaledObject", "NetworkPolicy", "ServiceMonitor"} <= {
        o["kind"] for o in objects
    }


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("ScaledJob", "trainer", ("spec", "maxReplicas")),
        ("ScaledJob", "trainer", ("spec", "jobTargetRef", "template", "spec", "containers", 0, "livenesProbe")),
        ("ScaledObject", "sampler", ("spec", "advanced", "horizontalPodAutoscalerConfig", "behaviour")),
        ("ServiceMonitor", "service", ("spec", "endpoints", 0, "bearer")),
        ("NetworkPolicy", "recovery-default", ("spec", "policyType")),
    ],
)
def test_a_misspelt_field_is_found(kind: str, name: str, path: tuple[str | int, ...]) -> None:
    item = _named(rendered(K8S / "base"), kind, name)
    node: Any = item
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = 3
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        _validate(item)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", FOLDERS)
def test_kubectl_renders_the_same(folder: str) -> None:
    command = ["kubectl", "kustomize", str(K8S / folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
        return {(item["kind"], item["metadata"]["name"]): item for item in objects}

    assert by_name(list(yaml.safe_load_all(text))) == by_name(rendered(K8S / folder))


def test_every_pod_is_locked_down_and_has_its_limits(objects: list[Object]) -> None:
    for item in objects:
        template = pod_template(item)
        if template is None:
            continue
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in containers(item):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            assert re.search(r":v?\d+\.\d+", container["image"])
            assert "livenessProbe" in container


def test_images_variables_and_writable_folders_are_those_of_the_dockerfile(objects: list[Object]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    known = {f"RECOVERY_{name.upper()}" for name in ServiceSettings.model_fields}
    settings = _named(objects, "ConfigMap", "recovery-settings")["data"]
    assert set(settings) <= known
    for name, template in _ours(objects).items():
        [container] = template["spec"]["containers"]
        image = "service" if name == "service" else "worker"
        assert re.fullmatch(rf"recovery-likelihood-{image}:{version}(-cpu|-cuda)?", container["image"])
        assert {e["name"] for e in container["env"] if e["name"].startswith("RECOVERY_")} <= known
        writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
        assert writable == ({"/tmp"} if name == "service" else {"/tmp", "/spool"})


def test_a_trainer_pod_takes_one_job_and_has_time_to_save_it(objects: list[Object]) -> None:
    scaled = _named(objects, "ScaledJob", "trainer")["spec"]
    template = scaled["jobTargetRef"]["template"]["spec"]
    [container] = template["containers"]
    assert container["args"][container["args"].index("--max-jobs") + 1] == "1"
    assert container["args"][container["args"].index("-Q") + 1] == TRAIN_QUEUE
    assert scaled["triggers"][0]["metadata"]["listName"] == TRAIN_QUEUE
    assert scaled["rollout"]["strategy"] == "gradual"
    kill_grace_s = float(_named(objects, "ConfigMap", "recovery-settings")["data"]["RECOVERY_KILL_GRACE_S"])
    assert template["terminationGracePeriodSeconds"] >= kill_grace_s + 15


def test_samplers_are_never_all_gone_and_answer_what_they_accepted(objects: list[Object]) -> None:
    scaled = _named(objects, "ScaledObject", "sampler")["spec"]
    assert scaled["minReplicaCount"] >= 1
    assert SAMPLE_QUEUE in [trigger["metadata"].get("listName") for trigger in scaled["triggers"]]
    [query] = [trigger["metadata"]["query"] for trigger in scaled["triggers"] if trigger["type"] == "prometheus"]
    [series] = re.findall(r"recovery_\w+", query)
    assert f'"{series}"' in (ROOT / "worker" / "sampler" / "metrics.py").read_text()
    template = _named(objects, "Deployment", "sampler")["spec"]["template"]["spec"]
    assert template["terminationGracePeriodSeconds"] > ServiceSettings().sample_timeout_s


@pytest.mark.parametrize("name", ["trainer", "sampler"])
def test_celery_takes_the_command_line(name: str) -> None:
    [container] = _ours(rendered(K8S / "base"))[name]["spec"]["containers"]
    taken = _celery(container["args"])
    assert taken.returncode == 0, taken.stderr
    assert "No such option" in _celery([*container["args"], "--max-job", "1"]).stderr


def _celery(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """It reads them all, then prints its help instead of starting."""
    command = [sys.executable, "-m", *arguments, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_dev_overlays_key_opens_the_service_and_its_stores_agree(tmp_path: Path) -> None:
    objects = rendered(K8S / "overlays" / "cpu-dev")
    secret = _named(objects, "Secret", "recovery-keys")["stringData"]
    (tmp_path / "keys.json").write_text(secret["keys.json"])
    assert matching(KeyFile(tmp_path / "keys.json").read(), secret["metrics-key"]) is not None
    stores = _named(objects, "Secret", "recovery-stores")["stringData"]
    assert all(value.startswith("dev-only-") for name, value in stores.items() if name != "redis-address")
    service = _named(objects, "Service", stores["redis-address"].split(":")[0])
    assert service["spec"]["ports"][0]["port"] == int(stores["redis-address"].split(":")[1])


def test_no_secret_is_written_down_but_in_the_dev_overlay() -> None:
    for folder in ("base", "overlays/gpu", "overlays/nodes"):
        assert [item for item in rendered(K8S / folder) if item["kind"] == "Secret"] == []


def test_the_gpu_overlay_gives_every_trainer_and_sampler_a_gpu_and_the_cuda_image() -> None:
    objects = rendered(K8S / "overlays" / "gpu")
    for name in ("trainer", "sampler"):
        [container] = _ours(objects)[name]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["image"].endswith("-cuda")
        assert _ours(objects)[name]["spec"]["tolerations"]


def test_the_nodes_of_a_training_stand_ready_together_and_reach_each_other() -> None:
    objects = rendered(K8S / "overlays" / "nodes")
    job = _named(objects, "Job", "nodes")["spec"]
    assert (job["completionMode"], job["completions"]) == ("Indexed", job["parallelism"])
    assert job["backoffLimitPerIndex"] > 0
    paused = _named(objects, "ScaledJob", "trainer")["metadata"]["annotations"]
    assert paused == {"autoscaling.keda.sh/paused": "true"}  # those have one GPU each
    [container] = job["template"]["spec"]["containers"]
    one = _ours(objects)["trainer"]["spec"]
    assert container["image"] == one["containers"][0]["image"]
    for field in ("ports", "envFrom", "livenessProbe", "securityContext"):
        assert container[field] == one["containers"][0][field]
    assert container["env"] == [e for e in one["containers"][0]["env"] if e["name"] != "OMP_NUM_THREADS"]  # torchrun's
    assert "--max-jobs" not in container["args"]  # a job that lost one of them goes on with the others
    assert _celery(container["args"]).returncode == 0
    policy = _named(objects, "NetworkPolicy", "recovery-nodes")["spec"]
    labels = job["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    for rules, peer in ((policy["ingress"], "from"), (policy["egress"], "to")):
        assert rules == [{peer: [{"podSelector": policy["podSelector"]}]}]  # every port, and nobody else


def test_policies_let_in_requests_and_metrics_only(objects: list[Object]) -> None:
    default = _named(objects, "NetworkPolicy", "recovery-default")["spec"]
    assert set(default["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in default
    for name, template in _ours(objects).items():
        assert template["metadata"]["labels"]["app.kubernetes.io/name"] == "recovery", name
    for policy, port in (("recovery-service", "http"), ("recovery-metrics", "metrics")):
        [rule] = _named(objects, "NetworkPolicy", policy)["spec"]["ingress"]
        assert [p["port"] for p in rule["ports"]] == [port]
