"""One measurement: a contestant under a load, on an etcd of its own."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from etcdsem import server
from etcdsem.server import EtcdServer
from tests.benchmarks import peers
from tests.benchmarks.rows import TARGETS, Row

WARM_UP = 60.0
"""Seconds for each client to have its first turn; else some starve, and are counted with 0."""
PEERS_WARM_UP = 6.0


class Result(NamedTuple):
    """One measurement. What is "each" is for each cycle."""

    rate: float
    """Cycles a second."""
    jain: float
    """Jain's index: 1 if all clients got the same share, 1/N if one got all."""
    least: int
    """Turns of the client that had fewest."""
    starved: int
    """Clients that had less than a third of a fair share."""
    commits: float
    events: float
    etcd_ms: float
    """CPU time."""
    client_ms: float
    refused: int
    """Transactions that etcd refused, in all: there should be none."""


@contextlib.contextmanager
def fresh_etcd(fsync: bool = False, extra_args: tuple[str, ...] = ()) -> Iterator[EtcdServer]:
    """An etcd of one's own: nobody pays for the keys that another one left behind.

    fsync: as etcd runs in earnest; else without, so that the disk is no part of what is measured.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if fsync else None
        data = os.path.join(folder, "data") if folder else None
        yield stack.enter_context(
            server.start(binary=_binary(), data_dir=data, extra_args=extra_args)
        )


def _binary() -> str:
    """The etcd that came with the package, before the one on PATH, which may be an older one."""
    return server.find_binary("etcd", beside=sys.executable)


def metrics(etcd: EtcdServer) -> dict[str, float]:
    """Etcd's counters; those with labels are summed up."""
    with urllib.request.urlopen(f"{etcd.client_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line and line[0] != "#":
            name, number = line.rsplit(" ", 1)
            found[name] = float(number)
            if "{" in name:
                bare = name.split("{", 1)[0]
                found[bare] = found.get(bare, 0.0) + float(number)
    return found


def measure(etcd: EtcdServer, contestant: str, row: Row, seconds: float) -> Result:
    """Let one contestant run."""
    seconds = row.seconds(contestant, seconds)
    with peers.surroundings(contestant) as (python, extra), contextlib.ExitStack() as stack:
        load = {
            "endpoint": extra.get("endpoint", etcd.endpoint),
            "name": extra.get("name", "bench"),
            "clients": row.clients,
            "limit": row.limit,
            "seconds": seconds,
            "processes": row.processes,
            "warm_up": PEERS_WARM_UP if contestant in peers.TARGETS else WARM_UP,
        }
        workers = [
            stack.enter_context(_worker(python, TARGETS[contestant], {**load, "process": n}))
            for n in range(row.processes)
        ]
        for worker in workers:
            if (_line(worker), _line(worker)) != ("ready", "warm"):
                raise SystemExit(f"{contestant}, {row.title}: a worker did not begin")
        before = metrics(etcd)
        for worker in workers:
            print(file=worker.stdin, flush=True)
        said = [json.loads(_line(worker)) for worker in workers]
        after = metrics(etcd)
    return _result(said, before, after)


@contextlib.contextmanager
def _worker(python: str, target: str, load: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [python, "-m", "tests.benchmarks.load", target, json.dumps(load)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as worker:
        try:
            yield worker
        finally:
            worker.kill()


def _line(worker: subprocess.Popen[str]) -> str:
    if worker.stdout is None:
        raise AssertionError("the worker was started with a pipe")
    line = worker.stdout.readline().strip()
    if not line:
        raise SystemExit("a worker ended early; what it said is above")
    return line


def _result(
    said: list[dict[str, Any]], before: dict[str, float], after: dict[str, float]
) -> Result:
    counts: list[int] = [count for one in said for count in one["counts"].values()]
    total = sum(counts)

    def each(name: str) -> float:
        return (after.get(name, 0) - before.get(name, 0)) / max(1, total)

    return Result(
        rate=sum(sum(one["counts"].values()) / one["seconds"] for one in said),
        jain=jain(counts),
        least=min(counts),
        starved=sum(3 * count * len(counts) < total for count in counts),
        commits=each("etcd_server_proposals_committed_total"),
        events=each("etcd_debugging_mvcc_events_total"),
        etcd_ms=1000 * each("process_cpu_seconds_total"),
        client_ms=1000 * sum(one["cpu"] for one in said) / max(1, total),
        refused=sum(one["refused"] for one in said),
    )


def jain(shares: list[int]) -> float:
    """Jain's fairness index: (sum x)^2 / (n * sum x^2)."""
    total, squares = sum(shares), sum(share * share for share in shares)
    return total**2 / float(len(shares) * squares) if squares else 0.0


def machine(fsync: bool = False) -> dict[str, Any]:
    """What it was measured on. Names no host."""
    import grpc

    binary = _binary()
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "etcd": server.binary_version(binary),
        "fsync": fsync,
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip()
