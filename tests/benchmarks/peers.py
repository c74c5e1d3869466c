"""The peers, where they can be had: each with its own server on loopback.

dask         ``pip install distributed``; a scheduler in a process of its own
etcd3 Lock   python-etcd3 0.12 in an environment of its own, since it needs an old protobuf:
             ``make bench-etcd3`` makes one, ``ETCDSEM_BENCH_ETCD3_PYTHON`` may name another
kazoo        a ZooKeeper at ``ETCDSEM_BENCH_ZOOKEEPER``, and ``pip install kazoo``
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.load import Load, run_threads

TARGETS = {
    "dask": "tests.benchmarks.peers:dask",
    "etcd3 Lock": "tests.benchmarks.peers:etcd3_lock",
    "kazoo": "tests.benchmarks.peers:kazoo",
}
NAMES = tuple(TARGETS)

_SCHEDULER = """
import asyncio, logging, sys
logging.disable(logging.CRITICAL)
from distributed import Scheduler
async def main():
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        print(scheduler.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


def missing(contestant: str) -> str:
    """Why a contestant cannot take part; empty if it can."""
    if contestant == "dask" and importlib.util.find_spec("distributed") is None:
        return "distributed is not installed"
    if contestant == "etcd3 Lock" and not os.path.exists(_etcd3_python()):
        return "make bench-etcd3 installs it"
    if contestant == "kazoo" and not os.environ.get("ETCDSEM_BENCH_ZOOKEEPER"):
        return "ETCDSEM_BENCH_ZOOKEEPER is not set"
    if contestant == "kazoo" and importlib.util.find_spec("kazoo") is None:
        return "kazoo is not installed"
    return ""


def _etcd3_python() -> str:
    made = Path(__file__).parents[2] / ".venv-etcd3" / "bin" / "python"
    return os.environ.get("ETCDSEM_BENCH_ETCD3_PYTHON") or str(made)


@contextlib.contextmanager
def surroundings(contestant: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The Python to run a contestant with, and where its server is if that is not etcd."""
    if contestant == "etcd3 Lock":
        yield _etcd3_python(), {}
    elif contestant == "kazoo":
        name = f"bench-{os.urandom(4).hex()}"  # what others left there is no business of ours
        yield sys.executable, {"endpoint": os.environ["ETCDSEM_BENCH_ZOOKEEPER"], "name": name}
    elif contestant == "dask":
        with subprocess.Popen(
            [sys.executable, "-c", _SCHEDULER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as scheduler:
            if scheduler.stdout is None or scheduler.stdin is None:
                raise AssertionError("it was started with pipes")
            yield sys.executable, {"endpoint": scheduler.stdout.readline().strip()}
            scheduler.stdin.close()
    else:
        yield sys.executable, {}


def dask(load: Load) -> None:
    """`distributed.Semaphore`, from threads of one client."""
    import logging

    import distributed

    logging.disable(logging.CRITICAL)  # it mourns each thread that ends with the process
    with distributed.Client(load.endpoint, set_as_default=True):
        sem = distributed.Semaphore(max_leases=load.limit, name=load.name)

        def work(_number: int) -> Iterator[None]:
            while True:
                while not sem.acquire(timeout=5):
                    pass
                sem.release()
                yield

        run_threads(load, work)


def etcd3_lock(load: Load) -> None:
    """python-etcd3's `Lock`; for more than one slot there is nothing, so each has its own."""
    import etcd3

    host, port = load.endpoint.split(":")
    client = etcd3.client(host, int(port))

    def work(number: int) -> Iterator[None]:
        name = load.name if load.limit == 1 else f"{load.name}-{number}"
        lock = client.lock(name, ttl=60)
        while True:
            while not lock.acquire(timeout=5):
                pass
            lock.release()
            yield

    run_threads(load, work)


def kazoo(load: Load) -> None:
    """Kazoo's `Semaphore`."""
    from kazoo.client import KazooClient

    client: Any = KazooClient(hosts=load.endpoint)
    client.start()

    def work(_number: int) -> Iterator[None]:
        semaphore = client.Semaphore(f"/{load.name}", max_leases=load.limit)
        while True:
            while not semaphore.acquire(timeout=5):
                pass
            semaphore.release()
            yield

    run_threads(load, work)
