"""The Kubernetes manifests: valid for the oldest and the newest version, and complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helpers.manifests import KUBERNETES, Object, rendered

OVERLAYS = ("dev", "production")
OLDEST = "1.30"

NOT_KUBERNETES = ("Kustomization", "ServiceMonitor", "PrometheusRule")
"""Kinds whose schemas are not Kubernetes' own."""

IMAGES = {"etcdsem", "coreos/etcd", "busybox"}

FROM_CERTIFICATES = {"etcd-server-tls", "etcd-peer-tls", "etcd-root-tls", "etcdsem-view-tls"}
"""Secrets that certificates.sh makes, besides the jobs' own."""


def written() -> Iterator[tuple[Path, Object]]:
    """All objects as they stand in the files."""
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            if one is not None and one["kind"] not in NOT_KUBERNETES:
                yield path, one


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


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.utils.latest_version()])
def test_files_are_valid(version: str) -> None:
    """Each file by itself, strictly: no field that Kubernetes does not know."""
    count = 0
    for path, one in written():
        if path.name == "single-member.yaml":
            continue  # a patch
        kubernetes_validate.validate(dict(one), version, strict=True)
        count += 1
    assert count >= 15


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.utils.latest_version()])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_valid(overlay: str, version: str) -> None:
    """The result of each overlay."""
    for one in rendered(overlay):
        if one["kind"] not in NOT_KUBERNETES:
            kubernetes_validate.validate(dict(one), version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_locked_down(overlay: str) -> None:
    """The "restricted" profile, a read-only root, and resources, for each container."""
    seen = 0
    for _, name, template in pods(rendered(overlay)):
        spec = template["spec"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for _, one in containers(template):
            where = f"{name}/{one['name']}"
            own = one["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, where
            assert own["readOnlyRootFilesystem"] is True, where
            assert own["capabilities"] == {"drop": ["ALL"]}, where
            assert set(one["resources"]["requests"]) >= {"cpu", "memory"}, where
            assert "memory" in one["resources"]["limits"], where
            seen += 1
    assert seen >= 8


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_stays_has_probes(overlay: str) -> None:
    """Servers have readiness and liveness, sidecars startup and liveness; their ports exist."""
    for kind, name, template in pods(rendered(overlay)):
        stays = kind in ("StatefulSet", "Deployment")
        for beside, one in containers(template):
            where = f"{name}/{one['name']}"
            if beside:
                assert {"startupProbe", "livenessProbe"} <= set(one), where
            elif stays:
                assert {"readinessProbe", "livenessProbe"} <= set(one), where
            ports = {port["name"] for port in one.get("ports", ())}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = one.get(probe, {}).get("httpGet", {}).get("port")
                assert port in ports or not isinstance(port, str), where


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_references_lead_somewhere(overlay: str) -> None:
    """Config maps, secrets, claims; selectors of services, budgets and policies."""
    objects = rendered(overlay)
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    labels = [template["metadata"]["labels"] for _, _, template in pods(objects)]
    for _, name, template in pods(objects):
        for volume in template["spec"].get("volumes", ()):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names, name
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in names, name
            secret = volume.get("secret", {})
            assert not secret or secret.get("optional") or (
                secret["secretName"] in FROM_CERTIFICATES
            ), name  # fmt: skip
        volumes = {volume["name"] for volume in template["spec"].get("volumes", ())}
        for _, one in containers(template):
            for source in one.get("envFrom", ()):
                assert ("ConfigMap", source["configMapRef"]["name"]) in names, name
            mounted = {mount["name"] for mount in one.get("volumeMounts", ())}
            assert mounted <= volumes | {"data"}, name
    for one in objects:
        selector = one.get("spec", {}).get("selector") or one.get("spec", {}).get("podSelector")
        if one["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= has.items() for has in labels), one["metadata"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_else_is_fetched(overlay: str) -> None:
    """Images are the known ones, with a version; all addresses are inside."""
    for _, name, template in pods(rendered(overlay)):
        for _, one in containers(template):
            image, _, tag = one["image"].rpartition(":")
            assert image in IMAGES, name
            assert tag not in ("", "latest"), name
    for host in re.findall(r"\w+://([^/:\s]+)", yaml.safe_dump_all(rendered(overlay))):
        assert host.endswith(".svc") or host == "0.0.0.0", host


def test_production_is_safe() -> None:
    """TLS for clients and members, compaction, three members, one disruption at a time."""
    (etcd,) = [one for one in rendered("production") if one["kind"] == "StatefulSet"]
    settings = {e["name"]: e.get("value") for e in _env(etcd)}
    assert etcd["spec"]["replicas"] == 3
    assert settings["ETCD_CLIENT_CERT_AUTH"] == settings["ETCD_PEER_CLIENT_CERT_AUTH"] == "true"
    assert settings["ETCD_AUTO_COMPACTION_RETENTION"] == "1h"
    assert "http://" not in " ".join(
        value for key, value in settings.items() if value and key != "ETCD_LISTEN_METRICS_URLS"
    )
    kinds = {one["kind"] for one in rendered("production")}
    assert kinds >= {"PodDisruptionBudget", "NetworkPolicy", "CronJob", "Job", "Service"}


def test_dev_has_no_tls() -> None:
    """One member, and nothing left of the certificates."""
    (etcd,) = [one for one in rendered("dev") if one["kind"] == "StatefulSet"]
    assert etcd["spec"]["replicas"] == 1
    assert "tls" not in yaml.safe_dump(etcd)
    assert "https" not in yaml.safe_dump(etcd)


def test_holders_tell_where_they_run() -> None:
    """Every container that takes a lease carries pod, namespace, job and node."""
    for _, name, template in pods(rendered("production")):
        for _, one in containers(template):
            if "envFrom" not in one or name == "etcdsem-exporter":
                continue
            settings = {e["name"]: e for e in one["env"]}
            keys = re.findall(r"(\w+)=\$\((\w+)\)", settings["ETCDSEM_LABELS"]["value"])
            assert [key for key, _ in keys] == ["pod", "namespace", "job", "node"], name
            before = list(settings)[: list(settings).index("ETCDSEM_LABELS")]
            assert {variable for _, variable in keys} <= set(before), name  # else not expanded


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_variables_are_expanded(overlay: str) -> None:
    """`$(NAME)` stands for a variable that comes before it; a patch changes the order."""
    for _, name, template in pods(rendered(overlay)):
        for _, one in containers(template):
            before: set[str] = set()
            for entry in one.get("env", ()):
                used = set(re.findall(r"\$\((\w+)\)", entry.get("value", "")))
                assert used <= before, (name, entry)
                before.add(entry["name"])


def _env(etcd: Object) -> Any:
    return etcd["spec"]["template"]["spec"]["containers"][0]["env"]


def test_the_operators_page_names_what_exists() -> None:
    """Commands of etcdsem, and files of deploy/kubernetes, in docs/kubernetes.md."""
    from etcdsem.cli.main import _COMMANDS

    page = (KUBERNETES.parents[1] / "docs" / "kubernetes.md").read_text()
    commands = set(re.findall(r"`etcdsem ([a-z]+)", page))
    assert {"run", "hold", "evict", "limit", "doctor"} <= commands <= set(_COMMANDS)
    files = set(re.findall(r"`([a-z-]+\.yaml)`", page))
    assert files >= {"wrapper.yaml", "sidecar.yaml"}
    for file in files:
        assert (KUBERNETES / "base" / "jobs" / file).exists(), file
