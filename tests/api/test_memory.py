"""The etcd in memory that users test with: it does what a real etcd does, and time obeys.

Each scenario runs on both, and what it saw must be the same (a verified fake).
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
import etcdsem.testing
from etcdsem import Client, Lease, Semaphore
from tests.etcd.proxy import Proxy
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer
    from etcdsem.testing import Memory


class Stage:
    """Where a scenario is played: what both kinds of etcd can do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.threads: list[threading.Thread] = []
        self.log: list[str] = []

    def client(self) -> Client:
        """A client, as of another process."""
        raise NotImplementedError

    def put(self, key: str, value: str) -> None:
        """As an operator would."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        """As an operator would."""
        raise NotImplementedError

    def revoke(self, lease: Lease) -> None:
        """As an operator would."""
        raise NotImplementedError

    def keys(self) -> dict[str, str]:
        """What is stored, by the names of the keys below the semaphore's."""
        raise NotImplementedError

    def cut(self, away: bool) -> None:
        """Etcd goes away, or comes back."""
        raise NotImplementedError

    def until(self, condition: Callable[[], object]) -> None:
        """Let time pass until something is so."""
        raise NotImplementedError

    def key(self, rest: str) -> str:
        """A key of the semaphore."""
        return f"/etcdsem/{self.name}/{rest}"

    def shape(self) -> list[str]:
        """The names of the keys, without what is different each time."""
        return sorted(
            key.split("/")[0] if key.startswith(("waiters/", "grants/")) else key
            for key in self.keys()
        )

    def start(self, function: Callable[[], object]) -> None:
        """Do something in a thread."""
        self.threads.append(threading.Thread(target=function))
        self.threads[-1].start()

    def join(self) -> None:
        """Wait for all threads."""
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()


class RealStage(Stage):
    """A real etcd, behind a proxy that can be cut."""

    def __init__(self, name: str, etcd: EtcdServer, proxy: Proxy, stack: Any) -> None:
        super().__init__(name)
        self.etcd = etcd
        self.proxy = proxy
        self.stack = stack

    def client(self) -> Client:
        client: Client = self.stack.enter_context(
            etcdsem.connect(self.proxy.endpoint, dial_timeout=1)
        )
        return client

    def put(self, key: str, value: str) -> None:
        self.etcd.etcdctl("put", self.key(key), value)

    def delete(self, key: str) -> None:
        self.etcd.etcdctl("del", self.key(key))

    def revoke(self, lease: Lease) -> None:
        self.etcd.etcdctl("lease", "revoke", lease.id)

    def keys(self) -> dict[str, str]:
        lines = self.etcd.etcdctl("get", "--prefix", self.key("")).splitlines()
        start = len(self.key(""))
        return {key[start:]: value for key, value in zip(lines[::2], lines[1::2], strict=True)}

    def cut(self, away: bool) -> None:
        self.proxy.up = self.proxy.down = "drop" if away else "pass"
        self.proxy.reset()

    def until(self, condition: Callable[[], object]) -> None:
        eventually(condition)


class MemoryStage(Stage):
    """The etcd in memory."""

    def __init__(self, name: str, memory: Memory) -> None:
        super().__init__(name)
        self.memory = memory

    def client(self) -> Client:
        return self.memory.client()

    def put(self, key: str, value: str) -> None:
        self.memory.put(self.key(key), value)

    def delete(self, key: str) -> None:
        assert self.memory.delete(self.key(key)) == 1

    def revoke(self, lease: Lease) -> None:
        self.memory.expire(lease)

    def keys(self) -> dict[str, str]:
        start = len(self.key(""))
        return {key[start:]: value for key, value in self.memory.keys(self.key("")).items()}

    def cut(self, away: bool) -> None:
        if away:
            self.memory.cut()
        else:
            self.memory.restore()

    def join(self) -> None:
        self.until(lambda: not any(thread.is_alive() for thread in self.threads))

    def until(self, condition: Callable[[], object]) -> None:
        for _ in range(600):
            if condition():
                return
            self.memory.advance(0.1)
            time.sleep(0.001)  # for threads that have yet to begin
        raise AssertionError("it did not come about in time")


# ---------------------------------------------------------------- scenarios

Scenario = Callable[[Stage], None]
SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Played on both kinds; what it notes in `log` must be the same."""
    SCENARIOS.append(function)
    return function


@scenario
def hold_and_give_back(stage: Stage) -> None:
    """A with block, the slots, and what lies in etcd meanwhile and after."""
    sem = Semaphore(2, stage.name, client=stage.client(), labels={"what": "test"})
    stage.log += stage.shape()
    with sem, sem.hold() as lease:
        stage.log += stage.shape()
        stage.log.append(f"{sem.get_value()} {sorted(one.slot for one in sem.leases)}")
        stage.log.append(f"{lease.valid} {lease.ttl} {25 < lease.remaining < 30}")
        stage.log.append(str([(h.slot, dict(h.labels)) for h in sem.holders()]))
    stage.log += [*stage.shape(), str(lease.valid), str(sem.get_value())]
    with pytest.raises(etcdsem.ReleasedTooOften):
        sem.release()


@scenario
def full(stage: Stage) -> None:
    """A try, and a timeout, on a full semaphore."""
    first = Semaphore(1, stage.name, client=stage.client())
    second = Semaphore(1, stage.name, client=stage.client())
    assert first.acquire()
    stage.log.append(str([second.acquire(timeout=0), second.acquire(timeout="700ms")]))
    with pytest.raises(etcdsem.AcquireTimeout), second.hold(timeout=0.2):
        raise AssertionError("the body ran")
    stage.log.append(str([first.release(), second.acquire(timeout=0), second.release()]))
    stage.log += stage.shape()


@scenario
def first_in_first_out(stage: Stage) -> None:
    """Waiters of several clients are served in the order in which they came."""
    sems = [Semaphore(1, stage.name, client=stage.client()) for _ in range(4)]
    assert sems[0].acquire()
    served: list[int] = []

    def wait(number: int) -> None:
        with sems[number].hold(timeout=60) as lease:
            served.append(number)
            tokens.append(lease.fencing_token)

    tokens = [sems[0].leases[0].fencing_token]
    for number in (1, 2, 3):
        stage.start(partial(wait, number))
        stage.until(lambda: len(sems[0].waiters()) == len(stage.threads))
    stage.log += stage.shape()
    sems[0].release()
    stage.join()
    stage.log.append(f"{served} {tokens == sorted(set(tokens))} {sems[0].get_value()}")


@scenario
def evicted(stage: Stage) -> None:
    """An operator ends a lease, and deletes a key; the holder is told, once."""
    lost: list[Lease] = []
    sem = Semaphore(2, stage.name, client=stage.client(), on_lost=lost.append)
    with pytest.raises(etcdsem.LeaseLost), sem.hold() as lease:
        time.sleep(0.6 if isinstance(stage, RealStage) else 0)  # by then its key is watched
        stage.revoke(lease)
        stage.until(lambda: lost == [lease])
        stage.log.append(f"{lease.valid} {lease.lost.is_set()} {sem.get_value()}")
    with pytest.raises(etcdsem.LeaseLost), sem.hold() as lease:
        stage.delete(f"leases/{lease.slot:05}")
        stage.until(lambda: lost[1:] == [lease])
        stage.log.append(f"{lease.valid} {'deleted' in lease.lost_reason} {len(lost)}")
        with pytest.raises(etcdsem.LeaseLost):
            lease.check()
    stage.log += stage.shape()


@scenario
def resized(stage: Stage) -> None:
    """A raised limit lets waiters in, a lowered one nobody; a wrong one is refused."""
    sem = Semaphore(1, stage.name, client=stage.client())
    other = Semaphore(None, stage.name, client=stage.client())
    assert sem.acquire()
    got: list[bool] = []
    stage.start(lambda: got.append(other.acquire(timeout=60)))
    stage.until(lambda: len(sem.waiters()) == 1)
    stage.put("max_leases", "2")
    stage.until(lambda: got)
    stage.join()
    stage.log.append(f"{got} {sem.get_value()} {sem.client.limit(stage.name)}")
    other.resize(1)
    sem.release()
    stage.log.append(f"{sem.acquire(timeout=0)} {other.release()} {sem.acquire(timeout=0)}")
    fresh = Semaphore(5, f"{stage.name}.other", client=stage.client())
    with pytest.raises(etcdsem.InconsistentLimit) as wrong:
        Semaphore(3, fresh.name, client=stage.client())
    stage.log.append(str(wrong.value.registered))
    stage.put("max_leases", "many")
    stage.until(lambda: sem.client.limit(stage.name) is None)
    stage.log.append(str(other.acquire(timeout=0)))


@scenario
def paused(stage: Stage) -> None:
    """While it is paused nobody gets in; resumed, who waits does."""
    sem = Semaphore(2, stage.name, client=stage.client())
    other = Semaphore(2, stage.name, client=stage.client())
    assert sem.acquire()
    stage.log.append(f"{other.pause(reason='night')} {sem.pause()}")
    got: list[bool] = []
    stage.start(lambda: got.append(other.acquire(timeout=60)))
    stage.until(lambda: len(sem.waiters()) == 1)
    stage.log.append(f"{sem.release()} {sem.acquire(timeout=0)} {got} {sem.get_value()}")
    pause = sem.status().pause
    assert pause is not None
    stage.log.append(f"{pause.reason} {sem.client.limit(stage.name)}")
    stage.log.append(f"{sem.resume()} {other.resume()}")
    stage.until(lambda: got)
    stage.join()
    stage.log.append(f"{got} {other.release()} {sem.get_value()}")
    with pytest.raises(etcdsem.InconsistentLimit):
        Semaphore(3, stage.name, client=stage.client())


@scenario
def drained(stage: Stage) -> None:
    """It is paused, and empty when the last one has given back."""
    sem = Semaphore(2, stage.name, client=stage.client())
    operator = stage.client()
    first, second = sem.acquire_lease(), sem.acquire_lease()
    assert first is not None
    assert second is not None
    stage.log.append(f"{operator.drain(stage.name, 0)} {sem.drain('1s')}")
    empty: list[bool] = []
    stage.start(lambda: empty.append(operator.drain(stage.name)))
    stage.log.append(f"{first.release()} {empty} {second.release()}")
    stage.until(lambda: empty)
    stage.join()
    stage.log.append(f"{empty} {sem.acquire(timeout=0)} {sem.drain()} {sem.resume()}")
    stage.log.append(f"{sem.acquire(timeout=0)} {sem.release()}")


@scenario
def closed(stage: Stage) -> None:
    """Closing ends waiters and holders, and leaves nothing."""
    sem = Semaphore(1, stage.name, client=stage.client())
    other = Semaphore(1, stage.name, client=stage.client())
    assert sem.acquire()
    said: list[str] = []

    def wait() -> None:
        try:
            other.acquire(timeout=60)
        except etcdsem.SemaphoreClosed as error:
            said.append(type(error).__name__)

    stage.start(wait)
    stage.until(lambda: len(sem.waiters()) == 1)
    lease = sem.leases[0]
    other.close()
    stage.until(lambda: said and lease.lost.is_set())
    stage.join()
    stage.log += [*said, *stage.shape(), str(lease.valid)]
    with pytest.raises(etcdsem.SemaphoreClosed):
        sem.acquire(timeout=0)


@scenario
def not_refreshed(stage: Stage) -> None:
    """A lease that nobody refreshes: its holder knows it before another gets the slot."""
    lost: list[Lease] = []
    sem = Semaphore(1, stage.name, client=stage.client(), lease_timeout=2, on_lost=lost.append)
    other = Semaphore(1, stage.name, client=stage.client(), lease_timeout=10)
    assert sem.acquire()
    lease = sem.leases[0]
    sem.refresh_leases = False
    valid_then: list[bool] = []

    def wait() -> None:
        if other.acquire(timeout=60):
            valid_then.append(lease.valid)

    stage.start(wait)
    stage.until(lambda: valid_then)
    stage.until(lambda: lost)
    stage.join()
    stage.log.append(f"{valid_then} {lost == [lease]} {sem.release()} {sem.get_value()}")
    stage.log.append(str(other.leases[0].fencing_token > lease.fencing_token))


@scenario
def etcd_away(stage: Stage) -> None:
    """No etcd: an error, not "full"; a holder keeps its lease if it comes back in time."""
    sem = Semaphore(1, stage.name, client=stage.client(), lease_timeout=30)
    other = Semaphore(1, stage.name, client=stage.client())
    assert sem.acquire()
    stage.cut(True)
    with pytest.raises(etcdsem.EtcdUnavailable):
        other.acquire(timeout=1.5)
    stage.cut(False)
    stage.log.append(f"{sem.leases[0].valid} {other.acquire(timeout=0.3)}")
    stage.until(lambda: sem.release() or not sem.leases)
    stage.until(lambda: other.acquire(timeout=3))
    stage.log.append(str(sem.get_value()))


@scenario
def away_for_too_long(stage: Stage) -> None:
    """No etcd for longer than the lease lasts: lost, by the local clock alone."""
    sem = Semaphore(1, stage.name, client=stage.client(), lease_timeout=2)
    assert sem.acquire()
    lease = sem.leases[0]
    stage.cut(True)
    stage.until(lease.lost.is_set)
    stage.log.append(f"{lease.valid} {sem.release()}")
    stage.cut(False)
    stage.until(lambda: sem.acquire(timeout=5))
    stage.log.append(f"{sem.leases[0].valid} {sem.leases[0].fencing_token > lease.fencing_token}")


@scenario
def client_closed(stage: Stage) -> None:
    """A client that is closed gives all back, and those in line get an error."""
    client = stage.client()
    sem = Semaphore(1, stage.name, client=client)
    assert sem.acquire()
    said: list[str] = []

    def wait() -> None:
        with contextlib.suppress(etcdsem.EtcdSemError):
            sem.acquire(timeout=60)
            said.append("acquired")
        said.append("ended")

    stage.start(wait)
    other = Semaphore(1, stage.name, client=stage.client())
    stage.until(lambda: len(other.waiters()) == 1)
    client.close()
    stage.join()
    stage.log += [*said, str(other.get_value()), str(len(other.waiters()))]
    assert other.acquire(timeout=10)


@pytest.mark.parametrize("play", SCENARIOS, ids=lambda play: play.__name__)
def test_the_fake_does_as_etcd_does(play: Scenario, any_etcd: EtcdServer, name: str) -> None:
    """A scenario sees the same on a real etcd and on the one in memory."""
    with Proxy(any_etcd.endpoint) as proxy, contextlib.ExitStack() as stack:
        real = RealStage(name, any_etcd, proxy, stack)
        play(real)
    with etcdsem.testing.memory() as memory:
        fake = MemoryStage(name, memory)
        play(fake)
    assert real.log == fake.log
    assert real.log


# ---------------------------------------------------------------- time


@pytest.fixture
def memory() -> Iterator[Memory]:
    """An etcd in memory, and a look at what it leaves behind."""
    before = set(threading.enumerate())
    with etcdsem.testing.memory() as one:
        yield one
    eventually(lambda: set(threading.enumerate()) <= before)


def test_a_waiter_in_a_thread_times_out_when_time_has_passed(memory: Memory) -> None:
    """29.9 s are not enough for a timeout of 30 s, 30 s are, and all that takes no time."""
    sem = Semaphore(1, "db", client=memory.client())
    assert sem.acquire()
    other = Semaphore(1, "db", client=memory.client())
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(other.acquire(timeout=30)))
    began = time.monotonic()
    thread.start()
    memory.wait_until(sem.waiters)
    memory.advance("29.9s")
    assert not got
    assert thread.is_alive()
    memory.advance(0.1)
    assert not sem.waiters(), "it has left the line when advance() returns"
    thread.join(10)
    assert got == [False]
    assert time.monotonic() - began < 25
    assert sem.leases[0].valid


def test_what_happens_has_happened_when_advance_returns(memory: Memory) -> None:
    """Refreshes, losses, callbacks and hand-overs need no waiting on the test's side."""
    lost: list[Lease] = []
    a, b = memory.client(), memory.client()
    sem = Semaphore(1, "db", client=a, on_lost=lost.append)
    other = Semaphore(1, "db", client=b)
    assert sem.acquire()
    lease = sem.leases[0]
    got = threading.Event()

    def wait() -> None:
        if other.acquire():
            got.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    memory.wait_until(sem.waiters)
    memory.advance("10m")
    assert lease.valid
    assert a.requests["keepalives"] >= 59
    memory.cut(a)
    memory.advance("29s")
    assert lease.valid or lease.lost.is_set()
    memory.advance("2s")
    assert lost == [lease]
    assert not lease.valid
    thread.join(10)
    assert got.is_set()
    assert [holder.fencing_token for holder in other.holders()] == [other.leases[0].fencing_token]


def test_the_tests_own_thread_may_wait(memory: Memory) -> None:
    """With nobody there to move time, it passes by itself, and at once."""
    sem = Semaphore(1, "db", client=memory.client())
    other = Semaphore(1, "db", client=memory.client(), lease_timeout=10)
    assert sem.acquire()
    began = time.monotonic()
    assert other.acquire(timeout=timedelta(minutes=5)) is False
    assert 300 <= memory.now < 301
    memory.cut(sem.client)
    assert other.acquire()  # when the other's lease has ended
    assert 325 < memory.now < 335
    assert time.monotonic() - began < 100


def test_time_stands_still_if_it_must(caplog: pytest.LogCaptureFixture) -> None:
    """With autojump=0 only advance() moves time; beyond its bound a warning tells why it hangs."""
    with etcdsem.testing.memory(autojump=0) as etcd:
        sem = Semaphore(1, "db", client=etcd.client())
        assert sem.acquire()
        other = Semaphore(1, "db", client=etcd.client())

        def free() -> None:
            etcd.wait_until(sem.waiters)
            time.sleep(0.2)
            sem.release()

        thread = threading.Thread(target=free)
        thread.start()
        assert other.acquire(timeout=1)
        assert etcd.now < 0.5
        thread.join()
    with etcdsem.testing.memory(autojump="10s") as etcd, caplog.at_level(logging.WARNING):
        sem = Semaphore(1, "db", client=etcd.client())
        assert sem.acquire()
        other = Semaphore(1, "db", client=etcd.client())

        def free_at_last() -> None:
            while "passed automatically" not in caplog.text:
                time.sleep(0.01)
            assert 10 <= etcd.now < 11
            sem.release()

        thread = threading.Thread(target=free_at_last)
        thread.start()
        assert other.acquire()
        thread.join()


def test_suspended(memory: Memory) -> None:
    """After the machine has slept the lease is no longer valid, before anything else happens."""
    sem = Semaphore(1, "db", client=memory.client())
    assert sem.acquire()
    lease = sem.leases[0]
    memory.suspend("10s")
    assert lease.valid
    memory.suspend("31s")
    assert not lease.valid
    assert lease.lost.is_set()
    assert sem.get_value() == 0


def test_paused(memory: Memory) -> None:
    """A client that stands still loses its slot to another, and is told when it goes on."""
    a, b = memory.client(), memory.client()
    sem, other = Semaphore(1, "db", client=a), Semaphore(1, "db", client=b)
    assert sem.acquire()
    lease = sem.leases[0]
    memory.pause(a)
    memory.advance("15s")
    assert lease.valid
    assert other.acquire(timeout="1m")
    assert not lease.valid
    assert not lease.lost.is_set()
    memory.resume(a)
    assert lease.lost.is_set()
    assert not sem.release()
    assert other.leases[0].valid
    with pytest.raises(etcdsem.errors.InvalidSetting):
        memory.pause(etcdsem.connect("127.0.0.1:1"))


# ---------------------------------------------------------------- in programs


def test_as_the_default_client(memory: Memory) -> None:
    """Code that says Semaphore(...) uses it, also semaphores that were made before."""
    early = Semaphore(2, "early", register=False)
    with memory.default() as client:
        sem = Semaphore(2, "db")
        with sem:
            assert memory.get("/etcdsem/db/max_leases") == "2"
        early.register()
        assert early.client is client
    with etcdsem.testing.memory() as second, second.default():
        with pytest.raises(etcdsem.SemaphoreClosed):
            early.acquire(timeout=0)
        early.register()
        assert early.acquire(timeout=0)
    assert sem.client is not client


def test_pickled(memory: Memory) -> None:
    """A semaphore that is pickled finds its etcd again, in this process and as long as it is."""
    sem = Semaphore(2, "db", client=memory.client())
    assert sem.acquire()
    packed = pickle.dumps(sem)
    copy: Semaphore = pickle.loads(packed)
    assert copy.get_value() == 1
    assert copy.client is pickle.loads(packed).client
    assert copy.client is not sem.client
    done = subprocess.run(
        [sys.executable, "-c", f"import pickle; pickle.loads({packed!r})"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "in-memory" in done.stderr


def test_a_forked_child_has_no_part_in_it(memory: Memory) -> None:
    """It says so, and the parent's leases stay."""
    sem = Semaphore(2, "db", client=memory.client())
    assert sem.acquire()

    def child() -> None:
        assert not sem.leases
        with pytest.raises(etcdsem.EtcdSemError, match="one process"):
            sem.acquire(timeout=0)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert sem.get_value() == 1
    assert sem.release()


def test_an_operators_tools(memory: Memory) -> None:
    """Keys and leases as etcdctl would show and change them."""
    sem = Semaphore(2, "db", client=memory.client(prefix="/mine"))
    assert sem.acquire()
    assert memory.keys("/mine/db/max") == {"/mine/db/max_leases": "2"}
    assert memory.leases() == [sem.leases[0].id]
    assert '"slot": 0' not in (memory.get("/mine/db/leases/00000") or "")
    assert memory.get("/mine/nothing") is None
    assert memory.delete("/mine/nothing") == 0
    with pytest.raises(etcdsem.errors.InvalidSetting, match="no lease"):
        memory.expire("abc")
    lease = sem.leases[0]
    memory.expire(lease.id)
    assert lease.lost.is_set()
    assert memory.delete("", prefix=True) == 1
    assert memory.keys() == {}
    assert "0 keys" in repr(memory)


def test_closing_ends_all_waits() -> None:
    """Threads that wait get an error when it is closed; nobody hangs."""
    said: list[BaseException] = []
    with etcdsem.testing.memory() as etcd:
        sem = Semaphore(1, "db", client=etcd.client())
        etcd.pause(etcd.client())  # never used before, nor later
        assert sem.acquire()

        def wait() -> None:
            try:
                sem.acquire()
            except etcdsem.EtcdSemError as error:
                said.append(error)

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        etcd.wait_until(lambda: len(sem.waiters()) == 3)
    for thread in threads:
        thread.join(10)
    assert len(said) == 3
    etcd.close()
    with pytest.raises(etcdsem.EtcdSemError):
        Semaphore(1, "db", client=etcd.client())


def test_releasing_twice_is_harmless(memory: Memory) -> None:
    """The second time nothing happens, also when another has the slot by then."""
    sem, other = (Semaphore(1, "db", client=memory.client()) for _ in range(2))
    assert sem.acquire()
    lease = sem.leases[0]
    assert lease.release()
    assert other.acquire(timeout=0)
    assert lease.release() is False
    assert not lease.valid
    assert other.leases[0].valid
    assert other.get_value() == 1


def test_many_threads_never_exceed_the_limit(memory: Memory) -> None:
    """Threads of several clients that work for real: never more than the limit, nobody left."""
    sems = [Semaphore(3, "db", client=memory.client()) for _ in range(4)]
    inside, most, done = 0, 0, 0
    lock = threading.Lock()

    def work(sem: Semaphore) -> None:
        nonlocal inside, most, done
        for _ in range(20):
            with sem:
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0)
                with lock:
                    inside -= 1
                    done += 1

    threads = [threading.Thread(target=work, args=(sem,)) for sem in sems for _ in range(5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.advance("100ms")
        time.sleep(0.001)
    assert done == 400
    assert most <= 3
    assert sems[0].get_value() == 0


# ---------------------------------------------------------------- docs, package

DOCS = Path(__file__).parents[2] / "docs" / "testing.md"


@pytest.mark.skipif(not DOCS.exists(), reason="the docs are not beside the tests")
def test_the_snippets_of_the_docs(tmp_path: Path) -> None:
    """Each snippet of docs/testing.md runs as it stands; the fixture's under pytest."""
    blocks = re.findall(r"(<!-- pytest -->\n)?```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    for number, (mark, code) in enumerate(blocks):
        script = tmp_path / f"test_{number}.py"
        script.write_text(code)
        command = [sys.executable, "-W", "error", str(script)]
        if mark:
            command[1:3] = [
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "--rootdir",
                str(tmp_path),
            ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=90, check=False, cwd=tmp_path, env=ours
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        assert not mark or "2 passed" in done.stdout


@pytest.mark.smoke
def test_it_needs_no_grpc() -> None:
    """Importing and using it loads neither gRPC nor protobuf."""
    script = """
import sys
import etcdsem.testing
from etcdsem import Semaphore
with etcdsem.testing.memory() as etcd, etcd.default():
    with Semaphore(2, "db"):
        etcd.advance("1m")
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"grpc", "asyncio", "rich", "click", "pytest"}, loaded
assert "google.protobuf" not in sys.modules
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "fine\n", done.stderr
