"""The real asyncio driver in the simulator's world: the model of etcd, its faults, its checkers.

The event loop's time is the world's: where it would wait for I/O, the world goes on to its next
event instead. Workers are tasks, driven by `etcdsem.aio`'s engine; requests, streams and all that
goes wrong with them are the simulator's.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from etcdsem.core.commands import (
    Command,
    Failure,
    GrantLease,
    LeasesTimeToLive,
    Listener,
    Mailbox,
    OutcomeUnknown,
    Procedure,
    RevokeLease,
    Transact,
    Txn,
    TxnReply,
    Watch,
)
from etcdsem.drivers.aio import AioDriver, Backend, Over
from etcdsem.drivers.aio_clock import AioMailbox
from etcdsem.errors import EtcdSemError
from tests.simulation.checks import Checker
from tests.simulation.client import SimClient
from tests.simulation.nemesis import Nemesis
from tests.simulation.options import Options
from tests.simulation.runs import Run
from tests.simulation.world import PREFIX, Cancelled, World

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Instead of waiting for I/O, let the world go on."""

    def __init__(self, world: AioWorld) -> None:
        super().__init__()
        self._world = world

    def select(self, timeout: float | None = None) -> list[Any]:
        if not self._world.ended and (timeout is None or timeout > 0):
            self._world.go_on(math.inf if timeout is None else self._world.now + timeout)
        return []


class _Loop(asyncio.SelectorEventLoop):
    """An event loop in the world's time."""

    def __init__(self, world: AioWorld) -> None:
        super().__init__(_Selector(world))
        self._world = world

    def time(self) -> float:
        return self._world.now


class AioWorld(World):
    """A world whose clients live in one event loop."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        super().__init__(seed, trace=trace)
        self.ended = False
        self.loop = _Loop(self)

    def go_on(self, until: float) -> None:
        """To the next event, at most until then."""
        moment = min(until, self._events[0][0] if self._events else math.inf)
        moment = min(moment, self.etcd.next_time())
        assert moment < math.inf, "nothing will ever happen again"
        super().run(max(self.now, moment))

    def run(self, until: float) -> None:
        """Let everything happen until a moment, callbacks of the loop and all."""

        async def sleep() -> None:
            there = self.loop.create_future()
            self.at(until, _finish, there)
            await there

        self.loop.run_until_complete(sleep())
        if self.failure is not None:
            raise self.failure

    def inside(self, function: Callable[[], T]) -> T:
        """Call something where the loop is the running one."""

        async def call() -> T:
            return function()

        if self.loop.is_running():
            return function()
        return self.loop.run_until_complete(call())

    def dispose(self) -> None:
        """The loop ends with all its tasks; nothing is performed any more."""
        self.ended = True
        for client in self.clients:
            client.crashed = True
            if isinstance(client, AioClient):
                client.driver._over = True
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.close()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Request:
    """A call under way, as the simulator's network sees a process."""

    def __init__(self, client: SimClient, answer: asyncio.Future[Any]) -> None:
        self.client = client
        self.answer = answer
        self.call: Any = None
        self.name = "task"

    def answered(self, call: Any, result: Any) -> None:
        """The answer, or a failure, has come."""
        if call.over:
            return
        call.over = True
        if call.deadline is not None:
            call.deadline.cancel()
        if self.answer.done():
            return
        if isinstance(result, Failure):
            if isinstance(result, OutcomeUnknown):
                self.client.world.counters["unknown outcomes"] += 1
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class _Line:
    """Calls, watches, renewals and clock of the simulator's client, as the engine wants them."""

    def __init__(self, client: AioClient) -> None:
        self._client = client

    async def _ask(self, command: Command[Any]) -> Any:
        client = self._client
        answer = asyncio.get_running_loop().create_future()
        request: Any = _Request(client, answer)
        if client.crashed:
            return await answer  # for ever
        client.send(request, command)
        try:
            return await answer
        except asyncio.CancelledError:
            client.world.counters["interrupted calls"] += 1
            if request.call is not None:
                request.call.over = True
            raise

    async def transact(self, txn: Txn, timeout: float) -> TxnReply:
        reply: TxnReply = await self._ask(Transact(txn, timeout))
        return reply

    async def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        granted: float = await self._ask(GrantLease(lease_id, ttl, timeout))
        return granted

    async def revoke(self, lease_id: int, timeout: float) -> None:
        await self._ask(RevokeLease(lease_id, timeout))

    async def times_to_live(
        self, lease_ids: Sequence[int], timeout: float
    ) -> tuple[float | None, ...]:
        left: tuple[float | None, ...] = await self._ask(
            LeasesTimeToLive(tuple(lease_ids), timeout)
        )
        return left

    async def close(self) -> None:
        pass


class _Watches:
    def __init__(self, client: AioClient) -> None:
        self._client = client

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: str | None = None,
    ) -> Watch:
        return self._client.watch(listener, key, end, start=start, only=only)

    def close(self) -> None:
        pass


class _Renewals:
    def __init__(self, client: AioClient) -> None:
        self._client = client

    def renew(self, lease_id: int) -> None:
        self._client.renew(lease_id)

    def restart(self) -> None:
        self._client.restart_renewals()

    def close(self) -> None:
        pass


class _Clock:
    def __init__(self, client: AioClient) -> None:
        self._client = client

    def now(self) -> float:
        return self._client.now()

    def wall(self) -> float:
        return self._client.wall()

    def mailbox(self) -> Mailbox:
        return AioMailbox()

    async def wait(self, box: Mailbox, until: float) -> object:
        assert isinstance(box, AioMailbox)
        return await box.next(self._client.now, until)


class _Driver(AioDriver):
    """The real driver, with the world's chance."""

    def __init__(self, client: AioClient) -> None:
        self._client = client
        super().__init__(
            lambda start, renewed: Backend(
                _Line(client), _Watches(client), _Renewals(client), _Clock(client)
            )
        )

    def random(self) -> float:
        return self._client.random()

    def random_id(self) -> int:
        return self._client.random_id()


class AioProcess:
    """A procedure that a task performs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = False
        self.call = self.box = None
        self.task: asyncio.Task[None] | None = None


class AioClient(SimClient):
    """A client whose procedures are performed by etcdsem.aio's engine."""

    def __init__(self, world: AioWorld, number: int) -> None:
        super().__init__(world, number)
        self.again: Callable[[str], Procedure[Any]] | None = None  # a new worker
        self.tasks: list[AioProcess] = []
        self.driver = world.inside(lambda: _Driver(self))
        self.session = self.driver.session
        self.id = self.session.client

    def mailbox(self) -> Mailbox:
        return AioMailbox()

    def start(self, procedure: Procedure[Any], name: str, on_done: Any) -> Any:
        """Perform it in a task. A worker that was cancelled begins anew."""
        driver, world = self.driver, self.world
        assert isinstance(world, AioWorld)
        process = AioProcess(name)

        async def work(procedure: Procedure[Any]) -> None:
            while True:
                try:
                    value = await driver.run(procedure)
                except asyncio.CancelledError:
                    world.counters["cancelled"] += 1
                    if self.again is None or not name.startswith("worker"):
                        process.done = True
                        on_done(None, Cancelled())
                        return
                    procedure = self.again(name)
                except (Failure, EtcdSemError, AssertionError) as error:
                    process.done = True
                    on_done(None, error)
                    return
                except Over:
                    process.done = True
                    return
                else:
                    process.done = True
                    on_done(value, None)
                    return

        def begin() -> None:
            process.task = asyncio.get_running_loop().create_task(work(procedure))
            process.task._log_destroy_pending = False  # type: ignore[attr-defined]

        world.inside(begin)
        self.tasks.append(process)
        return process

    def interrupt_somebody(self) -> None:
        """Cancel a worker wherever it stands, now and then twice."""
        workers = [one for one in self.tasks if not one.done and one.name.startswith("worker")]
        if not workers or self.crashed:
            return
        task = self.world.rng.choice(workers).task
        assert task is not None
        task.cancel()
        if self.world.rng.random() < 0.4:
            self.world.counters["cancelled again"] += 1
            self.world.after(self.world.rng.random() * 0.01, task.cancel)

    def shut_down(self, grace: float) -> None:
        self.driver._grace = grace
        self.driver._end.set()


class AioRun(Run):
    """One run of the simulator with asyncio clients."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.shared = {}  # steps of a loop do not meet
        self.world: AioWorld = AioWorld(options.seed)
        names = [f"sem{number}" for number in range(options.semaphores)]
        self.checkers = {
            name: Checker(self.world, PREFIX, name, linger=options.linger) for name in names
        }
        for checker in self.checkers.values():
            if options.kinds & {"lost deletes"}:
                checker.bound += options.reread[1]
                checker.told_bound = math.inf
        self.stopping = self.calm = False
        self.workers: list[tuple[SimClient, Any]] = []
        for name in names:
            self.world.etcd.put(f"{PREFIX}/{name}/max_leases".encode(), b"%d" % options.limit)
        self.nemesis = Nemesis(self.world, options, list(self.checkers.values()), self.add_client)
        for _ in range(options.clients):
            self.add_client()

    def add_client(self) -> SimClient:
        client = AioClient(self.world, len(self.world.clients))
        client.session.reread = self.options.reread
        client.again = lambda name: self.worker(client, name.partition(":")[2])
        for number in range(0 if self.stopping else self.options.workers):
            name = f"worker{number}:{self.world.rng.choice(list(self.checkers))}"
            self.workers.append((client, client.start(client.again(name), name, self._worker_done)))
        return client


NOT_HERE = {"pause", "clock jump"}
"""A task can't be paused alone, nor can its loop's time jump."""


def options(seed: int) -> Options:
    """The simulator's own options, with cancellations, and without what a loop can't show."""
    drawn = Options.of(seed)
    kinds = (drawn.kinds | {"cancel"}) - NOT_HERE
    if seed % 3 == 0:
        kinds |= {"cut streams", "partition"}
    return replace(drawn, kinds=frozenset(kinds), drift=0.0, break_for_good=False, fault_time=15.0)
