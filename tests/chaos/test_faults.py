"""Single faults, where a chaos run could not show exactly what is right: docs/chaos.md."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import etcdsem
from etcdsem import Client, Semaphore
from etcdsem.server import EtcdServer
from tests.chaos.clusters import in_namespaces, namespaces_work
from tests.chaos.frames import MutingProxy
from tests.chaos.referee import Store
from tests.etcd.proxy import Proxy
from tests.helpers.history import assert_clean, judge, read_history
from tests.helpers.waiters import Waiters
from tests.helpers.waiting import eventually
from tests.helpers.workers import Worker


def tell(worker: Worker, line: str = "") -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.write(f"{line}\n")
    worker.process.stdin.flush()


# ---------------------------------------------------------------- 3: the control without a fence

CARELESS = """
sem = Semaphore(1, sys.argv[1], lease_timeout=2, raise_on_loss=False)
sem.acquire()
slot, token = sem.leases[0].slot, sem.leases[0].fencing_token
say('write', slot, token)
os.kill(os.getpid(), signal.SIGSTOP)
say('write', slot, token)
"""


def test_without_a_fence_a_paused_holder_does_harm(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """The control: a holder that is paused for longer than its TTL and then writes without checking
    overwrites its successor in a store that does not check tokens. One that does refuses it.
    """
    fenced, unfenced = Store(checked=True), Store(checked=False)
    workers.append(Worker(etcd, CARELESS, name))
    _, slot, token = workers[0].expect("write")
    for store in (fenced, unfenced):
        assert store.write(name, int(slot), int(token))
    sem = Semaphore(1, name, client=client)
    assert sem.acquire(timeout=20)
    lease = sem.leases[0]
    for store in (fenced, unfenced):
        assert store.write(name, lease.slot, lease.fencing_token)
    workers[0].process.send_signal(signal.SIGCONT)
    _, slot, token = workers[0].expect("write")
    assert not fenced.write(name, int(slot), int(token))
    assert fenced.last[name, 0] == lease.fencing_token
    assert unfenced.write(name, int(slot), int(token))
    assert unfenced.last[name, 0] < lease.fencing_token, "the fault did not bite"
    assert (fenced.stale, unfenced.stale) == (0, 1)
    sem.release()


# ---------------------------------------------------------------- 6: suspension


def test_a_suspended_machine_has_lost_its_lease(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """CLOCK_BOOTTIME counts suspension, so on waking up the lease is lost at once."""
    code = """
import threading
from etcdsem.drivers.threads import RealClock
asleep = 0.0
RealClock.now = staticmethod(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + asleep)
lost, told = [], threading.Event()
def on_lost(lease):
    lost.append(lease)
    told.set()
sem = Semaphore(1, sys.argv[1], lease_timeout=30, on_lost=on_lost, raise_on_loss=False)
sem.acquire()
lease = sem.leases[0]
asleep = 40.0
say('awake', lease.valid)
told.wait(10)
say('released', sem.release(), len(lost), lease.lost.is_set())
"""
    workers.append(Worker(etcd, code, name))
    assert workers[0].expect("awake") == ["awake", "False"]
    assert workers[0].expect("released") == ["released", "False", "1", "True"]


# ---------------------------------------------------------------- 13, 14: cut off


def cut_off(up: str, down: str, etcd: EtcdServer, name: str) -> None:
    """A holder whose first endpoint becomes silent in one way, and whose second one is fine."""
    with Proxy(etcd.endpoint) as proxy, etcdsem.connect([proxy.endpoint, etcd.endpoint]) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=15)
        sem.acquire()
        lease = sem.leases[0]
        waiters = Waiters(sem, 1)
        proxy.up, proxy.down = up, down
        assert not lease.lost.wait(16.0), lease._grant.lost_reason
        assert sem.release()
        waiters.join()
        waiters.leases[0].release()
    verdict = judge(read_history(etcd, name), name)
    assert not verdict.wrong
    assert verdict.grants == 2


@pytest.mark.slow
def test_cut_off_from_one_endpoint(etcd: EtcdServer, name: str) -> None:
    """In both directions or one: the lease is kept through the other endpoint, the waiter keeps its
    place, and the hand-over arrives.
    """
    ways = [("hold", "hold"), ("hold", "pass"), ("pass", "hold")]
    with ThreadPoolExecutor(len(ways)) as pool:
        done = [pool.submit(cut_off, *way, etcd, f"{name}-{n}") for n, way in enumerate(ways)]
        for one in done:
            one.result()


@pytest.mark.slow
def test_a_member_cut_off_from_its_peers_is_left(etcd_binary: str, name: str) -> None:
    """It accepts connections but is useless: holders and waiters continue with another one."""
    if not namespaces_work():
        pytest.skip("network namespaces cannot be created here (they need root and `ip`)")
    with in_namespaces(etcd_binary) as cluster:
        grey = cluster.leader()
        others = [one for at, one in enumerate(cluster.endpoints) if at != grey]
        with etcdsem.connect([cluster.endpoints[grey], *others]) as client:
            sem = Semaphore(1, name, client=client, lease_timeout=9)
            sem.acquire()
            lease = sem.leases[0]
            waiters = Waiters(sem, 1)
            assert cluster.isolate is not None
            cluster.isolate(grey)
            assert not lease.lost.wait(10.0), lease._grant.lost_reason
            assert sem.release()
            waiters.join()
            waiters.leases[0].release()
        number = (grey + 1) % 3
        assert not judge(read_history(cluster.members[number], name), name).wrong


# ---------------------------------------------------------------- 15, 16: unknown outcomes


def test_an_acquire_whose_answer_is_lost_holds_one_slot(etcd: EtcdServer, name: str) -> None:
    """It was applied, but the answer was lost: the next attempt uses another lease, and the first
    one's slot is free again when it returns or soon after.
    """
    with Proxy(etcd.endpoint) as proxy, etcdsem.connect(proxy.endpoint) as client:
        sem = Semaphore(3, name, client=client, lease_timeout=30)
        with sem:
            pass  # the connection is up and a lease in the pool
        proxy.passed_up.clear()
        proxy.down = "drop"
        done = threading.Thread(target=sem.acquire, args=(30,))
        done.start()
        assert proxy.passed_up.wait(10)
        eventually(lambda: etcd.etcdctl("get", "--prefix", f"/etcdsem/{name}/leases/"))
        proxy.down = "pass"
        proxy.reset()
        done.join(60)
        assert len(sem.leases) == 1
        eventually(lambda: sem.get_value() == 1)
        sem.release()
    assert_clean(etcd, name)


def test_a_request_that_arrives_long_after_we_gave_up(etcd: EtcdServer, name: str) -> None:
    """Held for twice its deadline and then delivered: its lease is gone, nothing stays behind."""
    with Proxy(etcd.endpoint) as proxy, etcdsem.connect([proxy.endpoint, etcd.endpoint]) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=30)
        with sem:
            pass
        proxy.up = "hold"  # JOIN is held here, and delivered when its lease has been revoked
        began = time.monotonic()
        assert sem.acquire(timeout=30)
        assert time.monotonic() - began > 3, "it was not held, or not for long"
        eventually(lambda: time.monotonic() - began > 8)
        proxy.up = "pass"
        assert sem.get_value() == 1
        sem.release()
        eventually(lambda: client._driver.session.leases.revocations == 0)
        eventually(lambda: sem.get_value() == 0)
    assert_clean(etcd, name)


# ---------------------------------------------------------------- 20: silent watches


def test_a_silent_watch_delays_no_longer_than_the_validation_interval(
    etcd: EtcdServer, client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grants and freed slots are not reported: the waiter finds out by itself."""
    monkeypatch.setenv("ETCDSEM_VALIDATION_INTERVAL", "2s")  # 1 to 3 s
    holder = Semaphore(1, name, client=client)
    with MutingProxy(etcd.endpoint) as proxy, etcdsem.connect(proxy.endpoint) as deaf:
        sem = Semaphore(1, name, client=deaf, lease_timeout=20)
        for _ in range(3):
            proxy.muted = False
            assert holder.acquire(timeout=30)
            waiters = Waiters(sem, 1)
            proxy.muted = True
            holder.release()  # a hand-over whose grant message never arrives
            began = time.monotonic()
            waiters.join()
            assert time.monotonic() - began < 10.0
            waiters.leases[0].release()
        assert proxy.silenced, "nothing was silenced"
    assert_clean(etcd, name)


# ---------------------------------------------------------------- 31: a storm of expiries


@pytest.mark.slow
def test_a_storm_of_expiries(fresh_etcd: EtcdServer, name: str, workers: list[Worker]) -> None:
    """5,000 leases end together with that of a holder that was killed: the slot is used again when
    etcd, which revokes 1,000 a second, has got through them.
    """
    count, ttl = 5000, 8
    code = """
sem = Semaphore(1, sys.argv[1], lease_timeout=8)
sem.acquire()
say('held')
time.sleep(600)
"""
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        sem = Semaphore(1, name, client=client)
        connection = client._driver.connection
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: connection.grant(number, ttl, 30), range(1, count + 1)))
        workers.append(Worker(fresh_etcd, code, name))
        workers[0].expect("held")
        waiters = Waiters(sem, 1)
        workers[0].kill()
        began = time.monotonic()
        waiters.join()
        lag = time.monotonic() - began
        waiters.leases[0].release()
        print(f"used again {lag:.2f} s after the kill, with {count} other expiries")
        assert lag <= ttl + count / 1000 + 10
    assert_clean(fresh_etcd, name)
