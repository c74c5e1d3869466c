"""The Helm chart installs what the kustomizations apply. Helm's library renders it offline."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helpers.manifests import (
    KUBERNETES,
    LIMITS,
    NOT_KUBERNETES,
    PRODUCTION,
    TEAM,
    Object,
    containers,
    identity,
    immutable,
    rendered,
)

chart = pytest.importorskip("helm_python.chart", reason="there is no Helm (helm-python-sdk)")

CHART = KUBERNETES.parent / "helm" / "etcdsem"
HOOK = ("Job", "etcd-access-hook", "etcdsem")

Identity = tuple[str, str, str]


def installed(values: Mapping[str, Any] | None = None) -> dict[Identity, Object]:
    """What `helm install etcdsem --namespace etcdsem` would create, by kind, name and namespace."""
    return _installed(json.dumps(values or {}))


@functools.cache
def _installed(values: str) -> dict[Identity, Object]:
    with chart.Chart.load(CHART) as loaded:
        files = loaded.render(json.loads(values), name="etcdsem", namespace="etcdsem")
    found = [one for text in files.values() for one in yaml.safe_load_all(text) if one]
    by_identity = {identity(one): one for one in found}
    assert len(found) == len(by_identity)
    return by_identity


def bare(one: Object) -> Object:
    """Without the label that tells what a kustomization belongs to."""
    metadata = {key: value for key, value in one["metadata"].items() if key != "labels"}
    labels = dict(one["metadata"].get("labels", {}))
    labels.pop("app.kubernetes.io/part-of", None)
    return {**one, "metadata": {**metadata, **({"labels": labels} if labels else {})}}


def applied(*folders: str) -> dict[Identity, Object]:
    """What the kustomizations create, without their namespaces."""
    objects = [one for folder in folders for one in rendered(folder) if one["kind"] != "Namespace"]
    return {identity(one): one for one in objects}


def test_the_defaults_are_the_production_overlay() -> None:
    """The same objects, and besides them the hook that creates users at once."""
    made = installed()
    assert set(made) - {HOOK} == set(applied(PRODUCTION))
    for one, expected in applied(PRODUCTION).items():
        assert bare(made[one]) == bare(expected), one
    hook, cron = made[HOOK], made["CronJob", "etcd-access", "etcdsem"]
    assert hook["spec"] == cron["spec"]["jobTemplate"]["spec"]
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"


def test_namespaces_of_clients_are_the_team_overlay() -> None:
    made = installed({"clientNamespaces": ["team-a"]})
    more = {one: made[one] for one in set(made) - set(installed())}
    assert {one: bare(found) for one, found in more.items()} == {
        one: bare(expected) for one, expected in applied(TEAM).items()
    }


def test_parts_can_be_left_out_and_added() -> None:
    """An etcd of your own; cert-manager; the operator; a CPU limit; no exporter and quota."""
    own = installed({"endpoints": ["https://a:2379", "https://b:2379"], "tls": False})
    assert {name for _, name, _ in own} == {"etcdsem", "etcdsem-clients", "etcdsem-exporter"}
    settings = own["ConfigMap", "etcdsem", "etcdsem"]["data"]
    assert settings == {
        "ETCDSEM_ENDPOINTS": "https://a:2379,https://b:2379",
        "ETCDSEM_ETCD_WAIT": "10m",
    }
    more = installed({"certManager": True, "monitoring": True, "cpuLimit": True})
    kinds = {kind for kind, _, _ in more}
    assert kinds >= {"Certificate", "Issuer", "ServiceMonitor", "PrometheusRule"}
    ((_, etcd),) = containers(more["StatefulSet", "etcd", "etcdsem"]["spec"]["template"])
    assert etcd["resources"]["limits"]["cpu"] == "2"
    annotations = installed({"annotations": True, "images": {"etcdsem": {"repository": "r/x"}}})
    expected = applied("base/annotations")
    assert expected.keys() == annotations.keys() - installed().keys()
    for one in expected.keys() - {("MutatingAdmissionPolicy", "etcdsem", "")}:
        assert annotations[one] == expected[one]
    changed = annotations["MutatingAdmissionPolicy", "etcdsem", ""]["spec"]["variables"]
    original = expected["MutatingAdmissionPolicy", "etcdsem", ""]["spec"]["variables"]
    assert changed == [{"name": "image", "expression": "'r/x:0.1.0'"}, *original[1:]]
    less = installed({"exporter": False, "quota": False})
    assert {kind for kind, _, _ in set(installed()) - set(less)} == {
        *("Deployment", "NetworkPolicy", "ResourceQuota", "Service"),
    }


def test_limits_as_code() -> None:
    """The Job of deploy/kubernetes/limits as a hook, with the limits of the values."""
    limits = {"semaphores": {"my-api": 5}, "rates": {"my-api.calls": "100/1m"}}
    made = installed({"limits": limits})
    more = {name: made[name] for name in set(made) - set(installed())}
    (job,) = (one for one in rendered(LIMITS) if one["kind"] == "Job")
    found = more.pop(("Job", "etcdsem-limits", "etcdsem"))
    assert found["spec"] == job["spec"]
    assert found["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"
    file = more.pop(("ConfigMap", "etcdsem-limits", "etcdsem"))["data"]["limits.yaml"]
    assert yaml.safe_load(file) == limits
    assert not more


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.utils.latest_version()])
def test_it_is_valid(version: str) -> None:
    """Every object, strictly; and Helm finds nothing to complain of."""
    everything = {
        "certManager": True,
        "annotations": version != "1.30",
        "monitoring": True,
        "clientNamespaces": ["team-a"],
        "limits": {"semaphores": {"my-api": 5}},
    }
    for one in installed(everything).values():
        if one["kind"] not in NOT_KUBERNETES:
            kubernetes_validate.validate(dict(one), version, strict=True)
    report = chart.lint(CHART, everything, namespace="etcdsem")
    assert [one for one in report["messages"] if one["severity"] > 1] == []


def test_an_upgrade_changes_only_what_may_change() -> None:
    """Other images, users and endpoints: no immutable field differs. Hooks are made anew."""
    image = {"repository": "other/etcd", "tag": "v9"}
    values = {"images": {"etcd": image}, "users": "team-b read /etcdsem/\n", "cpuLimit": True}
    before, after = installed(), installed(values)
    assert set(before) == set(after)
    changed = {one for one in before if before[one] != after[one]}
    assert changed >= {("StatefulSet", "etcd", "etcdsem"), ("ConfigMap", "etcd-users", "etcdsem")}
    for one in changed - {HOOK}:
        assert immutable(before[one]) == immutable(after[one]), one


def test_another_namespace() -> None:
    """No address of the namespace etcdsem is left."""
    with chart.Chart.load(CHART) as loaded:
        files = loaded.render({"certManager": True}, name="x", namespace="other")
    assert ".etcdsem.svc" not in "".join(files.values())
    assert ".other.svc" in files["etcdsem/templates/service.yaml"]
