"""A client process like worker.py, with asyncio: tasks that acquire, work and release.

Some acquires are cancelled. What is said to the referee blocks the loop for a moment, as a program
with little discipline would. Signals, stdin and the report at the end are as in worker.py.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from typing import Any

import etcdsem.aio
from etcdsem import EtcdSemError
from etcdsem.aio import Lease, Semaphore
from tests.chaos import worker
from tests.chaos.worker import Wire, boottime, open_files, vitals


class AioWorker:
    """All of it in one event loop."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.who: str = config["who"]
        self.draining = asyncio.Event()
        self.served = 0
        self.unserved: list[str] = []

    async def life(self, number: int, client: etcdsem.aio.Client) -> None:
        rng = random.Random(f"{self.config['seed']}-{self.who}-{number}")
        careless = number > 0  # writes without asking whether its lease is valid
        wire = Wire(self.config["referee"])
        semaphores = [
            Semaphore(
                None,
                name,
                client=client,
                lease_timeout=self.config["ttl"],
                raise_on_loss=False,
                register=False,
                on_lost=self.lost,
            )
            for name in self.config["semaphores"]
        ]
        while not self.draining.is_set():
            await self.once(rng.choice(semaphores), rng, wire, careless)
            await asyncio.sleep(rng.random() * 0.02)
        for sem in semaphores:
            await self.last(sem, wire, rng)
        wire.close()

    async def once(self, sem: Semaphore, rng: random.Random, wire: Wire, careless: bool) -> None:
        timeout = rng.choice([None, None, None, 20, 0.5, 0.05, 0, "cancel"])
        wanted = worker.wants(rng)
        try:
            if timeout == "cancel":
                lease = await asyncio.wait_for(sem.acquire_lease(**wanted), rng.random() * 0.3)
            else:
                lease = await sem.acquire_lease(timeout, **wanted)
        except TimeoutError:
            wire.say("count", what="acquires cancelled")
            return
        except EtcdSemError as error:
            wire.say("count", what=f"acquire raised {type(error).__name__}")
            await asyncio.sleep(0.1)
            return
        if lease is not None:
            await self.work(sem, lease, rng, wire, careless)

    async def work(
        self, sem: Semaphore, lease: Lease, rng: random.Random, wire: Wire, careless: bool
    ) -> None:
        about = [
            {"semaphore": sem.name, "slot": slot, "token": lease.fencing_token}
            for slot in lease.slots
        ]
        who = {"who": self.who, "pid": os.getpid(), "lease": lease.id}
        for one in about:
            wire.say("begin", t=boottime(), **one, **who)
        until = boottime() + rng.choice(worker.LENGTHS)
        while True:
            t = boottime()  # before asking: what is valid after t was valid at t
            valid = lease.valid
            for one in about if valid or careless else ():
                wire.say("step", t=t, valid=valid, **one)
            if not valid or boottime() >= until or self.draining.is_set():
                break
            await asyncio.sleep(rng.random() * 0.04)
        t, valid = boottime(), lease.valid
        for one in about:
            wire.say("end", t=t, valid=valid, **one)
        if not await lease.release():
            wire.say("count", what="releases that gave nothing back")

    def lost(self, lease: Lease) -> None:
        wire = Wire(self.config["referee"])
        wire.say("count", what="leases lost")
        wire.close()

    async def last(self, sem: Semaphore, wire: Wire, rng: random.Random) -> None:
        """After the faults: everybody must be served, by every semaphore."""
        until = boottime() + self.config["patience"]
        why = "no room"
        while boottime() < until:
            try:
                lease = await sem.acquire_lease(until - boottime())
            except EtcdSemError as error:
                why = str(error)
                await asyncio.sleep(0.2)
                continue
            if lease is not None:
                await self.work(sem, lease, rng, wire, careless=False)
                self.served += 1
                return
        self.unserved.append(f"{sem.name}: {why}")

    async def tell_vitals(self) -> None:
        wire = Wire(self.config["referee"])
        while not self.draining.is_set():
            wire.say("vitals", who=self.who, t=boottime(), **vitals())
            await asyncio.sleep(1.0)
        wire.close()

    async def run(self) -> dict[str, Any]:
        async with etcdsem.aio.connect(self.config["endpoints"]) as client:
            await warm_up(client, self.config["semaphores"][0])
        before = await settled(None)
        loop = asyncio.get_running_loop()
        async with etcdsem.aio.connect(self.config["endpoints"]) as client:
            print("ready", flush=True)
            loop.add_reader(sys.stdin, self.draining.set)
            lives = [self.life(number, client) for number in range(self.config["threads"])]
            await asyncio.gather(*lives, self.tell_vitals())
            loop.remove_reader(sys.stdin)
        after = await settled(before)
        return {
            "served": self.served,
            "unserved": self.unserved,
            "files": open_files() if after["fds"] > before["fds"] else [],
            "before": before,
            "after": after,
        }


async def warm_up(client: etcdsem.aio.Client, name: str) -> None:
    for _ in range(100):
        try:
            await Semaphore(None, name, client=client, register=False).get_value()
            return
        except EtcdSemError:
            await asyncio.sleep(0.1)


async def settled(least: dict[str, int] | None) -> dict[str, int]:
    """What this process uses when it has come to rest; for at most 10 s while above `least`."""
    until = boottime() + 10.0
    await asyncio.sleep(0.3)
    while True:
        gc.collect()  # an exception that was caught may keep its call, and that its connection
        now = vitals()
        high = least is not None and (
            now["threads"] > least["threads"] or now["fds"] > least["fds"]
        )
        if not high or boottime() > until:
            return now
        await asyncio.sleep(0.1)


def main() -> int:
    config = json.loads(sys.argv[1])
    worker.take_signals(config, etcdsem.aio, time)
    print(json.dumps(asyncio.run(AioWorker(config).run())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
