"""Does anything grow: ``python -m tests.benchmarks.churn --seconds 3600``.

One process lives through all that a long life may bring, with threads and with tasks: contended and
uncontended cycles, timeouts, cancelled waits, clients that come and go, semaphores that are closed
and registered again, limits that change, leases that are evicted. Every few seconds its resident
memory, threads and open files are noted, and etcd's keys, leases and the size of its database
after a compaction.

A figure grows if its median in the last quarter is above that in the second quarter by more than
a small allowance. Ten minutes show a leak of a few kB a second; the target is an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from etcdsem.errors import EtcdSemError
from etcdsem.server import EtcdServer
from tests.benchmarks.book import Book
from tests.benchmarks.measure import fresh_etcd, machine, metrics

ALLOWED: dict[str, tuple[float, float]] = {  # a share, and so much in any case
    "rss_mb": (0.04, 1.5),
    "threads": (0.05, 4),
    "fds": (0.05, 4),
    "keys": (0.10, 20),
    "leases": (0.10, 20),
    "db_mb": (0.10, 0.5),
}
TITLES = {
    "rss_mb": "resident memory, MB",
    "threads": "threads",
    "fds": "open files",
    "keys": "keys in etcd",
    "leases": "etcd leases",
    "db_mb": "etcd's database in use after compaction, MB",
}

# ---------------------------------------------------------------- the process that is watched


def live(endpoint: str) -> None:
    """Until stdin ends; prints how many cycles there were."""
    logging.disable(logging.CRITICAL)
    over = threading.Event()
    counts: dict[str, int] = {}
    workers = [
        threading.Thread(target=_forever, args=(work, endpoint, over, counts, number))
        for work in (_cycles, _cycles, _timeouts, _comes_and_goes, _closes, _operator)
        for number in range(2)
    ]
    workers.append(threading.Thread(target=lambda: asyncio.run(_loop(endpoint, over, counts))))
    for one in workers:
        one.start()
    sys.stdin.read()
    over.set()
    for one in workers:
        one.join()
    print(json.dumps(counts))


def _forever(
    work: Callable[[str, int], None],
    endpoint: str,
    over: threading.Event,
    counts: dict[str, int],
    number: int,
) -> None:
    from etcdsem import EtcdSemError

    key = f"{work.__name__.strip('_')} {number}"
    while not over.is_set():
        with contextlib.suppress(EtcdSemError):  # evicted, closed: that is part of it
            work(endpoint, number)
        counts[key] = counts.get(key, 0) + 1


_clients: dict[str, object] = {}


def _client(endpoint: str, kind: str) -> object:
    import etcdsem

    return _clients.setdefault(kind, etcdsem.connect(endpoint))


def _cycles(endpoint: str, number: int) -> None:
    """Two clients, four threads: contended on one, free on another."""
    from etcdsem import Semaphore

    client = _client(endpoint, f"cycles {number}")
    for name, limit in (("narrow", 2), ("wide", 100)):
        sem = Semaphore(None if name == "narrow" else limit, name, client=client)  # type: ignore[arg-type]
        for _ in range(25):
            with sem.hold(timeout=5):
                pass


def _timeouts(endpoint: str, number: int) -> None:
    from etcdsem import Semaphore

    sem = Semaphore(None, "narrow", client=_client(endpoint, "timeouts"))  # type: ignore[arg-type]
    if sem.acquire(timeout=random.choice((0, 0.001, 0.005, 0.02))):
        sem.release()


def _comes_and_goes(endpoint: str, number: int) -> None:
    import etcdsem

    with etcdsem.connect(endpoint) as client:
        sem = etcdsem.Semaphore(3, f"visited{number}", client=client)
        with sem, contextlib.suppress(etcdsem.EtcdSemError):
            etcdsem.Semaphore(None, "narrow", client=client).acquire(timeout=0.1)
    time.sleep(0.05)


def _closes(endpoint: str, number: int) -> None:
    from etcdsem import Semaphore

    sem = Semaphore(2, f"closed{number}", client=_client(endpoint, "closes"))  # type: ignore[arg-type]
    sem.acquire()
    sem.close()
    time.sleep(0.02)


def _operator(endpoint: str, number: int) -> None:
    import etcdsem

    client = _client(endpoint, "operator")
    assert isinstance(client, etcdsem.Client)
    if number:
        client.resize("narrow", random.choice((1, 2, 3)))
    else:
        holders = client.status("narrow").holders
        if holders:
            client.evict("narrow", lease=random.choice(holders).lease_id)
    time.sleep(0.3)


async def _loop(endpoint: str, over: threading.Event, counts: dict[str, int]) -> None:
    """Tasks that wait, and some that are cancelled while they do."""
    from etcdsem import EtcdSemError
    from etcdsem.aio import Semaphore, connect

    async with connect(endpoint) as client:
        sem = await Semaphore(None, "narrow", client=client)

        async def one(number: int) -> None:
            with contextlib.suppress(EtcdSemError):
                async with asyncio.timeout(0.02) if number % 2 else asyncio.timeout(5), sem:
                    await asyncio.sleep(0)

        while not over.is_set():
            await asyncio.gather(*map(one, range(20)), return_exceptions=True)
            counts["tasks"] = counts.get("tasks", 0) + 20


# ---------------------------------------------------------------- outside


def look(pid: int) -> dict[str, float]:
    """What the process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "rss_mb": float(lines["VmRSS"].split()[0]) / 1024,
        "threads": float(lines["Threads"]),
        "fds": float(len(os.listdir(f"/proc/{pid}/fd"))),
    }


def grows(samples: list[dict[str, float]], figure: str) -> tuple[float, float, bool]:
    """The medians in the second and the last quarter, and whether that is growth."""
    values = [sample[figure] for sample in samples]
    quarter = max(1, len(values) // 4)
    before = statistics.median(values[quarter : 2 * quarter] or values)
    after = statistics.median(values[-quarter:])
    share, least = ALLOWED[figure]
    return before, after, after > before + max(least, share * before)


def sampled(pid: int, etcd: EtcdServer) -> dict[str, float]:
    """What the process has, and etcd after a compaction."""
    sample = look(pid)
    status = json.loads(etcd.etcdctl("endpoint", "status", "-w", "json"))[0]
    with contextlib.suppress(EtcdSemError):  # it was compacted up to there
        etcd.etcdctl("compact", str(status["Status"]["header"]["revision"]))
    counted = metrics(etcd)
    sample["keys"] = counted["etcd_debugging_mvcc_keys_total"]
    sample["leases"] = float(len(etcd.etcdctl("lease", "list").splitlines()) - 1)
    sample["db_mb"] = counted["etcd_mvcc_db_total_size_in_use_in_bytes"] / 2**20
    return sample


def churn(seconds: float) -> tuple[list[dict[str, float]], dict[str, int]]:
    """The samples, and what was done."""
    samples = []
    with fresh_etcd() as etcd:
        etcd.etcdctl("put", "/etcdsem/narrow/max_leases", "2")
        with subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.churn", "--live", etcd.endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "ETCDSEM_LEASE_TIMEOUT": "5"},
        ) as process:
            try:
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    time.sleep(min(5.0, seconds / 20))
                    if process.poll() is not None:
                        raise SystemExit("the process ended early; what it said is above")
                    if not etcd.running:
                        raise SystemExit(
                            f"etcd has crashed; the end of its log:\n{etcd.log_end(30)}"
                        )
                    try:
                        samples.append(sampled(process.pid, etcd))
                    except (
                        EtcdSemError,
                        OSError,
                        subprocess.SubprocessError,
                    ) as error:
                        print(error, file=sys.stderr)
                said, _ = process.communicate("", timeout=120)
            finally:
                process.kill()
    return samples, json.loads(said)


def main() -> None:
    """Print the medians, and what grew."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.churn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="default 600")
    parser.add_argument("--json", type=Path, help="add it to this file")
    parser.add_argument("--live", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.live:
        live(options.live)
        return
    samples, counts = churn(options.seconds)
    table = [["", "second quarter", "last quarter", ""]]
    grew = []
    for figure, title in TITLES.items():
        before, after, growth = grows(samples, figure)
        grew += [title] if growth else []
        table.append([title, f"{before:.1f}", f"{after:.1f}", "grew" if growth else "no growth"])
        print(f"{before:9.1f} {after:9.1f}  {table[-1][-1]:9}  {title}")
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    facts = {"machine": machine(), "seconds": options.seconds, "grows": grew, "counts": counts}
    Book(options.json).put("churn", {**facts, "samples": samples, "table": table})


if __name__ == "__main__":
    main()
