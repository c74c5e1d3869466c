"""Alerts on the service in Kubernetes: etcd's members, backups, users and certificates."""

from __future__ import annotations

import re
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.helpers.manifests import KUBERNETES, TEAM, Object, rendered
from tests.operators.test_monitoring import needs_promtool, run_promtool

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

CHECKED = (
    'kube_cronjob_status_last_successful_time{cronjob="etcdsem-certificate", namespace="team-a"}'
)

WELL = {
    **{f'up{{job="etcd-members", pod="etcd-{number}"}}': "1x120" for number in range(3)},
    'etcd_server_has_leader{job="etcd-members"}': "1x120",
    'etcd_mvcc_db_total_size_in_bytes{job="etcd-members"}': "60x120",
    'etcd_server_quota_backend_bytes{job="etcd-members"}': "100x120",
    'kube_cronjob_status_last_successful_time{cronjob="etcd-backup"}': "0x120",
    'kube_cronjob_status_last_successful_time{cronjob="etcd-access"}': "0+60x120",
    'kube_cronjob_created{cronjob="etcdsem-certificate", namespace="new"}': "0x120",
    CHECKED: "0x120",
}
"""Two hours of metrics when nothing is wrong, one number for each minute."""

FIRES = {
    "EtcdsemMemberDown": {'up{job="etcd-members", pod="etcd-2"}': "0x120"},
    "EtcdsemNoLeader": {'etcd_server_has_leader{job="etcd-members"}': "0x120"},
    "EtcdsemSpace": {'etcd_mvcc_db_total_size_in_bytes{job="etcd-members"}': "71x120"},
    "EtcdsemBackupMissing": {
        'kube_cronjob_status_last_successful_time{cronjob="etcd-backup"}': "-50000x120"
    },
    "EtcdsemAccessFailing": {
        'kube_cronjob_status_last_successful_time{cronjob="etcd-access"}': "-9000x120"
    },
    "EtcdsemCertificateEnds": {CHECKED: "-180000x120"},
}

NAMESPACES = {"EtcdsemCertificateEnds": {"namespace": "team-a"}}
"""Labels of an alert besides those that its rule gives."""


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Object, ...]:
    """Production with the component."""
    root = tmp_path_factory.mktemp("monitored") / "kubernetes"
    shutil.copytree(KUBERNETES, root)
    path = root / "overlays" / "production" / "kustomization.yaml"
    with_it = "components:\n  - ../../components/monitoring\n"
    path.write_text(path.read_text().replace("components:\n", with_it))
    return rendered("overlays/production", root)


def rules(objects: tuple[Object, ...]) -> list[dict[str, Any]]:
    (found,) = [one for one in objects if one["kind"] == "PrometheusRule"]
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def test_the_monitor_selects_the_members(objects: tuple[Object, ...]) -> None:
    """By the label and the port of their Service, whose name is the label `job` in the alerts."""
    (monitor,) = [one for one in objects if one["kind"] == "ServiceMonitor"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = [
        one
        for one in objects
        if one["kind"] == "Service" and wanted <= one["metadata"].get("labels", {}).items()
    ]
    assert service["metadata"]["name"] == "etcd-members"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    jobs = {job for rule in rules(objects) for job in re.findall(r'{job="([^"]*)"', rule["expr"])}
    assert jobs == {"etcd-members"}
    named = {one for rule in rules(objects) for one in re.findall(r'cronjob="(.*?)"', rule["expr"])}
    everything = (*objects, *rendered(TEAM))
    assert named == {one["metadata"]["name"] for one in everything if one["kind"] == "CronJob"}


def test_etcd_has_these_metrics(etcd: EtcdServer, objects: tuple[Object, ...]) -> None:
    with urllib.request.urlopen(f"http://{etcd.endpoint}/metrics", timeout=10) as answer:
        served = answer.read().decode()
    for metric in re.findall(r"\betcd_\w+", " ".join(rule["expr"] for rule in rules(objects))):
        assert f"\n{metric} " in served


@needs_promtool
@pytest.mark.parametrize(("alert", "changed"), [("", {}), *FIRES.items()])
def test_an_alert_fires_when_it_should(
    objects: tuple[Object, ...], alert: str, changed: Mapping[str, str], tmp_path: Path
) -> None:
    """After two hours of such metrics it fires, and no other does. A certificate that was never
    checked counts from the creation of its CronJob.
    """
    bare = [{**rule, "annotations": {}} for rule in rules(objects)]
    assert {rule["alert"] for rule in bare} == set(FIRES)
    groups = [{"name": "g", "rules": bare}]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    series = [{"series": one, "values": shown} for one, shown in {**WELL, **changed}.items()]
    expected = [
        {
            "eval_time": "2h",
            "alertname": rule["alert"],
            "exp_alerts": [{"exp_labels": {**rule["labels"], **NAMESPACES.get(alert, {})}}]
            if rule["alert"] == alert
            else [],
        }
        for rule in bare
    ]
    case = {"interval": "1m", "input_series": series, "alert_rule_test": expected}
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "case.yml").write_text(yaml.safe_dump(whole))
    run_promtool("test", "rules", tmp_path / "case.yml")
