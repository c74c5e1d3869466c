"""A client process: threads that acquire, work and release, and report to the referee. Each turn
takes one semaphore, or both at once. In addition one thread per rate limit takes its starts.

Run as a module, with its configuration as JSON in argv. When it reads "drain" on its stdin, each
thread is served once more by each semaphore, everything is closed, and the remaining threads and
file descriptors are counted. SIGUSR1 makes it hold the GIL, SIGUSR2 makes its wall clock jump.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar
from unittest import mock

import etcdsem
import etcdsem.sync
from etcdsem import EtcdSemError, Lease, RateLimit, Semaphore
from etcdsem.core import permits
from etcdsem.model import BasePermit

S = TypeVar("S")

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


LENGTHS = [0.0, 0.0, 0.01, 0.01, 0.03, 0.03, 0.1, 0.1, 1.0, 1.0]
"""Seconds of work."""

BOTH = 0.2
"""The fraction of turns that take both semaphores at once."""

TOO_EARLY, LAWLESS = "slots of starts are given back too early", "starts are not asked for"
"""Faults that can be seeded, for a negative control."""


def boottime() -> float:
    return time.clock_gettime(_CLOCK)


class Wire:
    """A thread's connection to the referee."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._file = self._socket.makefile("rwb")

    def say(self, op: str, **more: Any) -> dict[str, Any]:
        self._file.write((json.dumps({"op": op, **more}) + "\n").encode())
        self._file.flush()
        answer: dict[str, Any] = json.loads(self._file.readline())
        return answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class BaseWorker:
    """The common parts of both kinds."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.who: str = config["who"]
        self.lawless: bool = config["control"] == LAWLESS
        self.served = 0
        self.unserved: list[str] = []

    def rng(self, what: object) -> random.Random:
        """The random numbers of one of its threads or tasks."""
        return random.Random(f"{self.config['seed']}-{self.who}-{what}")

    def wire(self) -> Wire:
        return Wire(self.config["referee"])

    def semaphores(self, kind: Callable[..., S], client: object) -> list[S]:
        """The semaphore objects of one of its threads or tasks."""
        settings = {
            "client": client,
            "lease_timeout": self.config["ttl"],
            "raise_on_loss": False,
            "register": False,
            "on_lost": self.lost,
        }
        return [kind(None, name, **settings) for name in self.config["semaphores"]]

    def lost(self, lease: object) -> None:
        wire = self.wire()
        wire.say("count", what="leases lost")
        wire.close()

    def report(self, before: dict[str, int], after: dict[str, int]) -> str:
        """Its final report."""
        return json.dumps(
            {
                "served": self.served,
                "unserved": self.unserved,
                "files": open_files() if after["fds"] > before["fds"] else [],
                "before": before,
                "after": after,
            }
        )


class Worker(BaseWorker):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.draining = threading.Event()
        self.lock = threading.Lock()
        self.client: etcdsem.Client

    # -- one thread

    def life(self, number: int) -> None:
        rng, wire = self.rng(number), self.wire()
        careless = number > 0  # writes without checking whether its lease is valid
        semaphores = self.semaphores(Semaphore, self.client)
        while not self.draining.is_set():
            wanted = chosen(semaphores, rng)
            timeout = rng.choice([None, None, None, 20, 0.5, 0.05, 0])
            self.once(wanted, timeout, rng, wire, careless)
            time.sleep(rng.random() * 0.02)
        for wanted in ([semaphores[0]], [semaphores[1]], semaphores):
            self.last(wanted, wire, rng)
        wire.close()

    def acquire(
        self, wanted: list[Semaphore], timeout: float | None, rng: random.Random | None
    ) -> tuple[Lease, ...] | None:
        if len(wanted) > 1:
            return etcdsem.acquire_all(*wanted, timeout=timeout)
        lease = wanted[0].acquire_lease(timeout, **(demand(rng) if rng else {}))
        return None if lease is None else (lease,)

    def once(
        self,
        wanted: list[Semaphore],
        timeout: float | None,
        rng: random.Random,
        wire: Wire,
        careless: bool,
    ) -> None:
        try:
            leases = self.acquire(wanted, timeout, rng)
        except EtcdSemError as error:
            wire.say("count", what=f"acquire raised {type(error).__name__}")
            self.draining.wait(0.1)
            return
        if leases is not None:
            self.work(leases, rng, wire, careless)

    def work(
        self, leases: tuple[Lease, ...], rng: random.Random, wire: Wire, careless: bool
    ) -> None:
        work = Work(self.who, leases, wire, careless=careless)
        until = boottime() + rng.choice(LENGTHS)
        while work.step() and boottime() < until and not self.draining.is_set():
            time.sleep(rng.random() * 0.04)
        work.end()
        for lease in leases:
            if not lease.release():
                wire.say("count", what="releases that gave nothing back")

    def last(self, wanted: list[Semaphore], wire: Wire, rng: random.Random) -> None:
        """After the faults: every thread must be served by each semaphore, and by both at once."""
        until = boottime() + self.config["patience"]
        why = "no room"
        while boottime() < until:
            try:
                leases = self.acquire(wanted, until - boottime(), None)
            except EtcdSemError as error:
                why = str(error)
                time.sleep(0.2)
                continue
            if leases is not None:
                self.work(leases, rng, wire, careless=False)
                with self.lock:
                    self.served += 1
                return
        with self.lock:
            self.unserved.append(f"{', '.join(sem.name for sem in wanted)}: {why}")

    # -- starts of a rate limit

    def pace(self, name: str) -> None:
        """Take starts whenever there are any; at the end one more."""
        rng, wire = self.rng(name), self.wire()
        limit = RateLimit(name, client=self.client, register=False)
        while not self.draining.is_set():
            if self.lawless:
                self.draining.wait(0.05)
            if not self.start(limit, rng.choice([None, None, None, 5, 0.5, 0]), wire):
                self.draining.wait(0.1)
        until = boottime() + self.config["patience"]
        while not (served := self.start(limit, until - boottime(), wire)) and boottime() < until:
            time.sleep(0.2)
        with self.lock:
            self.served += served
            self.unserved += [] if served else [f"{name}: no start"]
        wire.close()

    def start(self, limit: RateLimit, timeout: float | None, wire: Wire) -> bool:
        asked = boottime()
        try:
            start = BasePermit(0.0) if self.lawless else limit.acquire(timeout)
        except EtcdSemError as error:
            wire.say("count", what=f"a start raised {type(error).__name__}")
            return False
        if start is not None:
            wire.say("start", **started(self.who, limit.name, self.client.id, asked, start))
        return start is not None

    # -- the process

    def tell_vitals(self) -> None:
        wire = self.wire()
        while not self.draining.wait(1.0):
            wire.say("vitals", who=self.who, t=boottime(), **vitals())
        wire.close()

    def run(self) -> int:
        # Once before counting, since gRPC keeps some threads and files permanently.
        with etcdsem.connect(self.config["endpoints"]) as client:
            warm_up(client, self.config["semaphores"][0])
        before = settled(None)
        self.client = etcdsem.connect(self.config["endpoints"])
        numbers = range(self.config["threads"])
        threads = [threading.Thread(target=self.life, args=(number,)) for number in numbers]
        for name in self.config["rates"]:
            threads.append(threading.Thread(target=self.pace, args=(name,)))
        threads.append(threading.Thread(target=self.tell_vitals))
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        sys.stdin.readline()  # "drain"
        self.draining.set()
        for thread in threads:
            thread.join()
        self.client.close()
        print(self.report(before, settled(before)), flush=True)
        return 0


class Work:
    """Reports leases that are held together to the referee."""

    def __init__(self, who: str, leases: Sequence[Held], wire: Wire, *, careless: bool) -> None:
        self._wire = wire
        self._careless = careless
        self._slots: list[tuple[Held, dict[str, Any]]] = []
        for lease in leases:
            for slot in lease.slots:
                one = {"semaphore": lease.name, "slot": slot, "token": lease.fencing_token}
                self._slots.append((lease, one))
                begun = {"who": who, "pid": os.getpid(), "lease": lease.id}
                t = boottime()  # as in `step`: the process may have been suspended since the grant
                wire.say("begin", t=t, valid=lease.valid, **one, **begun)
        if len(leases) > 1:
            wire.say("count", what="leases of both at once")

    def step(self) -> bool:
        """Write once for each slot; False if any lease is no longer valid."""
        going = True
        for lease, one in self._slots:
            t = boottime()  # before the check: a lease that is valid after t was valid at t
            valid = lease.valid
            going = going and valid
            if valid or self._careless:
                self._wire.say("step", t=t, valid=valid, **one)
        return going

    def end(self) -> None:
        """Report the end of the work."""
        for lease, one in self._slots:
            t, valid = boottime(), lease.valid
            self._wire.say("end", t=t, valid=valid, **one)


class Held(Protocol):
    """A lease of either library."""

    @property
    def name(self) -> str: ...
    @property
    def slots(self) -> tuple[int, ...]: ...
    @property
    def fencing_token(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def valid(self) -> bool: ...


def chosen(semaphores: list[S], rng: random.Random) -> list[S]:
    """The semaphores of one turn."""
    if rng.random() < BOTH:
        return rng.sample(semaphores, 2)
    return [rng.choice(semaphores)]


def started(who: str, name: str, client: str, asked: float, start: BasePermit) -> dict[str, Any]:
    """The report of a start that was requested at `asked`."""
    return {"who": who, "name": name, "client": client, "low": asked + start.waited}


def break_rules(control: str | None) -> None:
    """Seed a fault."""
    if control == TOO_EARLY:
        mock.patch.object(permits, "need", lambda period: 0.6 * period).start()


def demand(rng: random.Random) -> dict[str, Any]:
    """The request of an acquire: mostly one slot in FIFO order, sometimes more, or a priority."""
    weight = rng.choice([1, 1, 1, 1, 2])
    return {
        "weight": weight,
        "priority": rng.choice([0, 0, 0, 0, 0, 5, -5]),
        "backfill": weight == 1 and rng.random() < 0.1,
    }


def warm_up(client: etcdsem.Client, name: str) -> None:
    for _ in range(100):
        try:
            Semaphore(None, name, client=client, register=False).get_value()
            return
        except EtcdSemError:
            time.sleep(0.1)


def vitals() -> dict[str, int]:
    """The resource use of this process."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": threading.active_count(),
        "fds": len(os.listdir("/proc/self/fd")) - 1,
    }


def open_files() -> list[str]:
    """The open files, and for sockets their peers and states (as printed by ss)."""
    files = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            files.append(f"{fd}: {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue
    sockets = {}
    for table in ("tcp", "tcp6"):
        with open(f"/proc/self/net/{table}") as file:
            sockets.update({parts[9]: parts for parts in map(str.split, file)})
    for at, one in enumerate(files):
        inode = one.partition("socket:[")[2].rstrip("]")
        if inode in sockets:
            local, remote, state = sockets[inode][1:4]
            files[at] = f"{one} {local} {remote} state {state}"
    return sorted(files)


def settled(least: dict[str, int] | None) -> dict[str, int]:
    """The resource use at rest; waits for at most 10 s while it is above `least`."""
    until = boottime() + 10.0
    time.sleep(0.3)
    while True:
        now = vitals()
        high = least is not None and (
            now["threads"] > least["threads"] or now["fds"] > least["fds"]
        )
        if not high or boottime() > until:
            return now
        time.sleep(0.1)


def take_signals(config: dict[str, Any], module: Any, clock: types.ModuleType) -> None:
    """SIGUSR1 holds the GIL for longer than the TTL, SIGUSR2 makes `module`'s wall clock jump."""
    libc = ctypes.PyDLL(None)  # a PyDLL's functions keep the GIL
    # For etcdsem only: gRPC passes absolute times to its C core, whose clock would have to jump,
    # too.
    jumping = types.ModuleType("time")
    jumping.__dict__.update(clock.__dict__)
    module.time = jumping

    def hog(number: int, frame: object) -> None:
        libc.sleep(int(config["ttl"]) + 2)

    def jump(number: int, frame: object) -> None:
        offset = random.choice([-3600.0, 3600.0])
        jumping.__dict__["time"] = lambda: clock.time() + offset

    signal.signal(signal.SIGUSR1, hog)
    signal.signal(signal.SIGUSR2, jump)


def main() -> int:
    config = json.loads(sys.argv[1])
    take_signals(config, etcdsem.sync, time)
    break_rules(config["control"])
    return Worker(config).run()


if __name__ == "__main__":
    sys.exit(main())
