"""Programs whose threads are greenlets: gevent and eventlet, which replace `threading`, `socket`
and `time` by their own. All greenlets share one thread, so nothing of ours may block it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from etcdsem import Client, Semaphore
from tests.etcd.proxy import Proxy
from tests.helpers.history import assert_clean
from tests.helpers.slow import sample
from tests.helpers.tls import serving
from tests.helpers.waiting import eventually
from tests.helpers.workers import Worker
from tests.security.authority import Authority

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

FIRST = {
    "gevent": """
from gevent import monkey; monkey.patch_all()
from gevent import spawn, sleep as nap, Timeout
def join(*greenlets):
    for one in greenlets: one.get(timeout=60)
""",
    "eventlet": """
import warnings; warnings.simplefilter('ignore')  # it says at each start that it is old
import eventlet; eventlet.monkey_patch()
from eventlet import spawn, sleep as nap, Timeout
def join(*greenlets):
    with Timeout(60):
        for one in greenlets: one.wait()
""",
}
"""What such a program does before it imports anything else."""

MORE = """
import faulthandler
faulthandler.dump_traceback_later(100, exit=True)
ticks = 0
def tick():
    global ticks
    while True:
        nap(0.01)
        ticks += 1
spawn(tick)
"""


@pytest.fixture(params=sample(FIRST))
def library(request: pytest.FixtureRequest) -> str:
    """Which of the two; skips where it is not installed."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed (it may have no wheel for this Python)")
    found: str = request.param
    return found


def start(etcd: EtcdServer, library: str, code: str, *arguments: object) -> Worker:
    return Worker(etcd, MORE + code, *arguments, first=FIRST[library])


def test_greenlets_share_a_limit(
    etcd: EtcdServer, name: str, workers: list[Worker], library: str
) -> None:
    """They wait for each other, and others run meanwhile; no connection is made in vain."""
    code = """
sem = Semaphore(2, sys.argv[1], lease_timeout=10)
inside = most = 0
def work():
    global inside, most
    for _ in range(5):
        with sem.hold() as lease:
            inside += 1
            most = max(most, inside)
            nap(0.02)
            lease.check()
            inside -= 1
join(*(spawn(work) for _ in range(8)))
say('done', most, ticks > 10)
files = len(os.listdir('/proc/self/fd'))
for _ in range(5):
    with sem: pass
    nap(0.1)
say('files', len(os.listdir('/proc/self/fd')) - files)
sem.client.close()
"""
    workers.append(start(etcd, library, code, name))
    assert workers[0].expect("done") == ["done", "2", "True"]
    assert workers[0].expect("files") == ["files", "0"]
    assert workers[0].end() == 0
    assert assert_clean(etcd, name).grants == 45


def test_refreshed_served_and_lost(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker], library: str
) -> None:
    """A lease is refreshed while other greenlets run, one who waits for it is served, timeouts
    end, and an eviction is noticed.
    """
    code = """
lost = []
sem = Semaphore(1, sys.argv[1], lease_timeout=2, on_lost=lost.append)
lease = sem.acquire_lease()
say('full', sem.acquire(timeout=0), sem.acquire(timeout=0.3))
served = spawn(lambda: sem.acquire(timeout=60))
nap(5)
say('held', lease.valid, len(sem.waiters()), ticks > 100)
lease.release()
join(served)
say('served', sem.get_value())
while not lost: nap(0.01)
say('lost', sem.leases[0].lost.is_set())
sem.client.close()
"""
    workers.append(start(etcd, library, code, name))
    assert workers[0].expect("full") == ["full", "False", "False"]
    assert workers[0].expect("held") == ["held", "True", "1", "True"]
    assert workers[0].expect("served") == ["served", "1"]
    client.evict(name, slot=0)
    assert workers[0].expect("lost") == ["lost", "True"]
    assert workers[0].end() == 0


def test_tls(
    tmp_path: Path, etcd_binary: str, name: str, workers: list[Worker], library: str
) -> None:
    """Behind TLS, by a name, through a proxy that holds answers back at the end."""
    code = """
client = etcdsem.connect(sys.argv[2], cacert=sys.argv[3])
sem = Semaphore(1, sys.argv[1], lease_timeout=2, client=client)
lease = sem.acquire_lease()
served = spawn(lambda: sem.acquire(timeout=60))
ports = set()
for _ in range(10):
    nap(0.3)
    sem.waiters()
    (link,) = client._driver.connection._links
    ports |= {one.sock.getsockname() for one in link.transport._idle}
say('held', lease.valid, len(sem.waiters()), len(ports) <= 2)
lease.release()
join(served)
sem.release()
say('served', sem.get_value(), ticks > 100)
sys.stdin.readline()
status = spawn(sem.status)
nap(0.3)
began = time.monotonic()
sem.client._close(0.1)
try:
    join(status)
except etcdsem.EtcdSemError:
    say('ended', time.monotonic() - began < 2)
"""
    authority = Authority(tmp_path)
    with (
        serving(authority.issue("server"), binary=etcd_binary) as etcd,
        Proxy(etcd.endpoint) as proxy,
    ):
        endpoint = proxy.endpoint.replace("127.0.0.1", "localhost")
        workers.append(start(etcd, library, code, name, f"https://{endpoint}", authority.path))
        assert workers[0].expect("held") == ["held", "True", "1", "True"]
        assert workers[0].expect("served") == ["served", "0", "True"]
        proxy.down = "hold"
        workers[0].tell()
        assert workers[0].expect("ended") == ["ended", "True"]
        assert workers[0].end() == 0


def test_a_greenlet_is_given_up_at_any_moment(
    etcd: EtcdServer, name: str, workers: list[Worker], library: str
) -> None:
    """The libraries' own timeouts raise wherever a greenlet waits. What was granted is given back,
    and the others go on.
    """
    code = """
import random
from etcdsem import RateLimit
own = [Semaphore(2, sys.argv[1], lease_timeout=60) for _ in range(6)]
rate = RateLimit(sys.argv[1] + '-rate', 1000, '1s')
over = False
works = [0] * 3
given_up = 0
def work(number):
    while not over:
        with own[number].hold(): nap(0.001)
        works[number] += 1
def hold(sem):
    with sem.hold(): nap(0.002)
def trouble(sem, call):
    global given_up
    while not over:
        try:
            with Timeout(random.random() * 0.03):
                call(sem)
        except Timeout:
            given_up += 1
        while sem.leases: sem.release()
calls = [hold, Semaphore.acquire, lambda sem: rate.acquire()]
greenlets = [spawn(work, number) for number in range(3)]
greenlets += [spawn(trouble, *pair) for pair in zip(own[3:], calls)]
nap(6)
over = True
join(*greenlets)
say('given_up', given_up > 100, all(works))
while own[0].get_value(): nap(0.01)
say('free', len(os.listdir('/proc/self/fd')) < 100)  # 64 wait for late answers
own[0].client.close()
"""
    workers.append(start(etcd, library, code, name))
    assert workers[0].expect("given_up") == ["given_up", "True", "True"]
    assert workers[0].expect("free") == ["free", "True"]
    assert workers[0].end() == 0
    assert_clean(etcd, name)


def test_an_etcd_that_does_not_answer_blocks_one_greenlet(
    etcd: EtcdServer, name: str, workers: list[Worker], library: str
) -> None:
    """A call that gets no answer ends at its deadline; others run meanwhile. Closing is prompt."""
    code = """
sem = Semaphore(1, sys.argv[1], client=etcdsem.connect(sys.argv[2]))
say('ready')
sys.stdin.readline()
began, before = time.monotonic(), ticks
try:
    sem.acquire(timeout=1)
except etcdsem.EtcdUnavailable:
    say('away', time.monotonic() - began < 10, ticks - before > 50)
waits = spawn(lambda: sem.acquire())
nap(0.2)
began = time.monotonic()
sem.client._close(0.1)
say('closed', time.monotonic() - began < 2)
try:
    join(waits)
except etcdsem.EtcdSemError:
    say('ended', time.monotonic() - began < 2)
"""
    with Proxy(etcd.endpoint) as proxy:
        workers.append(start(etcd, library, code, name, proxy.endpoint))
        workers[0].expect("ready")
        proxy.down = "hold"
        workers[0].tell()
        assert workers[0].expect("away") == ["away", "True", "True"]
        assert workers[0].expect("closed") == ["closed", "True"]
        assert workers[0].expect("ended") == ["ended", "True"]
        assert workers[0].end() == 0


def test_the_end_gives_everything_back(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker], library: str
) -> None:
    """Also what a greenlet holds that is still at work."""
    sem = Semaphore(2, name, client=client)
    code = """
sem = Semaphore(2, sys.argv[1], lease_timeout=600)
sem.acquire()
def work():
    with sem: nap(1000)
spawn(work)
while sem.get_value() < 2: nap(0.01)
say('holds')
"""
    workers.append(start(etcd, library, code, name))
    workers[0].expect("holds")
    assert workers[0].end() == 0
    assert sem.get_value() == 0
    assert_clean(etcd, name)


def test_a_forked_child(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker], library: str
) -> None:
    """As under gunicorn: the master uses a semaphore, and so do its children."""
    code = """
sem = Semaphore(2, sys.argv[1], lease_timeout=600)
lease = sem.acquire_lease()
nap(0.4)
pid = os.fork()
if pid == 0:
    with sem: nap(0.1)
    sem.client.close()
    say('child', sem.leases)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
say('parent', lease.valid, lease.release())
"""
    workers.append(start(etcd, library, code, name))
    workers[0].expect("child")
    assert workers[0].expect("parent") == ["parent", "True", "True"]
    assert workers[0].end() == 0
    assert_clean(etcd, name)


def test_patched_after_the_import(
    etcd: EtcdServer, name: str, workers: list[Worker], library: str
) -> None:
    """A program that patches late, but before it makes a client."""
    code = """
sem = Semaphore(1, sys.argv[1], lease_timeout=2)
def work():
    with sem: nap(0.05)
lease = sem.acquire_lease()
greenlets = [spawn(work) for _ in range(4)]
nap(3)
say('held', lease.valid, lease.release())
join(*greenlets)
say('done', ticks > 50)
sem.client.close()
"""
    first = "import etcdsem, etcdsem.etcd.connection, etcdsem.etcd.stream_thread\n" + FIRST[library]
    workers.append(Worker(etcd, MORE + code, name, first=first))
    assert workers[0].expect("held") == ["held", "True", "True"]
    assert workers[0].expect("done") == ["done", "True"]
    assert workers[0].end() == 0
    assert_clean(etcd, name)


SERVERS = {
    "gevent": """
from gevent import pywsgi
server = pywsgi.WSGIServer(('127.0.0.1', 0), app, log=None)
server.start()
say('serves', server.server_port)
nap(1000)
""",
    "eventlet": """
from eventlet import wsgi
listener = eventlet.listen(('127.0.0.1', 0))
say('serves', listener.getsockname()[1])
wsgi.server(listener, app, log_output=False)
""",
}


def test_a_web_server(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker], library: str
) -> None:
    """WSGI as under `gunicorn -k gevent`: each request is a greenlet that holds a lease."""
    code = """
sem = Semaphore(2, sys.argv[1], lease_timeout=2)
def app(environ, start_response):
    with sem.hold() as lease:
        nap(0.3)
        body = b'valid' if lease.valid else b'lost'
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [body]
"""
    asking = """
import urllib.request
from concurrent.futures import ThreadPoolExecutor
def ask(_):
    with urllib.request.urlopen(f'http://127.0.0.1:{sys.argv[1]}/') as answer: return answer.read()
with ThreadPoolExecutor(12) as pool:
    say("answers", *{text.decode() for text in pool.map(ask, range(24))})
"""
    workers.append(start(etcd, library, code + SERVERS[library], name))
    port = workers[0].expect("serves")[1]
    workers.append(Worker(etcd, asking, port))
    assert workers[1].expect("answers") == ["answers", "valid"]
    assert workers[1].end() == 0
    eventually(lambda: client.status(name, ttl=False).held == 0)
    assert assert_clean(etcd, name).most_held == 2
