"""os.fork at any moment: the child has none of its parent's leases and never touches them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcdsem import Client, Semaphore
from tests.helpers.history import assert_clean
from tests.helpers.waiting import eventually
from tests.helpers.workers import Worker

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def test_fork_in_the_middle_of_a_hold(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """The child leaves the block that its parent has entered: nothing is given back, and nothing
    is raised. It may enter blocks of its own, also nested in its parent's, and fork again.
    """
    code = """
def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            say('error', repr(error))
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def own_turn():
    assert sem.leases == ()
    with sem:
        assert sem.get_value() == 2
        assert sem.acquire(timeout=0) is False
        child(lambda: sem.acquire(timeout=0) and os._exit(1))
    assert sem.get_value() == 1
    sem.client.close()

sem = Semaphore(2, sys.argv[1])
pid = None
with sem.hold() as lease:
    with sem:
        pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        child(own_turn)
        assert lease.valid and sem.leases == (lease,)
    else:
        assert not lease.valid and not lease.release()
        try:
            lease.check()
        except etcdsem.LeaseLost as error:
            assert 'parent' in str(error)
        own_turn()
if pid == 0:
    os._exit(0)
say('parent', sem.get_value())
"""
    workers.append(Worker(any_etcd, code, name))
    assert workers[0].expect("parent") == ["parent", "0"]
    assert workers[0].end() == 0
    assert_clean(any_etcd, name)


def test_fork_in_the_middle_of_a_wait(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """One thread waits while another forks: the place in line stays the parent's alone. The child
    can join the line itself, behind it.
    """
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    code = """
sem = Semaphore(1, sys.argv[1])
def wait():
    assert sem.acquire(timeout=60)
    say('granted', os.getpid())
    sem.release()
thread = threading.Thread(target=wait)
thread.start()
while not sem.waiters(): time.sleep(0.01)
pid = os.fork()
if pid == 0:
    assert [waiter.pid for waiter in sem.waiters()] == [os.getppid()]
    wait()
    sem.client.close()
    os._exit(0)
while len(sem.waiters()) < 2: time.sleep(0.01)
say('forked', os.getpid(), pid)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
thread.join()
say('done', code)
"""
    workers.append(Worker(any_etcd, code, name))
    _, parent, child = workers[0].expect("forked")
    assert [str(waiter.pid) for waiter in sem.waiters()] == [parent, child]
    sem.release()
    assert workers[0].expect("granted")[1] == parent
    assert workers[0].expect("granted")[1] == child
    assert workers[0].expect("done") == ["done", "0"]
    assert workers[0].end() == 0
    assert_clean(any_etcd, name)


def test_pre_forking_server(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """As under gunicorn: a semaphore of the module is used before the fork and by all workers
    after it; they end by a handler for SIGTERM that raises SystemExit.
    """
    sem = Semaphore(2, name, client=client)
    code = """
sem = Semaphore(2, sys.argv[1], lease_timeout=600)   # at import time, in the master
with sem: pass
def serve():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for request in range(25):
        with sem.hold() as lease: lease.check()
    with sem:
        say('serves')
        while True: time.sleep(0.1)  # a signal just before signal.pause() would be missed
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        serve()
    children.append(pid)
sys.stdin.readline()
for pid in children: os.kill(pid, signal.SIGTERM)
say('codes', *(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
say('held', sem.get_value())
"""
    workers.append(Worker(any_etcd, code, name))
    workers[0].expect("serves")
    workers[0].expect("serves")
    assert len({holder.pid for holder in sem.holders()}) == 2
    workers[0].tell()
    assert workers[0].expect("codes") == ["codes", "0", "0"]
    assert workers[0].expect("held") == ["held", "0"]
    assert workers[0].end() == 0
    assert assert_clean(any_etcd, name).grants == 53


def test_fork_while_others_are_busy(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Forks at random moments of other threads' acquires, waits and releases, while a lease is held
    and watched: no lock of theirs stays taken in a child, no child gives back what is theirs, and
    each child can hold leases of its own.
    """
    code = """
import pickle
from etcdsem import RateLimit
sem = Semaphore(3, sys.argv[1])
rate = RateLimit(sys.argv[1] + '-rate', 1000, '1s')
mine = sem.acquire_lease()
stop = threading.Event()
failed = []; codes = []
def busy():
    while not stop.is_set():
        with sem.hold() as lease:
            if not lease.valid: failed.append(lease)
threads = [threading.Thread(target=busy) for _ in range(4)]
for thread in threads: thread.start()
for turn in range(40):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        assert sem.leases == ()
        try:
            sem.release()
        except RuntimeError:
            pass
        else:
            os._exit(1)
        assert etcdsem.connect('127.0.0.1:1') is not sem.client
        assert repr(pickle.loads(pickle.dumps(sem)))
        with sem.hold() as lease:
            lease.check()
        assert rate.acquire(timeout=20)
        sem.client.close()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    codes.append(code)
stop.set()
for thread in threads: thread.join()
say('done', mine.release(), len(failed), *codes)
"""
    workers.append(Worker(etcd, code, name))
    assert workers[0].expect("done") == ["done", "True", "0", *["0"] * 40]
    assert workers[0].end() == 0
    eventually(lambda: client.status(name, ttl=False).held == 0)
    assert_clean(etcd, name)


def test_a_child_drops_what_it_inherited(
    fresh_etcd: EtcdServer, name: str, workers: list[Worker]
) -> None:
    """The inherited clients are garbage in the child: that ends nothing of the parent's, neither
    leases that are held nor spare ones.
    """
    code = """
import gc
client = etcdsem.connect()
sem = Semaphore(2, sys.argv[1], client=client, lease_timeout=600)
with sem: pass   # leaves a spare lease
lease = sem.acquire_lease()
idle = etcdsem.connect()
with Semaphore(2, sys.argv[1], client=idle, lease_timeout=600): pass
say('before', *sorted(client._driver.connection.leases(5)))
time.sleep(0.1)  # after which a connection is looked at before it is used
pid = os.fork()
if pid == 0:
    del client, sem, lease, idle
    gc.collect()
    assert threading.active_count() == 1
    time.sleep(0.2)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
say('after', *sorted(client._driver.connection.leases(5)))
say('valid', lease.valid, sem.get_value(), lease.release())
"""
    workers.append(Worker(fresh_etcd, code, name))
    before = workers[0].expect("before")[1:]
    assert workers[0].expect("after")[1:] == before
    assert workers[0].expect("valid") == ["valid", "True", "1", "True"]
    assert workers[0].end() == 0
    assert_clean(fresh_etcd, name)
