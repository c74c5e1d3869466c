"""The Kubernetes manifests: valid for the oldest and the newest version, and complete."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helpers.manifests import (
    ALL,
    DEV,
    EXAMPLES,
    FROM_CERTIFICATES,
    KUBERNETES,
    LIMITS,
    NOT_KUBERNETES,
    OVERLAYS,
    PRODUCTION,
    RESTORE,
    SERVERS,
    SINCE,
    TEAM,
    Object,
    containers,
    identity,
    immutable,
    pods,
    rendered,
)

OLDEST = "1.30"

IMAGES = {"etcdsem", "quay.io/coreos/etcd", "busybox"}


def written() -> Iterator[tuple[Path, Object]]:
    """All objects as they stand in the files."""
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            if (path.parent.name, path.name) == (LIMITS, "limits.yaml"):
                continue  # what a ConfigMap has
            for each in one["items"] if one["kind"] == "List" else [one]:
                if each["kind"] not in NOT_KUBERNETES:
                    yield path, each


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.utils.latest_version()])
def test_files_are_valid(version: str) -> None:
    """Each file by itself, strictly: no field that Kubernetes does not know."""
    count = 0
    for path, one in written():
        if path.name == "single-member.yaml":
            continue  # a patch
        kubernetes_validate.validate(
            dict(one),
            SINCE.get(one["kind"], version) if version == OLDEST else version,
            strict=True,
        )
        count += 1
    assert count >= 15


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.utils.latest_version()])
@pytest.mark.parametrize("folder", ALL)
def test_what_is_applied_is_valid(folder: str, version: str) -> None:
    """The result of each kustomization."""
    for one in rendered(folder):
        kubernetes_validate.validate(dict(one), version, strict=True)


@pytest.mark.parametrize(
    ("folder", "most"),
    [(DEV, 2), (PRODUCTION, 6), (TEAM, 1), (EXAMPLES, 8), (RESTORE, 6), (LIMITS, 1)],
)
def test_pods_are_locked_down(folder: str, most: int) -> None:
    """The "restricted" profile, a read-only root, and resources as a quota may demand them, for
    each container. The one exception is the CPU limit that production takes from etcd.
    """
    seen = 0
    for _, name, template in pods(rendered(folder)):
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
            unlimited = {"cpu"} if (folder, where) == (PRODUCTION, "etcd/etcd") else set()
            assert set(one["resources"]["requests"]) == {"cpu", "memory"}, where
            assert set(one["resources"]["limits"]) == {"cpu", "memory"} - unlimited, where
            seen += 1
    assert seen >= most


@pytest.mark.parametrize("folder", [*SERVERS, EXAMPLES])
def test_what_stays_has_probes(folder: str) -> None:
    """Servers have readiness and liveness, sidecars startup and liveness; their ports exist."""
    for kind, name, template in pods(rendered(folder)):
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


@pytest.mark.parametrize(
    "folders", [(DEV, EXAMPLES), (PRODUCTION, RESTORE), (TEAM, EXAMPLES), (PRODUCTION, LIMITS)]
)
def test_references_lead_somewhere(folders: tuple[str, ...]) -> None:
    """Config maps, secrets, claims; selectors of services, budgets and policies; by plain names,
    so that what is applied separately finds them.
    """
    objects = tuple(one for folder in folders for one in rendered(folder))
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    labels = [template["metadata"]["labels"] for _, _, template in pods(objects)]
    for _, name, template in pods(objects):
        assert template["spec"].get("priorityClassName") in (
            None,
            *(one for kind, one in names if kind == "PriorityClass"),
        )
        for volume in template["spec"].get("volumes", ()):
            for one in (volume, *volume.get("projected", {}).get("sources", ())):
                if "configMap" in one:
                    assert ("ConfigMap", one["configMap"]["name"]) in names, name
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                known = {("PersistentVolumeClaim", f"data-etcd-{number}") for number in range(3)}
                assert ("PersistentVolumeClaim", claim) in names | known, name
            secret = volume.get("secret", {})
            assert not secret or secret.get("optional") or (
                secret["secretName"] in {*FROM_CERTIFICATES, "etcdsem-client-tls"}
            ), name  # fmt: skip
        volumes = {volume["name"] for volume in template["spec"].get("volumes", ())}
        for _, one in containers(template):
            for source in one.get("envFrom", ()):
                assert ("ConfigMap", source["configMapRef"]["name"]) in names, name
            mounted = {mount["name"] for mount in one.get("volumeMounts", ())}
            assert mounted <= volumes | {"data"}, name
    assert not [name for _, name in names if re.search(r"-[0-9a-z]{10}$", name)]
    for one in objects:
        selector = one.get("spec", {}).get("selector") or one.get("spec", {}).get("podSelector")
        if one["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= has.items() for has in labels), one["metadata"]


@pytest.mark.parametrize("folder", ALL)
def test_nothing_else_is_fetched(folder: str) -> None:
    """Images are the known ones, with a version; all addresses are inside."""
    for _, name, template in pods(rendered(folder)):
        for _, one in containers(template):
            image, _, tag = one["image"].rpartition(":")
            assert image in IMAGES, name
            assert tag not in ("", "latest"), name
    for host in re.findall(r"\w+://([^/:\s]+)", yaml.safe_dump_all(rendered(folder))):
        assert host.endswith(".svc") or host == "0.0.0.0", host


def test_production_is_safe() -> None:
    """TLS for clients and members, compaction, three members, one disruption at a time."""
    (etcd,) = [one for one in rendered(PRODUCTION) if one["kind"] == "StatefulSet"]
    settings = {e["name"]: e.get("value") for e in _env(etcd)}
    assert etcd["spec"]["replicas"] == 3
    assert settings["ETCD_CLIENT_CERT_AUTH"] == settings["ETCD_PEER_CLIENT_CERT_AUTH"] == "true"
    assert settings["ETCD_AUTO_COMPACTION_RETENTION"] == "1h"
    assert "http://" not in " ".join(
        value for key, value in settings.items() if value and key != "ETCD_LISTEN_METRICS_URLS"
    )
    kinds = {one["kind"] for one in rendered(PRODUCTION)}
    assert kinds >= {"PodDisruptionBudget", "NetworkPolicy", "CronJob", "Service"}
    assert etcd["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_dev_has_no_tls() -> None:
    """One member, and nothing left of the certificates."""
    (etcd,) = [one for one in rendered(DEV) if one["kind"] == "StatefulSet"]
    assert etcd["spec"]["replicas"] == 1
    assert "tls" not in yaml.safe_dump(etcd)
    assert "https" not in yaml.safe_dump(etcd)


def test_holders_tell_where_they_run() -> None:
    """Every container that takes a lease carries pod, namespace, job and node."""
    for _, name, template in pods(rendered(EXAMPLES)):
        for _, one in containers(template):
            if "envFrom" not in one or one.get("args", ("",))[0] == "check":
                continue
            settings = {e["name"]: e for e in one["env"]}
            keys = re.findall(r"(\w+)=\$\((\w+)\)", settings["ETCDSEM_LABELS"]["value"])
            assert [key for key, _ in keys] == ["pod", "namespace", "job", "node"], name
            before = list(settings)[: list(settings).index("ETCDSEM_LABELS")]
            assert {variable for _, variable in keys} <= set(before), name  # else not expanded


@pytest.mark.parametrize("folder", [*SERVERS, EXAMPLES])
def test_variables_are_expanded(folder: str) -> None:
    """`$(NAME)` stands for a variable that comes before it; a patch changes the order."""
    for _, name, template in pods(rendered(folder)):
        for _, one in containers(template):
            before: set[str] = set()
            for entry in one.get("env", ()):
                used = set(re.findall(r"\$\((\w+)\)", entry.get("value", "")))
                assert used <= before, (name, entry)
                before.add(entry["name"])


def test_production_is_the_service_and_nothing_else() -> None:
    """etcd, access, backup and exporter; no example. A team's namespace has one check."""
    made = {(kind, name) for kind, name, _ in pods(rendered(PRODUCTION))}
    assert made == {
        ("StatefulSet", "etcd"),
        ("Deployment", "etcdsem-exporter"),
        ("CronJob", "etcd-access"),
        ("CronJob", "etcd-backup"),
    }
    assert [name for _, name, _ in pods(rendered(TEAM))] == ["etcdsem-certificate"]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_overlays_can_be_applied_again(folder: str) -> None:
    """No Jobs, which are immutable."""
    assert "Job" not in {one["kind"] for one in rendered(folder)}


def test_a_change_reaches_only_what_may_change(tmp_path: Path) -> None:
    """A new image, another endpoint, another user, less storage in the container: the second
    render differs from the first in no field that Kubernetes does not let change.
    """
    shutil.copytree(KUBERNETES, tmp_path / "changed")
    for file, before, after in (
        ("components/images/kustomization.yaml", "v3.5.33", "v3.5.34"),
        ("components/images/kustomization.yaml", "0.1.0", "0.2.0"),
        ("components/client/kustomization.yaml", "=https://etcd-0", "=https://other"),
        ("overlays/production/users.txt", "team-a ", "team-b "),
    ):
        path = tmp_path / "changed" / file
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))
    changed = 0
    for folder in OVERLAYS:
        first, second = rendered(folder), rendered(folder, tmp_path / "changed")
        assert [identity(one) for one in first] == [identity(one) for one in second]
        for one, other in zip(first, second, strict=True):
            assert immutable(one) == immutable(other), identity(one)
            changed += one != other
    assert changed >= 8


def test_the_quota_has_room() -> None:
    """For all pods of production at once; and every snapshot fits onto the backup's volume."""
    (quota,) = [
        one["spec"]["hard"] for one in rendered(PRODUCTION) if one["kind"] == "ResourceQuota"
    ]
    used = defaultdict[str, float](float)
    for one in rendered(PRODUCTION):
        for _, _, template in pods((one,)):
            number = one["spec"].get("replicas", 1)
            used["pods"] += number
            for kind in ("requests", "limits"):
                for what in ("cpu", "memory"):
                    used[f"{kind}.{what}"] += number * max(
                        _number(each["resources"][kind].get(what, "0"))
                        for _, each in containers(template)
                    )
        claims = [each["spec"] for each in one.get("spec", {}).get("volumeClaimTemplates", ())]
        for claim in [one["spec"]] if one["kind"] == "PersistentVolumeClaim" else claims:
            number = one["spec"].get("replicas", 1)
            used["persistentvolumeclaims"] += number
            used["requests.storage"] += number * _number(claim["resources"]["requests"]["storage"])
    assert {key for key, value in quota.items() if used[key] > _number(value)} == set()
    assert "limits.cpu" not in quota  # etcd has no such limit
    objects = {identity(one)[:2]: one for one in rendered(PRODUCTION)}
    most = {e["name"]: e.get("value") for e in _env(objects["StatefulSet", "etcd"])}
    (_, _, backup) = next(pods((objects["CronJob", "etcd-backup"],)))
    keep = {e["name"]: e.get("value") for e in backup["spec"]["containers"][0]["env"]}["KEEP"]
    room = _number(
        objects["PersistentVolumeClaim", "etcd-backup"]["spec"]["resources"]["requests"]["storage"]
    )
    # one more: the newest is written before the oldest is removed
    assert (int(keep) + 1) * int(most["ETCD_QUOTA_BACKEND_BYTES"]) <= room


def _number(quantity: str) -> float:
    """A quantity in CPUs, bytes or pieces."""
    units = {"": 1, "m": 0.001, "Mi": 2**20, "Gi": 2**30}
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * units[unit]


def test_examples_end_and_are_cleaned_up() -> None:
    """Jobs have a deadline and are deleted; working pods are not moved; an outage of etcd does not
    use up the retries of an indexed Job.
    """
    for one in rendered(EXAMPLES):
        if one["kind"] not in ("Job", "CronJob"):
            continue
        spec = one["spec"]["jobTemplate"]["spec"] if one["kind"] == "CronJob" else one["spec"]
        name = one["metadata"]["name"]
        assert spec["activeDeadlineSeconds"] <= 86400, name
        assert "ttlSecondsAfterFinished" in spec, name
        retries = "backoffLimitPerIndex" if spec.get("completionMode") else "backoffLimit"
        assert spec[retries] >= 6, name
        assert spec["template"]["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"
        }, name


def test_a_waiting_pod_is_not_ready_and_waits_for_etcd() -> None:
    """Probes and programs name the same file; every ConfigMap of clients gives etcd time."""
    jobs = {one["metadata"]["name"]: one for one in rendered(EXAMPLES) if one["kind"] == "Job"}
    for name in ("wrapper", "parallel"):
        ((_, container),) = containers(jobs[name]["spec"]["template"])
        probe = container["readinessProbe"]["exec"]["command"]
        assert probe[:3] == ["etcdsem", "hold", "--check"]
        assert f"--ready-file={probe[3]}" in container["args"]
        folders = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(Path(probe[3]).parent) in folders  # the root file system is read-only
    for folder in (DEV, TEAM):
        maps = {
            one["metadata"]["name"]: one for one in rendered(folder) if one["kind"] == "ConfigMap"
        }
        assert maps["etcdsem"]["data"]["ETCDSEM_ETCD_WAIT"] == "10m"


def test_versions_agree() -> None:
    """The image that the page builds has the tag that the manifests pull: that of the package."""
    project = tomllib.loads((KUBERNETES.parents[1] / "pyproject.toml").read_text())["project"]
    tag = f"etcdsem:{project['version']}"
    used = {
        one["image"]
        for folder in ALL
        for _, _, template in pods(rendered(folder))
        for _, one in containers(template)
    }
    assert {one for one in used if one.startswith("etcdsem")} == {tag}
    page = (KUBERNETES.parents[1] / "docs" / "kubernetes.md").read_text()
    assert f"docker build -f deploy/Dockerfile -t {tag} ." in page


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
        assert list(KUBERNETES.parent.rglob(file)), file
    for folder in re.findall(r"`((?:base|components|overlays)/[a-z-]+)`", page):
        assert (KUBERNETES / folder / "kustomization.yaml").exists(), folder
