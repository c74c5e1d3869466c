"""``apply`` and ``export``: limits as code."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import etcdsem
from etcdsem import LimitChange, Rate, RateLimit, Semaphore
from etcdsem.cli.limits_file import read_limits, write_limits
from etcdsem.errors import EtcdSemError, InvalidSetting
from tests.cli.driver import etcdctl, keys, ran_here

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

DEPLOY = Path(__file__).parents[2] / "deploy" / "kubernetes" / "limits"

FILE = """\
semaphores:
  my-api: 5
  on: 1  # a name, whatever YAML makes of it
rates: {llm: 100/1m, bulk: 10000/1m/50}
"""

WANTED = {"my-api": 5, "on": 1, "llm": Rate(100, 60.0, 1), "bulk": Rate(10_000, 60.0, 50)}

# ---------------------------------------------------------------- the file


def test_the_file_is_read_and_written() -> None:
    assert read_limits(FILE, source="x") == WANTED
    assert read_limits("semaphores: {}", source="x") == {}
    assert read_limits('{"rates": {"llm": "100/1m"}}', source="x") == {"llm": Rate(100, 60.0, 1)}
    odd = {
        "on": 1,
        "1.5": 2,
        "null": 3,
        "-x": 4,
        "my-api": 5,
        "a.b": 6,
        "0x10": 7,
        "é"[:0] + "_": 8,
    }
    text = write_limits(odd, {"llm": "100/1m"})
    assert read_limits(text, source="x") == {**odd, "llm": Rate(100, 60.0, 1)}
    assert yaml.safe_load(text) == {"semaphores": odd, "rates": {"llm": "100/1m"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("semaphors: {a: 1}", "unknown key 'semaphors' (line 1)"),
        ("semaphores:\n  a: 1\n  a: 2", "semaphores: a (line 3): the name is there twice"),
        ("semaphores: {a: 1}\nrates:\n  a: 1/1m", "rates: a (line 3): the name is there twice, al"),
        ("semaphores: {a: 1}\nsemaphores: {b: 1}", "semaphores is there twice (line 2)"),
        ("semaphores:\n\n  a: -1", "semaphores: a (line 3): max_leases must be a whole number"),
        ("semaphores: {a: 1.5}", "not '1.5'"),
        ("semaphores: {a: 0x10}", "not '0x10'"),
        ("semaphores: {a: 100000}", "from 0 to 99999"),
        ("semaphores: {a: '5'}", "not '5'"),
        ("semaphores: {a: 100/1m}", "not '100/1m'"),
        ("rates: {a: 5}", "invalid rate 5"),
        ("rates: {a: 100/soon}", "invalid duration 'soon'"),
        ("rates: {a: {limit: 5}}", "invalid rate"),
        ("semaphores: {a/b: 1}", "a/b (line 1): invalid semaphore name"),
        ("semaphores: [a]", "semaphores (line 1): expected names"),
        ("", "expected 'semaphores"),
        ("- a", "expected 'semaphores"),
        ("semaphores: {a: 1", "invalid YAML"),
        ('{"semaphores": {"a": 1, "a": 2}}', "semaphores: a: the name is there twice"),
        ('{"semaphores": {"a": true}}', "not True"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        read_limits(text, source="limits.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("limits.yaml: ")


def test_without_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON is read; for YAML it says what to install."""
    load = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "yaml":
            raise ModuleNotFoundError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert read_limits('{"semaphores": {"a": 1}}', source="x") == {"a": 1}
    with pytest.raises(EtcdSemError, match=r"pip install 'etcdsem\[yaml\]'"):
        read_limits(FILE, source="x")


# ---------------------------------------------------------------- the commands


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "limits.yaml"
    path.write_text(FILE)
    return path


def apply(etcd: EtcdServer, file: Path, *options: str, code: int = 0) -> list[str]:
    """What it prints."""
    done = ran_here(etcd, "apply", "-f", str(file), *options)
    assert done.returncode == code, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_apply_export_and_apply_again(fresh_etcd: EtcdServer, file: Path) -> None:
    """Nothing changes the second time; what is exported is the same file."""
    added = ["+ bulk: 10000/1m/50", "+ llm: 100/1m", "+ my-api: 5", "+ on: 1"]
    assert apply(fresh_etcd, file, "--dry-run", code=2) == added
    assert etcdctl(fresh_etcd, "get", "--prefix", "--keys-only", "/") == ""
    assert apply(fresh_etcd, file) == added
    assert sorted(keys(fresh_etcd, "llm")) == ["applied", "max_leases"]
    assert apply(fresh_etcd, file) == apply(fresh_etcd, file, "--dry-run") == []
    exported = ran_here(fresh_etcd, "export").stdout
    assert read_limits(exported, source="x") == WANTED
    as_json = ran_here(fresh_etcd, "export", "--json").stdout
    assert read_limits(as_json, source="x") == WANTED
    file.write_text(exported)
    assert apply(fresh_etcd, file, "--dry-run", "--prune") == []
    assert ran_here(fresh_etcd, "export", "ll*").stdout == "semaphores: {}\nrates:\n  llm: 100/1m\n"
    assert Semaphore(5, "my-api", client=etcdsem.connect(fresh_etcd.endpoint)).max_leases == 5
    etcdctl(fresh_etcd, "put", "/etcdsem/my-api/max_leases", "five")
    done = ran_here(fresh_etcd, "export", "my-api")
    assert (done.returncode, done.stdout) == (1, "semaphores: {}\nrates: {}\n")
    assert "my-api: left out" in done.stderr
    assert apply(fresh_etcd, file) == [
        "~ my-api: five -> 5 (5 was applied, and five set by hand since)"
    ]


def test_a_change_by_hand_is_shown_and_overwritten(fresh_etcd: EtcdServer, file: Path) -> None:
    """`ls`, `status` and --dry-run show it; a pause stays."""
    apply(fresh_etcd, file)
    ran_here(fresh_etcd, "limit", "my-api", "8")
    ran_here(fresh_etcd, "pause", "my-api")
    assert "8 paused (applied: 5)" in ran_here(fresh_etcd, "ls").stdout
    assert "changed since 5 was applied; paused" in ran_here(fresh_etcd, "status", "my-api").stdout
    listed = json.loads(ran_here(fresh_etcd, "ls", "--json").stdout)["semaphores"]
    shown = {one["name"]: (one["applied"], one["drift"]) for one in listed}
    assert shown == {
        "my-api": ("5", True),
        "llm": ("100/1m", False),
        "bulk": ("10000/1m/50", False),
        "on": ("1", False),
    }
    change = ["~ my-api: 8 -> 5 (5 was applied, and 8 set by hand since)"]
    assert apply(fresh_etcd, file, "--dry-run", code=2) == change
    assert apply(fresh_etcd, file) == change
    value = etcdctl(fresh_etcd, "get", "--print-value-only", "/etcdsem/my-api/max_leases")
    assert value.startswith("5 paused by")
    assert apply(fresh_etcd, file) == []


def test_names_that_were_there_before(fresh_etcd: EtcdServer, file: Path) -> None:
    """They are taken over as they are; the other kind is an error, and nothing is written."""
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        Semaphore(5, "my-api", client=client)
        RateLimit("on", 1, "1s", client=client)
        refused = ran_here(fresh_etcd, "apply", "-f", str(file))
        assert refused.returncode == 78
        assert "'on' is a rate limit" in refused.stderr
        assert keys(fresh_etcd, "llm") == keys(fresh_etcd, "my-api")[1:] == []
        client.close_semaphore("on")
        found = apply(fresh_etcd, file)
        assert found[2] == "~ my-api: 5 (unchanged; recorded as applied)"
        Semaphore(5, "my-api", client=client)  # still the registered limit
        with pytest.raises(etcdsem.InconsistentLimit):
            Semaphore(6, "my-api", client=client)


def test_prune(fresh_etcd: EtcdServer, file: Path) -> None:
    """Only what was applied, and only while nobody uses it."""
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        Semaphore(3, "never-applied", client=client)
        apply(fresh_etcd, file)
        file.write_text("semaphores: {on: 1}")
        held = Semaphore(5, "my-api", client=client)
        with held:
            assert apply(fresh_etcd, file, "--dry-run", "--prune", code=2)[-1] == "- my-api: 5"
            assert apply(fresh_etcd, file) == []
            assert apply(fresh_etcd, file, "--prune", code=1) == [
                "- bulk: 10000/1m/50",
                "- llm: 100/1m",
                "etcdsem: my-api: not changed: it is in use (1 held, 0 waiting)",
            ]
        assert apply(fresh_etcd, file, "--prune") == ["- my-api: 5"]
        assert [one.name for one in client.overview()] == ["never-applied", "on"]


@pytest.mark.skipif(not DEPLOY.exists(), reason="deploy is not beside the tests")
def test_the_job_in_kubernetes(fresh_etcd: EtcdServer) -> None:
    """The command of deploy/kubernetes/limits, with its file."""
    (container,) = yaml.safe_load((DEPLOY / "job.yaml").read_text())["spec"]["template"]["spec"][
        "containers"
    ]
    arguments = [one.replace("/etc/etcdsem/limits", str(DEPLOY)) for one in container["args"]]
    done = ran_here(fresh_etcd, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "+ my-api: 5\n+ my-api.calls: 100/1m\n"


def test_a_plan_that_is_overtaken_changes_nothing(etcd: EtcdServer, name: str) -> None:
    """Whatever has changed since: the limit, what was applied, or that the name exists."""
    with etcdsem.connect(etcd.endpoint) as client:
        (plan,) = client.plan_limits({name: 5})
        assert plan == LimitChange(name, None, None, "5")
        semaphore = Semaphore(7, name, client=client)
        assert "apply again" in client.apply_limits([plan])[0].reason
        (plan,) = client.plan_limits({name: 5})
        semaphore.resize(8)
        assert client.apply_limits([plan])
        assert semaphore.status().max_leases == 8
        (plan,) = client.plan_limits({name: 5})
        assert client.apply_limits([plan]) == []
        assert client.apply_limits([plan]) == []  # as if its answer had been lost
        assert semaphore.status().applied == "5"
        (removal,) = (one for one in client.plan_limits({}, prune=True) if one.name == name)
        semaphore.resize(9)
        assert client.status(name).drift
        assert client.apply_limits([removal])
        assert client.limit(name) == 9
        client.close_semaphore(name)
