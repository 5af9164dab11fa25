"""As much of kustomize as deploy/k8s uses: resources, a namespace, image tags, JSON patches. All else is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

_KEYS = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
Object = dict[str, Any]


def rendered(directory: Path) -> list[Object]:
    """Every object of a kustomization, as `kubectl kustomize` prints them, in the order of the files."""
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    unknown = set(kustomization) - _KEYS
    if unknown:
        raise NotImplementedError(f"{directory}: {sorted(unknown)} are not rendered here; use {sorted(_KEYS)}")
    found: list[Object] = []
    for name in kustomization["resources"]:
        path = directory / name
        found += rendered(path) if path.is_dir() else [o for o in yaml.safe_load_all(path.read_text()) if o]
    found = copy.deepcopy(found)
    for patch in kustomization.get("patches", []):
        _patch(found, patch["target"], yaml.safe_load(patch["patch"]))
    for item in found:
        if item["kind"] != "Namespace":
            item["metadata"]["namespace"] = kustomization["namespace"]
        for container in containers(item):
            for image in kustomization.get("images", []):
                _rename(container, image)
    return found


def pod_template(item: Object) -> Object | None:
    """Of what starts pods."""
    spec = item.get("spec", {})
    found = spec.get("jobTargetRef", spec).get("template") if isinstance(spec, dict) else None
    return found if isinstance(found, dict) else None


def containers(item: Object) -> list[Object]:
    """Of what starts pods."""
    template = pod_template(item)
    return [] if template is None else list(template["spec"]["containers"])


def _rename(container: Object, image: Object) -> None:
    name, _, tag = container["image"].rpartition(":")
    if name == image["name"]:
        container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def _patch(items: list[Object], target: Object, operations: list[Object]) -> None:
    """RFC 6902's `add` and `replace`."""
    matching = [item for item in items if item["kind"] == target["kind"] and item["metadata"]["name"] == target["name"]]
    if len(matching) != 1:
        raise LookupError(f"{len(matching)} objects match {target}")
    for operation in operations:
        *parents, last = [part.replace("~1", "/") for part in operation["path"].removeprefix("/").split("/")]
        node: Any = matching[0]
        for part in parents:
            node = node[int(part) if isinstance(node, list) else part]
        if isinstance(node, list):
            if (operation["op"], last) != ("add", "-"):
                raise NotImplementedError(f"{operation}: into a list only `add` to its end")
            node.append(operation["value"])
        else:
            if operation["op"] == "replace" and last not in node:
                raise LookupError(f"{operation['path']} is not there to be replaced")
            node[last] = operation["value"]
