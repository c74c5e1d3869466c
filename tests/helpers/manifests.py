"""The Kubernetes manifests, rendered."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"

DEV, PRODUCTION, TEAM = "overlays/dev", "overlays/production", "overlays/team"
SERVERS = (DEV, PRODUCTION)
OVERLAYS = (DEV, PRODUCTION, TEAM)
EXAMPLES = "examples"
RESTORE = "restore"
LIMITS = "limits"
ALL = (*OVERLAYS, EXAMPLES, RESTORE, LIMITS)
CLIENT = {"etcdsem-client": "true"}
"""The label of pods that are clients, and of the namespaces where they run."""

NOT_KUBERNETES = (
    *("Kustomization", "Component", "Certificate", "Issuer"),
    *("PrometheusRule", "ServiceMonitor"),
)
"""Kinds whose schemas are not Kubernetes' own."""

FROM_CERTIFICATES = {
    *("etcd-server-tls", "etcd-peer-tls", "etcd-root-tls"),
    *("etcdsem-view-tls", "etcdsem-operator-tls"),
}
"""Secrets that certificates.sh makes, besides those of the teams."""


Object = Mapping[str, Any]


NOT_NAMESPACED = ("Namespace", "PriorityClass")

SINCE = {"MutatingAdmissionPolicy": "1.36", "MutatingAdmissionPolicyBinding": "1.36"}
"""Kinds that the oldest version does not have."""


def in_namespace(objects: tuple[Object, ...], namespace: str) -> tuple[Object, ...]:
    """The objects as `kubectl --namespace` would create them."""
    return tuple(
        one
        if one["kind"] in NOT_NAMESPACED
        else {**one, "metadata": {**one["metadata"], "namespace": namespace}}
        for one in objects
    )


@cache
def rendered(folder: str, root: Path = KUBERNETES) -> tuple[Object, ...]:
    """What `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl to render the overlays with")
    done = subprocess.run(
        ["kubectl", "kustomize", str(root / folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def pods(objects: tuple[Object, ...]) -> Iterator[tuple[str, str, Any]]:
    """Kind, name and pod spec of everything that makes pods."""
    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec and "spec" in spec["template"]:
            yield one["kind"], one["metadata"]["name"], spec["template"]


def containers(template: Any) -> Iterator[tuple[bool, Any]]:
    """All containers of a pod, and whether each is one that stays beside the main one."""
    for one in template["spec"].get("initContainers", ()):
        yield one.get("restartPolicy") == "Always", one
    for one in template["spec"]["containers"]:
        yield False, one


def identity(one: Object) -> tuple[str, str, str]:
    return one["kind"], one["metadata"]["name"], one["metadata"].get("namespace", "")


def immutable(one: Object) -> Any:
    """The part that `kubectl apply` cannot change."""
    spec = one.get("spec", {})
    match one["kind"]:
        case "StatefulSet":
            kept = {"replicas", "ordinals", "template", "updateStrategy", "minReadySeconds"}
            return {key: value for key, value in spec.items() if key not in kept}
        case "Deployment":
            return spec["selector"]
        case "PersistentVolumeClaim" | "Job":
            return spec
        case "Service":
            return spec.get("clusterIP")
        case "PriorityClass":
            return one["value"]
    return None
