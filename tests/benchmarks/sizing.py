"""What waiting costs etcd, formula beside measurement: ``python -m tests.benchmarks.sizing``.

1. Some clients with some waiters each stand in line while nothing is handed over. etcd's own
   counters, before and during it, tell leases, watchers, streams, requests and keepalives a second,
   and its memory and CPU.
2. Cycles are made, uncontended and handed over, and the database's growth is taken, before and
   after a compaction.
3. With ``--connections N``: so many connections to an etcd, which tells what each costs it.
4. With ``--simulate N``: N clients on the etcd in memory, for ten minutes of its time, to see that
   the formulas hold for more than this machine bears.

`docs/sizing.md` explains them. Refreshing is made quicker here (every 2 s instead of 10), so that
it need not be watched for long: the formulas have the interval in them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from etcdsem.etcd import rpc
from etcdsem.server import EtcdServer
from tests.benchmarks.book import Book
from tests.benchmarks.measure import fresh_etcd, machine, metrics

TTL, REFRESH = 6.0, 2.0
REREAD = 10.0
"""Seconds between two looks of the waiter on duty, on average (`station.REREAD`)."""
LOOK = 2
"""Reads of a look."""
DEFAULT_REFRESH = 10.0
"""A third of the default lease timeout."""
SETTLE = 6.0
"""Seconds until a waiter's own key is watched, and more (`station.WATCH_WAITER_AFTER`)."""
WINDOW = 15.0


class Crowd(NamedTuple):
    """So many clients (processes), each with waiters on so many semaphores, each of limit 1."""

    clients: int
    semaphores: int
    each: int
    """Waiters of each client on each semaphore."""

    @property
    def waiters(self) -> int:
        """All of them."""
        return self.clients * self.semaphores * self.each

    def __str__(self) -> str:
        return f"{self.clients} clients x {self.semaphores} semaphores x {self.each} waiters"


CROWDS = (Crowd(5, 1, 10), Crowd(40, 1, 5), Crowd(10, 1, 50), Crowd(5, 20, 2), Crowd(100, 1, 1))


def parse(text: str) -> Crowd:
    """A crowd as ``100x1x100``."""
    clients, semaphores, each = map(int, text.split("x"))
    return Crowd(clients, semaphores, each)


def formulas(crowd: Crowd, refresh: float) -> dict[str, float]:
    """What is expected of etcd. Each semaphore has a holder, all of them of one more client."""
    held = crowd.semaphores
    pairs = crowd.clients * crowd.semaphores
    leases = crowd.waiters + held
    return {
        "connections": 2.0 * (crowd.clients + 1),  # at most: those for calls are closed when idle
        "leases": leases,
        "streams": 2.0 * (crowd.clients + 1),
        "watchers": 3 * pairs + crowd.waiters + held,
        "keepalives": leases / refresh,
        "reads": LOOK * pairs / REREAD,
        "writes": 0.0,
    }


TITLES = {
    "connections": "connections",
    "leases": "leases",
    "streams": "streams (watch, keepalive)",
    "watchers": "watchers",
    "keepalives": "keepalives a second",
    "reads": "reads a second",
    "writes": "commits a second",
}


# ---------------------------------------------------------------- the crowd, in one process


async def queue_up(endpoint: str, crowd: Crowd) -> None:
    """Say `waiting` when all are in line, and stay there until stdin ends."""
    from etcdsem.aio import Semaphore, connect

    holder = connect(endpoint)
    names = [f"s{number}" for number in range(crowd.semaphores)]
    for name in names:
        sem = await Semaphore(1, name, client=holder, lease_timeout=TTL, refresh_interval=REFRESH)
        await sem.acquire()
    tasks = []
    clients = [connect(endpoint) for _ in range(crowd.clients)]
    for client in clients:
        for name in names:
            one = await Semaphore(
                1, name, client=client, lease_timeout=TTL, refresh_interval=REFRESH
            )
            tasks += [asyncio.create_task(one.acquire()) for _ in range(crowd.each)]
    while sum(one.waiting for one in await holder.overview()) < crowd.waiters:
        await asyncio.sleep(0.2)
    print("waiting", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


def counters(etcd: EtcdServer) -> dict[str, float]:
    """What etcd counts, under our names."""
    found = metrics(etcd)

    def grpc(kind: str, method: str) -> float:
        return sum(
            value
            for name, value in found.items()
            if name.startswith(f"grpc_server_{kind}_total{{") and f'"{method}"' in name
        )

    opened = sum(grpc("started", name) for name in ("Watch", "LeaseKeepAlive"))
    closed = sum(grpc("handled", name) for name in ("Watch", "LeaseKeepAlive"))
    return {
        "leases": len(etcd.etcdctl("lease", "list").splitlines()) - 1.0,
        "streams": opened - closed,
        "watchers": found["etcd_debugging_mvcc_watcher_total"],
        "keepalives": grpc("msg_received", "LeaseKeepAlive"),
        "reads": grpc("started", "Range") + grpc("started", "Txn"),
        "writes": found["etcd_server_proposals_committed_total"],
        "rss_mb": found["process_resident_memory_bytes"] / 2**20,
        "cpu": found["process_cpu_seconds_total"],
        "connections": _connections(etcd.port),
        "db_kb": found["etcd_mvcc_db_total_size_in_use_in_bytes"] / 1024,
    }


def _connections(port: int) -> float:
    """How many are established to a port of loopback; Linux tells."""
    here, established = f"0100007F:{port:04X}", "01"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return float(sum(line.split()[1] == here and line.split()[3] == established for line in lines))


def measure(crowd: Crowd, window: float) -> dict[str, float]:
    """What etcd has, and what it gets in a second, while they wait."""
    with fresh_etcd() as etcd:
        empty = counters(etcd)
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.benchmarks.sizing"),
                *("--crowd", etcd.endpoint, json.dumps(crowd)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline().strip() != "waiting":
                    raise SystemExit("the crowd did not get into line; what it said is above")
                time.sleep(SETTLE)
                before, began = counters(etcd), time.monotonic()
                time.sleep(window)
                after, took = counters(etcd), time.monotonic() - began
            finally:
                process.kill()
    found = {name: after[name] for name in ("leases", "streams", "watchers")}
    found["connections"] = after["connections"] - empty["connections"]
    for name in ("keepalives", "reads", "writes", "cpu"):
        found[name] = (after[name] - before[name]) / took
    for name in ("rss_mb", "db_kb"):
        found[name] = after[name] - empty[name]
    return found


# ---------------------------------------------------------------- the database


def growth(clients: int, cycles: int) -> dict[str, float]:
    """Bytes in etcd's database for each cycle, before and after a compaction."""
    import etcdsem

    with fresh_etcd() as etcd, contextlib.ExitStack() as stack:
        sems = [
            etcdsem.Semaphore(1, "x", client=stack.enter_context(etcdsem.connect(etcd.endpoint)))
            for _ in range(clients)
        ]
        before = counters(etcd)["db_kb"]
        _cycles(sems, cycles)
        time.sleep(0.5)  # etcd commits every 100 ms
        after = counters(etcd)["db_kb"]
        status = json.loads(etcd.etcdctl("endpoint", "status", "-w", "json"))[0]
        etcd.etcdctl("compact", "--physical", str(status["Status"]["header"]["revision"]))
        time.sleep(0.5)
        compacted = counters(etcd)["db_kb"]
    return {
        "bytes": 1024 * (after - before) / cycles,
        "compacted": 1024 * (compacted - before) / cycles,
    }


def _cycles(sems: list[Any], cycles: int) -> None:
    import threading

    def work(sem: Any) -> None:
        for _ in range(cycles // len(sems)):
            with sem:
                pass

    threads = [threading.Thread(target=work, args=(sem,)) for sem in sems]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


# ---------------------------------------------------------------- connections


def connections(count: int) -> dict[str, float]:
    """What an idle connection costs etcd, and one with a watch, in KB."""
    from etcdsem.etcd.dialing import Dialer
    from etcdsem.etcd.settings import read_settings
    from etcdsem.etcd.streams import WATCH
    from etcdsem.etcd.transport import Transport

    kept: list[object] = []
    with fresh_etcd() as etcd:
        settings = read_settings(etcd.endpoint)

        def connect(number: int) -> None:
            transport = Transport(Dialer(settings, settings.endpoints[0]))
            transport.call("/etcdserverpb.Maintenance/Status", b"", 5, None)
            kept.append(transport)

        def watch(number: int) -> None:
            carrier = Transport(Dialer(settings, settings.endpoints[0])).connect_streams(5)
            create = rpc.WatchCreateRequest(key=f"/sizing/{number}".encode())
            request = rpc.WatchRequest(create_request=create)
            carrier.send(carrier.open(WATCH, None), request.SerializeToString())
            carrier.wait()
            kept.append(carrier)

        connect(-1)
        found, before = {}, _settled_kb(etcd)
        for kind, make in (("idle", connect), ("with a watch", watch)):
            for number in range(count):
                make(number)
            after = _settled_kb(etcd)
            found[kind] = (after - before) / count
            before = after
    return found


def _settled_kb(etcd: EtcdServer) -> float:
    time.sleep(5)
    return counters(etcd)["rss_mb"] * 1024


# ---------------------------------------------------------------- in memory


async def simulate(clients: int, minutes: float) -> dict[str, float]:
    """Requests a second of so many waiting clients, in ten minutes of the time in memory."""
    import etcdsem.testing.aio
    from etcdsem.aio import Semaphore

    async with etcdsem.testing.aio.memory(autojump="1h") as etcd:
        holder = await Semaphore(1, "x", client=etcd.client())
        await holder.acquire()
        crowd = [etcd.client() for _ in range(clients)]
        tasks = []
        for client in crowd:
            sem = await Semaphore(1, "x", client=client)
            tasks.append(asyncio.create_task(sem.acquire()))
        await etcd.advance("30s")
        before = sum((client.requests for client in crowd), start=crowd[0].requests.__class__())
        await etcd.advance(f"{minutes}m")
        after = sum((client.requests for client in crowd), start=crowd[0].requests.__class__())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {name: (after[name] - before[name]) / (60 * minutes) for name in after}


# ---------------------------------------------------------------- all


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.sizing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the smallest crowd only")
    parser.add_argument("--simulate", type=int, default=100, metavar="N", help="default 100")
    parser.add_argument("--json", type=Path, help="add it to this file")
    parser.add_argument(
        "--connections", type=int, metavar="N", help="only what a connection costs, of so many"
    )
    parser.add_argument(
        "--predict",
        metavar="CxSxW",
        type=parse,
        help="only the formulas, for C clients with W waiters each on each of S semaphores",
    )
    parser.add_argument("--crowd", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.crowd:
        logging.disable(logging.CRITICAL)
        asyncio.run(queue_up(options.crowd[0], Crowd(*json.loads(options.crowd[1]))))
        return
    if options.predict:
        for name, value in formulas(options.predict, DEFAULT_REFRESH).items():
            print(f"{value:12,.1f}  {TITLES[name]}")
        return
    if options.connections:
        for kind, size in connections(options.connections).items():
            print(f"{size:8.0f} KB  a connection, {kind}")
        return
    window = WINDOW / 4 if options.quick else WINDOW
    names = [*TITLES, "memory, MB", "cores"]
    heads = [*(f"{title} (formula)" for title in TITLES.values()), "memory, MB", "cores"]
    table = [["", *heads]]
    crowds = []
    for crowd in CROWDS[:1] if options.quick else CROWDS:
        found = measure(crowd, window)
        expected = formulas(crowd, REFRESH)
        cells = [f"{found[n]:.1f} ({expected[n]:.1f})" for n in TITLES]
        cells += [f"{found['rss_mb']:.0f}", f"{found['cpu']:.3f}"]
        table.append([str(crowd), *cells])
        crowds.append({"crowd": crowd._asdict(), "found": found, "expected": expected})
        print(crowd, flush=True)
        for name, cell in zip(names, cells, strict=True):
            print(f"  {TITLES.get(name, name):28} {cell}")
    grown = {}
    cycles = 200 if options.quick else 2000
    for clients, kind in ((1, "uncontended"), (4, "handed over")):
        grown[kind] = growth(clients, cycles)
        print(
            f"{kind}: the database grows by {grown[kind]['bytes']:.0f} bytes for each cycle, "
            f"{grown[kind]['compacted']:.0f} after a compaction"
        )
    simulated = asyncio.run(simulate(20 if options.quick else options.simulate, 10))
    print(f"in memory, a second: { {name: round(rate, 2) for name, rate in simulated.items()} }")
    facts = {"machine": machine(), "crowds": crowds, "growth": grown, "simulated": simulated}
    Book(options.json).put("sizing", {**facts, "table": table})


if __name__ == "__main__":
    main()
