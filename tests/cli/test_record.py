"""`etcdsem run --metrics-file`: what is written, however a run ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.driver import Cli, keys, ran, ran_here
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def read(path: Path) -> dict[str, float]:
    """The numbers in the file, without the start of their names."""
    return {
        sample.name.removeprefix("etcdsem_job_"): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def labels(path: Path) -> dict[str, str]:
    """The labels, which all numbers of a file have in common."""
    families = text_string_to_metric_families(path.read_text())
    found = [sample.labels for family in families for sample in family.samples]
    assert all(one == found[0] for one in found)
    return found[0]


def test_a_run_that_ends_well(etcd: EtcdServer, name: str, tmp_path: Path) -> None:
    """The command's exit code, how long it waited and held, and the labels."""
    path = tmp_path / "job.prom"
    began = time.time()
    options = ("-l1", "--label", "app.kubernetes.io/name=a", "--metrics-file", str(path))
    done = ran(etcd, "run", name, *options, "--", "sh", "-c", "sleep 0.2; exit 7")
    assert done.returncode == 7, done.stderr
    seen = read(path)
    assert (seen["exit_code"], seen["granted"], seen["lost"]) == (7, 1, 0)
    assert 0.2 <= seen["held_seconds"] < 30
    assert 0 < seen["wait_seconds"] < 30
    assert began - 1 <= seen["start_time_seconds"] < seen["end_time_seconds"] <= time.time()
    assert labels(path) == {"name": name, "label_app_kubernetes_io_name": "a"}


def test_a_run_that_gives_up(
    etcd: EtcdServer, start: Callable[..., Cli], name: str, tmp_path: Path
) -> None:
    """No lease: granted is 0, and how long it took to know."""
    path = tmp_path / "job.prom"
    start(etcd, "run", name, "-l1", "--", "sleep", "60")
    eventually(lambda: "leases/00000" in keys(etcd, name))
    done = ran(etcd, "run", name, "-n", "--metrics-file", str(path), "--", "true")
    assert done.returncode == 75
    seen = read(path)
    assert (seen["exit_code"], seen["granted"], seen["held_seconds"]) == (75, 0, 0)
    assert seen["wait_seconds"] > 0


def test_a_run_that_loses_its_lease(
    etcd: EtcdServer, start: Callable[..., Cli], name: str, tmp_path: Path
) -> None:
    """Evicted: lost is 1, the code 70."""
    path = tmp_path / "job.prom"
    job = start(
        etcd, "run", name, "-l1", "--metrics-file", path, "--", "sh", "-c", "echo on; exec sleep 60"
    )
    job.expect("on")
    assert ran(etcd, "evict", name, "--slot", "0").returncode == 0
    assert job.end() == 70
    seen = read(path)
    assert (seen["exit_code"], seen["granted"], seen["lost"]) == (70, 1, 1)


def test_a_run_that_is_stopped_in_line(
    etcd: EtcdServer, start: Callable[..., Cli], name: str, tmp_path: Path
) -> None:
    """A signal while it waits is told like any end."""
    path = tmp_path / "job.prom"
    start(etcd, "run", name, "-l1", "--", "sleep", "60")
    eventually(lambda: "leases/00000" in keys(etcd, name))
    second = start(etcd, "run", name, "--metrics-file", path, "--", "true")
    eventually(lambda: any(key.startswith("waiters/") for key in keys(etcd, name)))
    second.send(signal.SIGTERM)
    assert second.end() == 128 + signal.SIGTERM
    assert read(path)["exit_code"] == 128 + signal.SIGTERM


def test_runs_that_never_start(etcd: EtcdServer, name: str, tmp_path: Path) -> None:
    """No such command, no such semaphore: the code tells which."""
    path = tmp_path / "job.prom"
    options = ("--metrics-file", str(path), "--")
    assert ran(etcd, "run", name, "-l1", *options, "no-such-command").returncode == 127
    assert read(path)["exit_code"] == 127
    assert ran(etcd, "run", name, *options, "true").returncode == 78
    assert (read(path)["exit_code"], read(path)["granted"]) == (78, 0)


@pytest.mark.parametrize("where", ["none/job.prom", ""])
def test_a_file_that_cannot_be_is_told_at_once(
    etcd: EtcdServer, name: str, tmp_path: Path, where: str
) -> None:
    """Before anybody waits for hours: usage, and nothing runs."""
    path = f"{tmp_path}/{where}"
    done = ran_here(etcd, "run", name, "-l1", "--metrics-file", path, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (64, "")
    assert "--metrics-file" in done.stderr


def test_a_file_that_cannot_be_written_at_the_end_is_a_note(
    etcd: EtcdServer, name: str, tmp_path: Path
) -> None:
    """The command's exit code stays."""
    gone = tmp_path / "gone"
    gone.mkdir()
    path = gone / "job.prom"
    options = ("run", name, "-l1", "--metrics-file", str(path))
    done = ran(etcd, *options, "--", "sh", "-c", f"rmdir {gone}; exit 3")
    assert done.returncode == 3
    assert "note: cannot write the metrics file" in done.stderr
