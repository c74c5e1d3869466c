"""The alerts, the dashboard and the documentation speak of metrics that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from etcdsem import Client, Rate, RateLimit, Semaphore, metrics
from tests import make_rules
from tests.cli.driver import Cli, ran
from tests.cli.test_exporter import Exporter

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
OURS = r"(?:etcdsem|semaphore|rate_limit)_[a-z0-9_]*[a-z0-9]"
WORDS = {
    *("and", "or", "unless", "by", "le", "name", "outcome"),
    *("absent", "histogram_quantile", "increase", "max", "min", "rate", "sum", "time"),
}
"""What else stands in our queries: operators, functions, labels to group by."""

FROM_SCRAPING = {"instance", "job", "namespace", "pod"}
"""Labels that Prometheus adds."""

Labels = Mapping[str, set[str]]


def rules() -> list[dict[str, Any]]:
    """All alert rules."""
    return [rule for group in groups() for rule in group["rules"]]


def groups() -> list[dict[str, Any]]:
    """Their groups."""
    loaded: list[dict[str, Any]] = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return loaded


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    loaded: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return loaded


def panel_queries() -> list[str]:
    """The queries of all panels, as Grafana would send them."""
    found = [
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())
    ]
    return [
        re.sub(r"\$(prefix|semaphore|rate_limit)\b", ".*", one).replace("$__rate_interval", "5m")
        for one in found
    ]


def queries() -> list[str]:
    """All of them, alerts and panels."""
    return [rule["expr"] for rule in rules()] + panel_queries()


_served: dict[str, set[str]] = {}


@pytest.fixture
def served(etcd: EtcdServer, client: Client, name: str, tmp_path: Path, start: Any) -> Labels:
    """Every metric that there really is, with its labels: from all three sources, once."""
    if _served:
        return _served
    registry = CollectorRegistry()
    metrics.register(registry)
    RateLimit(f"{name}.rate", 2, "1m", client=client).acquire()
    wanted: dict[str, int | Rate] = {name: 2, f"{name}.rate": Rate(2, 60.0, 1), f"{name}.off": 1}
    wanted[f"{name}.rate-off"] = Rate(1, 60.0, 1)
    client.apply_limits(client.plan_limits(wanted))
    client.penalize(f"{name}.off", "1h")
    client.penalize(f"{name}.rate-off", "1h")
    with Semaphore(2, name, client=client):
        exporter = Exporter(start(etcd, "exporter", "--listen", "127.0.0.1:0"))
        exported = exporter.get("/metrics")[1]
    path = tmp_path / "job.prom"
    ran(etcd, "run", name, "-l2", "--metrics-file", str(path), "--", "true")
    labels = defaultdict[str, set[str]](set)
    for text in (exported, generate_latest(registry).decode(), path.read_text()):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels[sample.name] |= set(sample.labels)
    _served.update(labels)
    return _served


@pytest.fixture
def start() -> Iterator[Any]:
    """Start ``etcdsem <arguments>``."""
    started: list[Cli] = []

    def one(etcd: EtcdServer, *arguments: str) -> Cli:
        started.append(Cli(etcd, *arguments))
        return started[-1]

    yield one
    for cli in started:
        cli.kill()


def test_the_operators_rules_are_made_from_prometheus_rule_file() -> None:
    """Has one of the two changed? Edit rules.yaml, and run `python -m tests.make_rules`."""
    assert make_rules.MADE.read_text() == make_rules.made()
    resource = yaml.safe_load(make_rules.made())
    assert resource["kind"] == "PrometheusRule"
    assert resource["spec"] == {"groups": groups()}


def test_queries_use_metrics_and_labels_that_exist(served: Labels) -> None:
    """Each metric is served, with the labels that select from it; and nothing else is used."""
    for query in queries():
        bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", query)
        for metric, chosen in re.findall(rf"\b({OURS})(?:\{{([^}}]*)\}})?", bare):
            assert metric in served, f"{metric} in {query}"
            assert set(re.findall(r"(\w+)\s*[=!]", chosen)) <= served[metric], query
        rest = set(re.findall(r"\b[a-z_]+\b", re.sub(rf"\b{OURS}|\{{[^}}]*\}}", "", bare)))
        assert rest <= WORDS, f"{rest - WORDS} in {query}"
    variables = dashboard()["templating"]["list"]
    for one in variables:
        if one["type"] == "query":
            metric, label = re.fullmatch(
                rf"label_values\(({OURS})(?:{{.*}})?, (\w+)\)", one["query"]["query"]
            ).groups()  # type: ignore[union-attr]
            assert label in served[metric]


def test_the_documentation_names_all_metrics_and_no_others(served: Labels) -> None:
    """docs/metrics.md, with a name for each family."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    documented = set(re.findall(rf"`({OURS})`", text))
    real = {re.sub(r"_(bucket|sum|count)$", "", one) for one in served}
    ours = {one for one in real if re.match(OURS, one)}
    assert documented == {one for one in ours if not one.endswith("_created")}


def test_alerts_are_complete() -> None:
    """Name, severity, texts that end, labels that the query keeps; and each is documented."""
    documented = (ROOT / "docs" / "metrics.md").read_text()
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 10
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule
        assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"| `{rule['alert']}` | {rule['labels']['severity']} |" in documented
        for text in rule["annotations"].values():
            assert text.endswith(".")
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= {"name", "prefix", "instance"}
    assert set(re.findall(r"\| `(Etcdsem\w+)` \|", documented)) == set(names) == set(FIRES)


def test_the_dashboard_can_be_imported() -> None:
    """A uid, panels that don't overlap, every query through the chosen data source."""
    board = dashboard()
    assert board["uid"] == "etcdsem-semaphores"
    assert {one["name"] for one in board["templating"]["list"]} >= {
        "datasource",
        "semaphore",
        "rate_limit",
    }
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["type"] == "row" or panel["description"]


def test_monitors_select_the_exporter() -> None:
    """By the label and the port of its Service."""
    monitor = yaml.safe_load((MONITORING / "servicemonitor.yaml").read_text())
    assert monitor["kind"] == "ServiceMonitor"
    assert monitor["spec"]["selector"]["matchLabels"] == {
        "app.kubernetes.io/name": "etcdsem-exporter"
    }
    assert [one["port"] for one in monitor["spec"]["endpoints"]] == ["metrics"]


def test_kustomize_builds_it() -> None:
    """`kubectl kustomize` gives the rules, the monitors and the dashboard."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl")
    done = subprocess.run(
        ["kubectl", "kustomize", str(MONITORING)], capture_output=True, text=True, check=True
    )
    built = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert set(built) == {"ConfigMap", "PodMonitor", "PrometheusRule", "ServiceMonitor"}
    assert json.loads(built["ConfigMap"]["data"]["etcdsem.json"]) == dashboard()


# ---------------------------------------------------------------- with promtool, where it is

promtool = os.environ.get("ETCDSEM_PROMTOOL") or shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    promtool is None, reason="there is no promtool (Debian's package prometheus)"
)


def run_promtool(*arguments: object) -> None:
    done = subprocess.run(
        [str(promtool), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_understands_every_query(tmp_path: Path) -> None:
    """The file of alert rules as it is, the panels' queries as recording rules."""
    run_promtool("check", "rules", MONITORING / "rules.yaml")
    recording = [{"record": f"q:{i}", "expr": one} for i, one in enumerate(panel_queries())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "p", "rules": recording}]}))
    run_promtool("check", "rules", path)


@needs_promtool
def test_promtool_finds_the_exporters_names_good(etcd: EtcdServer, start: Any) -> None:
    """Units, suffixes, help texts."""
    exporter = Exporter(start(etcd, "exporter", "--listen", "127.0.0.1:0"))
    text = exporter.get("/metrics")[1]
    done = subprocess.run(
        [str(promtool), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FIRES = {
    "EtcdsemExporterDown": {},
    "EtcdsemEtcdDown": {"etcdsem_up": "0x60"},
    "EtcdsemOvergranted": {"etcdsem_semaphore_overbooked_total": "0x10 1x50"},
    "EtcdsemHeldBeyondLimit": {"etcdsem_semaphore_overbooked_leases": "2x60"},
    "EtcdsemLimitUnreadable": {"etcdsem_semaphore_limit_unreadable": "1x60"},
    "EtcdsemSaturated": {
        "etcdsem_semaphore_active_slots": "4x60",
        "etcdsem_semaphore_max_leases": "5x60",
        "etcdsem_semaphore_pending_leases": "1x60",
        "etcdsem_semaphore_next_wants_slots": "2x60",
    },
    "EtcdsemRateUsedUp": {
        "etcdsem_rate_limit_used_starts": "960x60",
        "etcdsem_rate_limit_block_starts": "50x60",
        "etcdsem_rate_limit_max_starts": "1000x60",
        "etcdsem_rate_limit_pending_starts": "1x60",
    },
    "EtcdsemPaused": {
        "etcdsem_semaphore_active_slots": "0x60",
        "etcdsem_semaphore_max_leases": "5x60",
        "etcdsem_semaphore_pending_leases": "1x60",
        "etcdsem_semaphore_next_wants_slots": "1x60",
        "etcdsem_semaphore_paused": "1x60",
    },
    "EtcdsemIdleSlot": {
        "etcdsem_semaphore_active_slots": "4x60",
        "etcdsem_semaphore_max_leases": "5x60",
        "etcdsem_semaphore_pending_leases": "1x60",
        "etcdsem_semaphore_next_wants_slots": "1x60",
    },
    "EtcdsemWaitsLong": {"etcdsem_semaphore_oldest_wait_seconds": "3601x60"},
    "EtcdsemLeasesLost": {"etcdsem_semaphore_losses_total": "0x50 1x10"},
    "EtcdsemProgramOverbooks": {"semaphore_overbooked_leases": "1x60"},
    "EtcdsemLimitDrift": {"etcdsem_semaphore_limit_drift": "2x60"},
    "EtcdsemJunkKeys": {"etcdsem_semaphore_junk_keys": "1x60"},
    "EtcdsemProgramLostLeases": {"semaphore_losses_total": "0x50 1x10"},
    "EtcdsemRefreshLate": {"semaphore_renewals_late_total": "0x50 9x10"},
    "EtcdsemJobLostLease": {"etcdsem_job_lost": "1x60", "etcdsem_job_end_time_seconds": "3000x60"},
}
"""Metrics of an hour, one number for each minute."""

RATES_FIRE = {
    "EtcdsemOvergranted": {"etcdsem_rate_limit_overbooked_total": "0x10 1x50"},
    "EtcdsemLimitUnreadable": {"etcdsem_rate_limit_unreadable": "1x60"},
    "EtcdsemPaused": {
        "etcdsem_rate_limit_used_starts": "0x60",
        "etcdsem_rate_limit_block_starts": "1x60",
        "etcdsem_rate_limit_max_starts": "100x60",
        "etcdsem_rate_limit_pending_starts": "1x60",
        "etcdsem_rate_limit_paused": "1x60",
    },
    "EtcdsemIdleSlot": {
        "etcdsem_rate_limit_used_starts": "99x60",
        "etcdsem_rate_limit_block_starts": "1x60",
        "etcdsem_rate_limit_max_starts": "100x60",
        "etcdsem_rate_limit_pending_starts": "1x60",
    },
    "EtcdsemWaitsLong": {"etcdsem_rate_limit_oldest_wait_seconds": "3601x60"},
    "EtcdsemJunkKeys": {"etcdsem_rate_limit_junk_keys": "1x60"},
}
"""The same for alerts that speak of rate limits too."""


@needs_promtool
@pytest.mark.parametrize(("alert", "shown"), [*FIRES.items(), *RATES_FIRE.items()])
def test_an_alert_fires_when_it_should(
    alert: str, shown: Mapping[str, str], tmp_path: Path
) -> None:
    """After an hour of such metrics it fires, and no other does."""
    bare = [
        {"name": group["name"], "rules": [{**rule, "annotations": {}} for rule in group["rules"]]}
        for group in groups()
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": bare}))
    series = {"etcdsem_up": "1x60", **shown} if shown else {}
    labels = "" if alert in ("EtcdsemExporterDown", "EtcdsemEtcdDown") else 'name="x"'
    severity = next(rule["labels"]["severity"] for rule in rules() if rule["alert"] == alert)
    expected = {"severity": severity, **({"name": "x"} if labels else {})}
    case = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {
                        "series": f"{metric}{{{'' if metric == 'etcdsem_up' else labels}}}",
                        "values": values,
                    }
                    for metric, values in series.items()
                ],
                "alert_rule_test": [
                    {
                        "eval_time": "1h",
                        "alertname": rule["alert"],
                        "exp_alerts": [{"exp_labels": expected}] if rule["alert"] == alert else [],
                    }
                    for rule in rules()
                ],
            }
        ],
    }
    (tmp_path / "case.yml").write_text(yaml.safe_dump(case))
    run_promtool("test", "rules", tmp_path / "case.yml")
