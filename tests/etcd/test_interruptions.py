"""A signal handler that raises (a time limit, a caught Ctrl-C) strikes in the middle of requests to
a real etcd, thousands of times: it comes out of the call, others go on, nothing stays behind.

The long version: `--ordinary-seconds 300`.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, EtcdSemError, RateLimit, Semaphore
from etcdsem.clock import boot_time
from etcdsem.etcd import rpc
from etcdsem.etcd.dialing import Dialer
from etcdsem.etcd.grpc_protocol import RpcError
from etcdsem.etcd.methods import METHODS
from etcdsem.etcd.settings import read_settings
from etcdsem.etcd.transport import MOST, MOST_ASIDE, Transport
from tests.etcd.proxy import Proxy
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually
from tests.helpers.workers import Worker
from tests.ordinary.running import Run, play

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

LONGEST_GAP = 10.0
"""Seconds within which each of the other threads must get something done."""


class Interrupt(BaseException):
    """As KeyboardInterrupt."""


class SoftLimit(Exception):
    """As celery's SoftTimeLimitExceeded."""


KINDS: dict[str, type[BaseException]] = {
    "interrupt": Interrupt,
    "exception": SoftLimit,
    "timeout": TimeoutError,  # what the usual recipe for SIGALRM raises
}


class Storm:
    """Raises in the main thread, at random moments of calls, once in each."""

    def __init__(self, run: Run, kind: type[BaseException]) -> None:
        self._run = run
        self._kind = kind
        self._armed = False
        self._raised: BaseException | None = None
        signal.signal(signal.SIGALRM, self._handle)

    def strike(self, longest: float, call: Callable[[], object]) -> None:
        """Make a call. What was raised must come out of it."""
        self._raised = None
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest))
            call()
            self._armed = False
            if self._raised is not None:
                trace = "".join(traceback.format_exception(self._raised))
                self._run.note(f"an interruption was swallowed:\n{trace}")
        except self._kind as error:
            if error is not self._raised:
                raise
            self._run.count("struck")
        finally:
            self._armed = False

    def end(self) -> None:
        """No more of it."""
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, _signal: int, frame: FrameType | None) -> None:
        if not self._armed:
            return
        while frame is not None:
            # Python drops what is raised in finalizers and in callbacks of weak references, also
            # those of `threading`.
            code = frame.f_code
            if code.co_name == "__del__" or code.co_filename.endswith(
                ("weakref.py", "_weakrefset.py")
            ):
                signal.setitimer(signal.ITIMER_REAL, 2e-5)
                return
            frame = frame.f_back
        self._armed = False
        self._raised = self._kind("struck")
        raise self._raised


@contextmanager
def others(run: Run, number: int, work: Callable[[int], object]) -> Iterator[None]:
    """So many threads that work meanwhile; each must get something done again and again."""
    last = [boot_time()] * number
    over = threading.Event()

    def repeat(index: int) -> None:
        with run.noting():
            while not over.is_set():
                work(index)
                now = boot_time()
                if now - last[index] > LONGEST_GAP:
                    run.note(f"a thread stood still for {now - last[index]:.1f} s")
                last[index] = now
                run.count("others")

    threads = [threading.Thread(target=repeat, args=(n,), daemon=True) for n in range(number)]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        over.set()
        for one in threads:
            one.join(30)
            run.check(not one.is_alive(), "a thread stands still")


def storm(run: Run) -> None:
    """All kinds of calls are struck; threads of the same client wait for the same slots.

    A revocation may overtake the request for the lease that was struck: such a lease is nobody's,
    and ends by its TTL, which is short here.
    """
    files = len(os.listdir("/proc/self/fd"))
    client = run.client()
    full = Semaphore(2, run.name, client=client, lease_timeout=4)
    free = Semaphore(60, f"{run.name}-free", client=client, lease_timeout=4)
    mine = [
        Semaphore(2, run.name, client=client, lease_timeout=4),
        Semaphore(60, f"{run.name}-free", client=client, lease_timeout=4),
    ]
    rate = RateLimit(f"{run.name}-rate", 100_000, "1s", client=client)

    def work(index: int) -> None:
        with (full if index < 2 else free).hold() as lease:
            run.check(lease.valid, "a lease of hold() is not valid in its body")

    def hold(sem: Semaphore) -> None:
        with sem.hold():
            pass

    def acquire_and_release(sem: Semaphore) -> None:
        if sem.acquire():
            sem.release()

    calls: list[Callable[[Semaphore], object]] = [
        hold,
        acquire_and_release,
        Semaphore.acquire,
        Semaphore.status,
        lambda sem: sem.acquire(timeout=0.01),
        lambda _: rate.acquire(),
    ]
    blow = Storm(run, KINDS[run.options["kind"]])
    with others(run, 4, work):
        while run.going():
            sem = random.choice(mine)
            blow.strike(random.choice((0.001, 0.02)), partial(random.choice(calls), sem))
            while sem.leases:
                sem.release()
    blow.end()
    run.eventually(lambda: full.get_value() == free.get_value() == 0, "slots stay taken")
    client.close()
    run.check(len(os.listdir("/proc/self/fd")) <= files, "files are left open")


@pytest.mark.parametrize("kind", sample(KINDS))
def test_a_storm_of_interruptions(
    request: pytest.FixtureRequest, etcd: EtcdServer, name: str, kind: str
) -> None:
    """The others go on; at the end nothing is held, and no thread, lease or file is left."""
    seconds = request.config.getoption("--ordinary-seconds")
    counts = play(storm, etcd, name, seconds, kind=kind)
    assert counts["struck"] > 20 * seconds
    assert counts["others"] > counts["struck"] / 4


# -- the wire alone


def wire(run: Run) -> None:
    """Calls of a transport are struck while eight threads call, too."""
    settings = read_settings(run.endpoint)
    (endpoint,) = settings.endpoints
    transport = Transport(Dialer(settings, endpoint))
    path, kind = METHODS["status"]
    request = rpc.StatusRequest().SerializeToString()

    def call(_: object = None) -> None:
        answer = transport.call(path, request, 20, None)
        run.check(kind.FromString(answer).version, "an answer that is none")

    blow = Storm(run, KINDS[run.options["kind"]])
    with others(run, 8, call):
        while run.going():
            blow.strike(random.choice((0.0005, 0.005)), call)
            run.check(len(transport._alive) <= MOST + 8, "too many connections")
            run.check(len(transport._aside) <= MOST_ASIDE + 8, "too many connections are set aside")
    blow.end()
    for _ in range(2 * MOST):
        call()
    run.check(len(transport._waiting) == 0, "somebody waits for a turn")
    files = len(os.listdir("/proc/self/fd"))
    run.check(files <= MOST + 8 + MOST_ASIDE + 20, f"{files} files are open")
    transport.close()


@pytest.mark.parametrize("kind", sample(KINDS))
def test_the_wire_in_a_storm(
    request: pytest.FixtureRequest, etcd: EtcdServer, name: str, kind: str
) -> None:
    """Each call of the others is answered, and connections stay few."""
    seconds = request.config.getoption("--ordinary-seconds")
    counts = play(wire, etcd, name, seconds, kind=kind)
    assert counts["struck"] > 20 * seconds
    assert counts["others"] > counts["struck"]


# -- closing


def ours() -> list[threading.Thread]:
    """The threads that clients have now."""
    return [one for one in threading.enumerate() if one.name.startswith("etcdsem-")]


@pytest.mark.parametrize("state", ["calls", "connects", "waits"])
def test_close_ends_calls_at_once(etcd: EtcdServer, name: str, state: str) -> None:
    """Close returns at once, and so does a call that gets no answer, is connecting to one who says
    nothing, or waits in line.
    """
    before = set(ours())  # of clients that earlier tests have left open
    with Proxy(etcd.endpoint) as proxy:
        client = etcdsem.connect(proxy.endpoint)
        sem = Semaphore(1, name, client=client)
        if state == "waits":
            sem.acquire()
        proxy.down = "pass" if state == "waits" else "hold"
        if state == "connects":
            with pytest.raises(EtcdSemError):
                sem.acquire(timeout=0.2)  # from now on the endpoint is not trusted
        proxy.passed_up.clear()
        ended: list[float] = []

        def call() -> None:
            try:
                sem.acquire()
            except EtcdSemError:
                ended.append(boot_time())

        thread = threading.Thread(target=call)
        thread.start()
        if state == "waits":
            eventually(sem.waiters)
        else:
            assert proxy.passed_up.wait(10)
        proxy.down = "hold"
        began = boot_time()
        client._close(0.1)
        closed = boot_time() - began
        thread.join(30)
        assert closed < 1
        assert ended[0] - began < 1.5
        eventually(lambda: set(ours()) <= before, 10)


def test_a_call_on_the_wire_fails_when_it_is_closed(etcd: EtcdServer) -> None:
    """A call that is under way fails at once; later ones are not made."""
    with Proxy(etcd.endpoint) as proxy:
        settings = read_settings(proxy.endpoint)
        (endpoint,) = settings.endpoints
        transport = Transport(Dialer(settings, endpoint))
        path, _ = METHODS["status"]
        transport.call(path, b"", 10, None)
        proxy.down = "hold"
        proxy.passed_up.clear()
        failed: list[RpcError] = []

        def call() -> None:
            try:
                transport.call(path, b"", 60, None)
            except RpcError as error:
                failed.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert proxy.passed_up.wait(10)
        transport.close()
        thread.join(5)
        assert [error.code for error in failed] == ["UNAVAILABLE"]


# -- the end of a program with calls under way


ENDS = {
    "returns": ("say('ready'); sys.stdin.readline()", 0),
    "exits": ("say('ready'); sys.stdin.readline(); sys.exit(3)", 3),
    "ctrl-c in a wait": ("say('ready'); threading.Event().wait()", -signal.SIGINT),
    "ctrl-c in a call": ("say('ready'); sem.status()", -signal.SIGINT),
    "ctrl-c, caught": (
        "say('ready')\ntry: sem.acquire()\nexcept KeyboardInterrupt: sys.exit(4)",
        4,
    ),
}
"""The end of the main thread, and the exit code."""


@pytest.mark.parametrize("end", sample(ENDS, 3))
def test_a_program_ends_with_calls_under_way(
    etcd: EtcdServer, name: str, workers: list[Worker], end: str
) -> None:
    """Daemon threads are in calls that are not answered: the program ends within its grace."""
    main, code = ENDS[end]
    program = f"""
sem = Semaphore(1, sys.argv[1], client=etcdsem.connect(sys.argv[2]))
held = sem.acquire_lease()
sys.stderr = sys.stdout  # nothing is to be said
say('used')
sys.stdin.readline()
def call(do):
    while True:
        try: do()
        except etcdsem.EtcdSemError: time.sleep(0.01)
for do in (sem.status, sem.acquire, sem.waiters) * 3:
    threading.Thread(target=call, args=(do,), daemon=True).start()
time.sleep(0.3)
{main}
"""
    with Proxy(etcd.endpoint) as proxy:
        workers.append(Worker(etcd, program, name, proxy.endpoint))
        workers[0].expect("used")
        proxy.down = "hold"
        workers[0].tell()
        workers[0].expect("ready")
        began = time.monotonic()
        if end.startswith("ctrl-c"):
            time.sleep(0.2)  # so that it is in its call
            workers[0].process.send_signal(signal.SIGINT)
        else:
            workers[0].tell()
        said = workers[0].out.read()
        assert workers[0].end() == code, said
        assert time.monotonic() - began < 10
        if code >= 0:  # Ctrl-C that is not caught has its traceback
            assert "Traceback" not in said
            assert said.count("\n") <= 1, said  # its lease could not be released


def acquire(client: Client, name: str) -> None:
    Semaphore(1, name, client=client).acquire()


@pytest.mark.slow
def test_many_clients_and_interruptions(etcd: EtcdServer, client: Client, name: str) -> None:
    """A fresh client for each interruption: each can be closed, and holds nothing then."""
    former = signal.getsignal(signal.SIGALRM)
    sem = Semaphore(1, name, client=client)
    try:
        for _ in range(40):
            with etcdsem.connect(etcd.endpoint) as fresh:
                run = Run(etcd.endpoint, name, 1, {})
                blow = Storm(run, Interrupt)
                blow.strike(0.02, partial(acquire, fresh, name))
                blow.end()
                assert run.wrong == []
            eventually(lambda: sem.get_value() == 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
