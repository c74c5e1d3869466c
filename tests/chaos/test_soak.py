"""A shortened long run: it runs, prints and judges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos import soak
from tests.chaos.clusters import on_this_machine
from tests.chaos.conductor import RATES, Chaos


@pytest.mark.slow
def test_a_short_soak(capfd: pytest.CaptureFixture[str], etcd_binary: str) -> None:
    """Some seeds, some seconds of chaos, and a table for each worker that was never killed."""
    options = ["--seeds", "0:3", "--seconds", "6", "--on", "machine", "--etcd", etcd_binary]
    options += ["--rate-seconds", "0", "--ordinary-seconds", "0", "--no-mutants"]
    assert soak.main(options) == 0
    said = capfd.readouterr().out
    assert "3 seeds" in said
    assert said.count("RSS MB") == 2
    assert said.rstrip().endswith("nothing is wrong")


@pytest.mark.slow
def test_an_alarm_leaves_evidence(
    etcd_binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history, beliefs and faults of a run are kept, so that an alarm can be analyzed."""
    monkeypatch.chdir(tmp_path)
    with on_this_machine(etcd_binary) as cluster:
        run = Chaos(cluster, seconds=3.0, seed=1)
        report = run.run()
        report.wrong.append("for the test")
        kept = json.loads(soak.keep(run).read_text())
    assert kept["wrong"] == report.wrong
    assert sum(len(changes) for changes in kept["history"].values()) > 0
    assert {belief["semaphore"] for belief in kept["beliefs"]} <= set(kept["history"])
    assert len(kept["beliefs"]) > 0
    assert {name for name, starts in kept["starts"].items() if starts} == set(RATES)
    assert len(kept["faults"]) > 0


def test_growth_is_seen() -> None:
    """Growth from quarter to quarter is reported; ups and downs are not."""
    flat = [{"t": t, "rss": 50_000_000 + t % 7 * 1000, "threads": 9, "fds": 20} for t in range(40)]
    leak = [{**one, "fds": 20 + 2 * at} for at, one in enumerate(flat)]
    assert soak.grown("w", flat) == []
    assert soak.grown("w", leak) == ["w: fds has grown from 49 to 89"]
