"""Measure how soon a dead holder's slot is used again while many wait, and what that costs.

    python -m tests.chaos.lookout --processes 10 --clients 100 --waiters 1

`--clients` is per process, `--waiters` per client. Requests are counted by etcd itself (/metrics),
from the DELETE of the dead holder's slot on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import etcdsem
from etcdsem import Semaphore, server
from etcdsem.errors import EtcdSemError
from etcdsem.server import EtcdServer

HERE = Path(__file__).parent

HOLD = (
    "import sys, time, etcdsem\n"
    "sem = etcdsem.Semaphore(None, sys.argv[2], client=etcdsem.connect(sys.argv[1]),"
    " lease_timeout=int(sys.argv[3]))\n"
    "sem.acquire()\n"
    "print('held', flush=True)\n"
    "time.sleep(3600)\n"
)


@dataclass
class Lateness:
    """The measurements. Times in seconds."""

    waiters: int
    clients: int
    ttl: int
    kill_to_delete: float
    delete_to_grant: float
    """In etcd's own order: from the DELETE to the next grant, as seen by one watch."""
    kill_to_acquired: float
    """Until acquire() returned in the waiter's process."""
    requests: int
    """Requests that etcd served after the DELETE, minus those of idle waiters."""
    looks: list[tuple[float, int]]
    """Seconds since the DELETE, and the number of requests by then."""

    def lines(self) -> list[str]:
        """The report for people."""
        return [
            f"{self.waiters} waiters in {self.clients} clients, TTL {self.ttl} s:",
            f"  kill to DELETE            {self.kill_to_delete:7.3f} s",
            f"  DELETE to the next grant  {self.delete_to_grant:7.3f} s",
            f"  kill to acquire() = True  {self.kill_to_acquired:7.3f} s",
            f"  requests in all           {self.requests:5d}",
            *(f"    within {at:6.3f} s         {count:5d}" for at, count in self.looks),
        ]


def served(etcd: EtcdServer) -> int:
    """Number of unary requests that etcd has served so far (transactions and reads)."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{etcd.client_url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    counts: Counter[str] = Counter()
    for labels, number in re.findall(
        r"^grpc_server_msg_received_total\{([^}]*)\} (\S+)", text, re.MULTILINE
    ):
        method = re.search(r'grpc_method="([^"]*)"', labels)
        if method is not None:
            counts[method[1]] += int(float(number))
    return counts["Txn"] + counts["Range"] + counts["Put"] + counts["DeleteRange"]


class SlotEvents:
    """The events of the slots in etcd's order, with the time at which each was seen."""

    def __init__(self, etcd: EtcdServer, name: str) -> None:
        self.seen: list[tuple[str, float]] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [etcd.etcdctl_binary, "watch", "--prefix", f"/etcdsem/{name}/leases/", "-w", "json"],
            env=etcd.env(),
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            at = time.monotonic()
            with self._changed:
                for event in json.loads(line).get("Events") or ():
                    deleted = event.get("type") in (1, "DELETE")
                    self.seen.append(("delete" if deleted else "put", at))
                self._changed.notify_all()

    def wait_for(self, kind: str, seconds: float) -> float:
        """When an event of this kind was first seen."""
        with self._changed:
            found = self._changed.wait_for(lambda: kind in dict(self.seen), seconds)
            assert found, f"no {kind} within {seconds} s: {self.seen}"
            return next(at for one, at in self.seen if one == kind)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(
    etcd: EtcdServer, *, processes: int, clients: int, waiters: int, ttl: int, after: float
) -> Lateness:
    """Kill a holder while many wait. `after`: seconds for which requests are counted."""
    name = "lookout"
    total = processes * clients * waiters
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(etcdsem.connect(etcd.endpoint))
        sem = Semaphore(1, name, client=client)
        holder = _start(stack, "-c", HOLD, etcd.endpoint, name, str(ttl))
        assert _line(holder) == "held\n"
        crowd = [
            _start(stack, str(HERE / "crowd.py"), etcd.endpoint, name, str(clients), str(waiters))
            for _ in range(processes)
        ]
        granted: list[float] = []
        told = threading.Event()
        for one in crowd:
            threading.Thread(target=_listen, args=(one, granted, told), daemon=True).start()
        until = time.monotonic() + 180
        while _count(sem) < total:
            assert time.monotonic() < until, "the crowd did not come together"
            time.sleep(0.5)
        events = SlotEvents(etcd, name)
        stack.callback(events.close)
        time.sleep(4.0)  # for the watches of waiters' keys, which come after 3 s, and to settle
        before_idle = served(etcd)
        time.sleep(3.0)
        idle = (served(etcd) - before_idle) / 3.0  # rereads per second
        holder.kill()
        killed = time.monotonic()
        deleted = events.wait_for("delete", ttl + 30)
        at_delete = served(etcd)
        looks = []
        for until in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0):
            time.sleep(max(0.0, until - (time.monotonic() - deleted)))
            count = served(etcd) - at_delete
            looks.append((time.monotonic() - deleted, count))
        put = events.wait_for("put", 60)
        assert told.wait(60), "nobody was granted"
        time.sleep(max(0.0, after - (time.monotonic() - deleted)))
        requests = served(etcd) - at_delete - idle * (time.monotonic() - deleted)
    return Lateness(
        waiters=total,
        clients=processes * clients,
        ttl=ttl,
        kill_to_delete=deleted - killed,
        delete_to_grant=put - deleted,
        kill_to_acquired=granted[0] - killed,
        requests=max(0, round(requests)),
        looks=looks,
    )


def _count(sem: Semaphore) -> int:
    try:
        return len(sem.status(ttl=False).waiters)
    except EtcdSemError:
        return 0  # etcd is busy


def _start(stack: contextlib.ExitStack, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def stop() -> None:
        process.kill()
        process.communicate()

    stack.callback(stop)
    return process


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _listen(process: subprocess.Popen[str], granted: list[float], told: threading.Event) -> None:
    with contextlib.suppress(ValueError):  # closed at the end
        while line := _line(process):
            granted.append(float(line.split()[1]))
            told.set()


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--waiters", type=int, default=100)
    parser.add_argument("--ttl", type=int, default=5)
    parser.add_argument("--after", type=float, default=6.0)
    given = parser.parse_args()
    with server.start() as etcd:
        try:
            seen = measure(
                etcd,
                processes=given.processes,
                clients=given.clients,
                waiters=given.waiters,
                ttl=given.ttl,
                after=given.after,
            )
        except BaseException:
            print(etcd.log_end(30), file=sys.stderr)
            raise
    print("\n".join(seen.lines()))


if __name__ == "__main__":
    main()
