"""Ends of processes, threads, generators and objects: what is given back, when, and what is not."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Semaphore
from tests.helpers.history import assert_clean
from tests.helpers.waiting import eventually
from tests.helpers.workers import Worker

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


HOLD = """
sem = Semaphore(1, sys.argv[1], lease_timeout=int(sys.argv[2]))
sem.acquire()
say('held')
while True: time.sleep(0.1)
"""


def test_a_sub_interpreter(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """In a sub-interpreter, as mod_wsgi has them, leases are waited for and refreshed. Its end,
    whatever its threads do, gives back what it holds, and its process goes on.
    """
    pytest.importorskip("_testcapi", reason="this Python is without its test modules")
    code = """
import _testcapi
os.environ['NAME'] = sys.argv[1]
inner = '''
import os, time, etcdsem
from etcdsem import Semaphore
def say(*words): print(*words, flush=True)
sem = Semaphore(1, os.environ['NAME'], lease_timeout=2)
say('full', sem.acquire(timeout=0))
assert sem.acquire(timeout=60)
lease = sem.leases[0]
time.sleep(3)
say('refreshed', lease.valid, sem.get_value())
'''
sem = Semaphore(1, sys.argv[1])
def hand_over():
    while not sem.waiters(): time.sleep(0.01)
    sem.release()
sem.acquire()
thread = threading.Thread(target=hand_over)
thread.start()
assert _testcapi.run_in_subinterp(inner) == 0
thread.join()
say('free', sem.get_value())
inner = '''
import atexit, os, threading, time
from etcdsem import Semaphore
Semaphore(1, os.environ['NAME'], lease_timeout=600).acquire()
time.sleep(0.4)
@atexit.register
def as_python_3_12_does():
    def start(self): raise RuntimeError("can't create new thread at interpreter shutdown")
    threading.Thread.start = start
'''
assert _testcapi.run_in_subinterp(inner) == 0
with sem:
    say('main', sem.get_value())
"""
    workers.append(Worker(etcd, code, name))
    assert workers[0].expect("full") == ["full", "False"]
    assert workers[0].expect("refreshed") == ["refreshed", "True", "1"]
    assert workers[0].expect("free") == ["free", "0"]
    assert workers[0].expect("main") == ["main", "1"]
    assert workers[0].end() == 0
    assert_clean(etcd, name)


def test_an_isolated_sub_interpreter_is_refused(etcd: EtcdServer, workers: list[Worker]) -> None:
    """Where no daemon thread is allowed, no lease could be refreshed: an error says so at once."""
    code = """
import _thread
_thread.daemon_threads_allowed = lambda: False
try:
    Semaphore(1, 'x')
except etcdsem.EtcdSemError as error:
    say('refused', error)
"""
    workers.append(Worker(etcd, code))
    assert "sub-interpreter," in workers[0].expect("refused")
    assert workers[0].end() == 0


# -- signals


def test_sigterm_without_a_handler(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Nothing runs in a process that SIGTERM ends: the TTL gives the slot back."""
    sem = Semaphore(1, name, client=client)
    workers.append(Worker(any_etcd, HOLD, name, 2))
    workers[0].expect("held")
    workers[0].process.send_signal(signal.SIGTERM)
    assert workers[0].end() == -signal.SIGTERM
    ended = time.monotonic()
    assert sem.get_value() == 1
    assert sem.acquire(timeout=30)
    assert time.monotonic() - ended < 2 + 2.5
    sem.release()
    assert_clean(any_etcd, name)


@pytest.mark.parametrize("state", ["holds", "waits"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_handler_that_raises(
    etcd: EtcdServer,
    client: Client,
    name: str,
    workers: list[Worker],
    state: str,
    number: signal.Signals,
) -> None:
    """A handler that raises SystemExit, and Ctrl-C: given back at once, in a block and in line."""
    sem = Semaphore(1, name, client=client)
    code = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
sem = Semaphore(1, sys.argv[1], lease_timeout=600)
with sem:
    say('held')
    threading.Event().wait()
"""
    if state == "waits":
        sem.acquire()
    workers.append(Worker(etcd, code, name))
    eventually(sem.waiters if state == "waits" else sem.get_value, 30)
    if state == "holds":
        workers[0].expect("held")
    workers[0].process.send_signal(number)
    assert workers[0].end() == (3 if number == signal.SIGTERM else -signal.SIGINT)
    status = sem.status()
    assert status.waiters == ()
    assert status.held == (state == "waits")
    if state == "waits":
        sem.release()
    assert_clean(etcd, name)


# -- the interpreter's end


def test_order_at_exit(etcd: EtcdServer, client: Client, name: str, workers: list[Worker]) -> None:
    """What the program has registered after the import runs before leases are given back, and
    may use them; what it has registered earlier is told that it is too late.
    """
    code = """
import atexit
def early():
    try:
        sem.acquire(timeout=5)
    except etcdsem.EtcdSemError as error:
        say('early', sem.leases, error)
for module in [name for name in sys.modules if name.startswith('etcdsem')]: del sys.modules[module]
atexit.register(early)
import etcdsem
from etcdsem import Semaphore
sem = Semaphore(2, sys.argv[1], lease_timeout=600)
sem.acquire()
@atexit.register
def late():
    say('late', sem.leases[0].valid, sem.get_value(), sem.acquire(timeout=10))
"""
    workers.append(Worker(etcd, code, name))
    assert workers[0].expect("late") == ["late", "True", "1", "True"]
    assert "ending," in workers[0].expect("early")
    assert workers[0].end() == 0
    assert Semaphore(2, name, client=client).get_value() == 0
    assert_clean(etcd, name)


def test_an_end_without_new_threads_is_silent(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Python 3.12 starts no thread any more when the interpreter ends: all is given back, and
    nothing is logged.
    """
    code = """
import atexit
sem = Semaphore(1, sys.argv[1], lease_timeout=600)
sem.acquire()
time.sleep(0.4)
@atexit.register
def end():
    def start(self): raise RuntimeError("can't create new thread at interpreter shutdown")
    threading.Thread.start = start
    sys.stderr = sys.stdout
"""
    workers.append(Worker(etcd, code, name))
    assert workers[0].out.read() == ""
    assert workers[0].end() == 0
    assert Semaphore(1, name, client=client).get_value() == 0
    assert_clean(etcd, name)


def test_threads_are_waited_for(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Threads that are no daemons work on after the main thread's end, under their leases."""
    sem = Semaphore(1, name, client=client)
    code = """
sem = Semaphore(1, sys.argv[1], lease_timeout=600)
def work():
    with sem.hold() as lease:
        say('works')
        sys.stdin.readline()
        say('valid', lease.valid, sem.get_value())
threading.Thread(target=work).start()
"""
    workers.append(Worker(etcd, code, name))
    workers[0].expect("works")
    assert sem.acquire(timeout=0) is False
    workers[0].tell()
    assert workers[0].expect("valid") == ["valid", "True", "1"]
    assert workers[0].end() == 0
    assert_clean(etcd, name)


WAITING = """
sem, limit = Semaphore(1, sys.argv[1]), etcdsem.RateLimit(sys.argv[1] + '.rate', 1, '1h')
other = Semaphore(1, sys.argv[1] + '.other')
sem.acquire(), limit.acquire()
def enter():
    with sem: pass
def both():
    with etcdsem.hold_all(sem, other): pass
def again():
    try: sem.acquire()
    finally: sem.acquire()
for wait in (sem.acquire, limit.acquire, enter, both, again):
    threading.Thread(target=wait, daemon=True).start()
while len(sem.waiters()) < 4 or not limit.status().waiters: time.sleep(0.01)
"""


def test_daemon_threads_that_wait_at_the_end_are_silent(
    etcd: EtcdServer, client: Client, name: str
) -> None:
    """The process ends under them, which is no error of theirs: no tracebacks."""
    code = f"import sys, threading, time, etcdsem\nfrom etcdsem import Semaphore\n{WAITING}"
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        env={**os.environ, **etcd.env()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    sem = Semaphore(1, name, client=client)
    assert (sem.get_value(), sem.waiters()) == (0, ())


def test_os_exit_gives_nothing_back(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """os._exit runs nothing: the slot is free when the TTL has passed, and not before."""
    sem = Semaphore(1, name, client=client)
    workers.append(
        Worker(etcd, HOLD.replace("while True: time.sleep(0.1)", "os._exit(0)"), name, 3)
    )
    workers[0].expect("held")
    assert workers[0].end() == 0
    assert sem.get_value() == 1
    assert sem.acquire(timeout=30)
    sem.release()
    assert_clean(etcd, name)


# -- threads, generators, objects


class Stop(Exception):
    """Thrown into a thread."""


def throw_into(thread: threading.Thread) -> None:
    """Raise Stop in a thread, at its next step of Python."""
    assert thread.ident is not None
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert set_exception(ctypes.c_ulong(thread.ident), ctypes.py_object(Stop)) == 1


@pytest.mark.parametrize("state", ["holds", "waits"])
def test_a_thread_killed_by_an_exception(
    any_etcd: EtcdServer, client: Client, name: str, state: str
) -> None:
    """An exception thrown into a thread ends its block or its wait: nothing is left of it."""
    sem = Semaphore(1, name, client=client)
    ended: list[type[BaseException]] = []
    holding, stop = threading.Event(), threading.Event()

    def work() -> None:
        try:
            with sem:
                holding.set()
                while not stop.wait(0.01):
                    pass
        except Stop:
            ended.append(Stop)

    if state == "waits":
        sem.acquire()
    thread = threading.Thread(target=work)
    thread.start()
    eventually(holding.is_set if state == "holds" else sem.waiters)
    throw_into(thread)
    thread.join(30)
    stop.set()
    assert ended == [Stop]
    eventually(lambda: not sem.waiters())  # at once, unless etcd did not answer in time
    if state == "waits":
        sem.release()
    assert_clean(any_etcd, name)


def test_generators(etcd: EtcdServer, client: Client, name: str) -> None:
    """A generator that is closed, or dropped, in the middle of a block gives back its lease."""
    sem = Semaphore(2, name, client=client)

    def rows() -> Generator[int]:
        with sem:
            yield from range(10)

    closed, dropped = rows(), rows()
    assert next(closed) == next(dropped) == 0
    assert sem.get_value() == 2
    closed.close()
    assert sem.get_value() == 1
    del dropped
    gc.collect()
    assert sem.get_value() == 0
    assert sum(rows()) == 45
    assert_clean(etcd, name)


def test_a_dropped_semaphore_keeps_its_lease(etcd: EtcdServer, name: str) -> None:
    """`if not Semaphore(1, name).acquire(timeout=0): exit` is a common guard: the object is
    garbage at once, and the lease must not be. The client's end gives it back.
    """
    with etcdsem.connect(etcd.endpoint) as client, etcdsem.connect(etcd.endpoint) as other:
        assert Semaphore(1, name, client=client, lease_timeout=2).acquire(timeout=0)
        gc.collect()
        assert Semaphore(1, name, client=other).acquire(timeout=3) is False
        client.close()
        assert Semaphore(1, name, client=other).get_value() == 0
    assert_clean(etcd, name)


def test_copies(etcd: EtcdServer, client: Client, name: str) -> None:
    """A copy, deep copy or pickle of a semaphore has its settings, but none of its leases; a
    lease and a block that was entered cannot be copied at all.
    """
    sem = Semaphore(3, name, client=client, lease_timeout=7, labels={"a": "b"})
    with sem.hold() as lease:
        for twin in (copy.copy(sem), copy.deepcopy(sem), pickle.loads(pickle.dumps(sem))):
            assert twin.leases == ()
            assert (twin.name, twin.max_leases, twin.lease_timeout) == (name, 3, 7)
            assert twin.labels == {"a": "b"}
            with pytest.raises(RuntimeError, match="Released too often"):
                twin.release()
            assert twin.acquire(timeout=5)
            assert sem.get_value() == 2
            assert twin.release()
        for trial in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="semaphore instead"):
                trial(lease)
        assert lease.valid
    assert_clean(etcd, name)
