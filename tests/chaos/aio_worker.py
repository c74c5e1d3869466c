"""A client process like worker.py, with asyncio: tasks that acquire, work and release.

Some acquires, including those of starts, are cancelled. Reporting to the referee blocks the loop
for a moment, as in a careless program. Signals, stdin and the final report are as in worker.py.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from typing import Any

import etcdsem.aio
from etcdsem import EtcdSemError
from etcdsem.aio import Lease, RateLimit, Semaphore
from etcdsem.model import BasePermit
from tests.chaos import worker
from tests.chaos.worker import BaseWorker, Wire, Work, boottime, chosen, started, vitals


class AioWorker(BaseWorker):
    """All work in one event loop."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.draining = asyncio.Event()

    async def life(self, number: int, client: etcdsem.aio.Client) -> None:
        rng, wire = self.rng(number), self.wire()
        careless = number > 0  # writes without checking whether its lease is valid
        semaphores = self.semaphores(Semaphore, client)
        while not self.draining.is_set():
            await self.once(chosen(semaphores, rng), rng, wire, careless)
            await asyncio.sleep(rng.random() * 0.02)
        for wanted in ([semaphores[0]], [semaphores[1]], semaphores):
            await self.last(wanted, wire, rng)
        wire.close()

    async def acquire(
        self, wanted: list[Semaphore], timeout: float | None, rng: random.Random | None
    ) -> tuple[Lease, ...] | None:
        if len(wanted) > 1:
            return await etcdsem.aio.acquire_all(*wanted, timeout=timeout)
        lease = await wanted[0].acquire_lease(timeout, **(worker.demand(rng) if rng else {}))
        return None if lease is None else (lease,)

    async def once(
        self, wanted: list[Semaphore], rng: random.Random, wire: Wire, careless: bool
    ) -> None:
        timeout: float | str | None = rng.choice([None, None, None, 20, 0.5, 0.05, 0, "cancel"])
        try:
            if isinstance(timeout, str):
                acquiring = self.acquire(wanted, None, rng)
                leases = await asyncio.wait_for(acquiring, rng.random() * 0.3)
            else:
                leases = await self.acquire(wanted, timeout, rng)
        except TimeoutError:
            wire.say("count", what="acquires cancelled")
            return
        except EtcdSemError as error:
            wire.say("count", what=f"acquire raised {type(error).__name__}")
            await asyncio.sleep(0.1)
            return
        if leases is not None:
            await self.work(leases, rng, wire, careless)

    async def work(
        self, leases: tuple[Lease, ...], rng: random.Random, wire: Wire, careless: bool
    ) -> None:
        work = Work(self.who, leases, wire, careless=careless)
        until = boottime() + rng.choice(worker.LENGTHS)
        while work.step() and boottime() < until and not self.draining.is_set():
            await asyncio.sleep(rng.random() * 0.04)
        work.end()
        for lease in leases:
            if not await lease.release():
                wire.say("count", what="releases that gave nothing back")

    async def last(self, wanted: list[Semaphore], wire: Wire, rng: random.Random) -> None:
        """After the faults: every task must be served by each semaphore, and by both at once."""
        until = boottime() + self.config["patience"]
        why = "no room"
        while boottime() < until:
            try:
                leases = await self.acquire(wanted, until - boottime(), None)
            except EtcdSemError as error:
                why = str(error)
                await asyncio.sleep(0.2)
                continue
            if leases is not None:
                await self.work(leases, rng, wire, careless=False)
                self.served += 1
                return
        self.unserved.append(f"{', '.join(sem.name for sem in wanted)}: {why}")

    async def pace(self, name: str, client: etcdsem.aio.Client) -> None:
        """Take starts whenever there are any; at the end one more."""
        rng, wire = self.rng(name), self.wire()
        limit = RateLimit(name, client=client, register=False)
        while not self.draining.is_set():
            await asyncio.sleep(0.05 if self.lawless else 0)
            patience = rng.choice([None, None, None, 5, 0.5, 0])
            cancelled = rng.random() if rng.random() < 0.15 else None
            try:
                async with asyncio.timeout(cancelled):
                    served = await self.start(limit, patience, wire)
            except TimeoutError:
                wire.say("count", what="starts cancelled")
                continue
            if not served:
                await asyncio.sleep(0.1)
        until = boottime() + self.config["patience"]
        while not (served := await self.start(limit, until - boottime(), wire)):
            if boottime() > until:
                break
            await asyncio.sleep(0.2)
        self.served += served
        self.unserved += [] if served else [f"{name}: no start"]
        wire.close()

    async def start(self, limit: RateLimit, timeout: float | None, wire: Wire) -> bool:
        asked = boottime()
        try:
            start = BasePermit(0.0) if self.lawless else await limit.acquire(timeout)
        except EtcdSemError as error:
            wire.say("count", what=f"a start raised {type(error).__name__}")
            return False
        if start is not None:
            wire.say("start", **started(self.who, limit.name, limit.client.id, asked, start))
        return start is not None

    def drain(self) -> None:
        self.draining.set()
        asyncio.get_running_loop().remove_reader(sys.stdin)

    async def tell_vitals(self) -> None:
        wire = self.wire()
        while not self.draining.is_set():
            wire.say("vitals", who=self.who, t=boottime(), **vitals())
            await asyncio.sleep(1.0)
        wire.close()

    async def run(self) -> str:
        async with etcdsem.aio.connect(self.config["endpoints"]) as client:
            await warm_up(client, self.config["semaphores"][0])
        before = await settled(None)
        loop = asyncio.get_running_loop()
        async with etcdsem.aio.connect(self.config["endpoints"]) as client:
            print("ready", flush=True)
            loop.add_reader(sys.stdin, self.drain)
            lives = [self.life(number, client) for number in range(self.config["threads"])]
            lives += [self.pace(name, client) for name in self.config["rates"]]
            await asyncio.gather(*lives, self.tell_vitals())
        return self.report(before, await settled(before))


async def warm_up(client: etcdsem.aio.Client, name: str) -> None:
    for _ in range(100):
        try:
            await Semaphore(None, name, client=client, register=False).get_value()
            return
        except EtcdSemError:
            await asyncio.sleep(0.1)


async def settled(least: dict[str, int] | None) -> dict[str, int]:
    """The resource use of this process at rest; waits for at most 10 s while above `least`."""
    until = boottime() + 10.0
    await asyncio.sleep(0.3)
    while True:
        gc.collect()  # a caught exception may keep its call alive, and that its connection
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
    worker.break_rules(config["control"])
    print(asyncio.run(AioWorker(config).run()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
