"""A python-etcd3 client given as ``client=``: its channel, its login, and its messages beside ours.

python-etcd3 0.12 needs protobuf below 4, so this runs in an environment of its own:
``pip install '.[etcd3,test]'``; elsewhere it is skipped.
"""

from __future__ import annotations

import gc
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import Semaphore
from etcdsem.core.commands import Failure
from etcdsem.core.listeners import CallbackListener
from etcdsem.errors import EtcdRefused, EtcdSemError, PermissionDenied
from tests.helpers.tls import serving
from tests.helpers.waiting import eventually
from tests.security.authority import Authority
from tests.security.secured import JOB, SECRET, secured

try:
    import etcd3
except Exception as error:
    # With protobuf 4 or later it is a TypeError that says "Descriptors cannot be created directly".
    pytest.skip(
        f"python-etcd3 cannot be imported here, install '.[etcd3,test]' for it: {error}"[:200],
        allow_module_level=True,
    )

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:etcd3"),
    # Its watcher's thread may find its channel closed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture
def theirs(etcd: EtcdServer) -> Iterator[Any]:
    """A client of python-etcd3."""
    with etcd3.client(host="127.0.0.1", port=etcd.port) as one:
        yield one


def hand_over(sem: Semaphore) -> None:
    """One waits, and is served by an event."""
    assert sem.acquire(timeout=10)
    served = threading.Event()
    in_line = threading.Event()

    def wait() -> None:
        lease = sem.acquire_lease(30, on_wait=in_line.set)
        assert lease is not None
        assert lease.release()
        served.set()

    threading.Thread(target=wait, daemon=True).start()
    assert in_line.wait(10)
    assert sem.release()
    assert served.wait(10)


def test_its_channel_is_used(theirs: Any, etcd: EtcdServer, name: str) -> None:
    """Calls and streams go through its channel; both libraries work side by side."""
    theirs.put(f"/theirs/{name}", "1")
    sem = Semaphore(1, name, client=theirs)
    transport: Any = sem.client._driver.connection._link().transport
    assert transport.channel is theirs.channel
    hand_over(sem)
    with sem.hold() as lease:
        value, meta = theirs.get(f"/etcdsem/{name}/leases/{lease.slot:05d}")
        assert value is not None
        assert meta.lease_id == int(lease.id, 16)
        assert sem.holders()[0].lease_id == lease.id
        events, cancel = theirs.watch_prefix(f"/etcdsem/{name}/leases/")
    assert "Delete" in type(next(iter(events))).__name__
    cancel()
    assert theirs.get(f"/theirs/{name}")[0] == b"1"


def test_one_client_for_all_semaphores(theirs: Any, name: str) -> None:
    """Semaphores that are given the same client share one of ours."""
    first = Semaphore(1, name, client=theirs)
    second = Semaphore(1, f"{name}-2", client=theirs)
    assert first.client is second.client
    assert "127.0.0.1" in repr(first.client)


def test_what_is_lent_is_not_closed(theirs: Any, name: str) -> None:
    """Closing ours leaves theirs open; closing theirs is told by ours."""
    client = etcdsem.from_etcd3(theirs, prefix="/elsewhere")
    sem = Semaphore(1, name, client=client)
    with sem:
        assert theirs.get(f"/elsewhere/{name}/leases/00000")[0]
    client.close()
    assert theirs.status().version
    other = Semaphore(1, name, client=theirs)
    theirs.close()
    with pytest.raises(EtcdSemError, match="closed"):
        other.acquire(timeout=5)


def stream_threads() -> list[str]:
    """The threads of our streams on a channel of grpcio."""
    return [one.name for one in threading.enumerate() if one.name == "etcdsem-etcd3"]


def test_their_client_is_closed_while_we_use_it(
    theirs: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits is told at once, later calls and renewals are refused, and it is logged once."""
    sem = Semaphore(1, name, client=theirs, lease_timeout=30)
    lease = sem.acquire_lease(10)
    assert lease is not None
    in_line, told = threading.Event(), SimpleQueue[Exception]()

    def wait() -> None:
        with pytest.raises(EtcdRefused, match="the etcd3 client whose channel we use was closed"):
            sem.acquire_lease(on_wait=in_line.set)
        told.put(EtcdRefused())

    threading.Thread(target=wait, daemon=True).start()
    assert in_line.wait(10)
    eventually(stream_threads)
    theirs.close()
    assert told.get(timeout=10)
    eventually(lambda: not stream_threads())
    engine = sem.client._driver
    streams: Any = engine._renewals
    for _ in range(3):
        engine.renew(int(lease.id, 16))
        eventually(lambda: not streams._wanted)
    assert lease.valid
    with pytest.raises(EtcdRefused, match="was closed"):
        sem.get_value()
    sem.client.close()
    eventually(lambda: streams._thread is None)
    assert [one.exc_info for one in caplog.records if one.exc_info] == []
    assert caplog.text.count("nothing can be watched or renewed") == 1
    assert caplog.text.count("\n") < 8


def test_a_watch_after_their_client_was_closed(
    theirs: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first watch of a client that has made calls before: refused, without a traceback."""
    sem = Semaphore(1, name, client=theirs)
    theirs.close()
    refusals = SimpleQueue[Failure]()
    sem.client._driver.watch(CallbackListener(lambda events: None, refused=refusals.put), b"key")
    assert "was closed" in refusals.get(timeout=10).detail
    sem.client.close()
    assert [one.exc_info for one in caplog.records if one.exc_info] == []


def test_grpc_is_loaded_for_it_only(etcd: EtcdServer, name: str) -> None:
    """A client of our own, and even the adapter's module, load neither grpc nor etcd3."""
    script = f"""
import sys
import etcdsem, etcdsem.etcd.etcd3_adapter
with etcdsem.connect({etcd.endpoint!r}) as client, etcdsem.Semaphore(1, {name!r}, client=client):
    pass
assert not {{"grpc", "etcd3"}} & set(sys.modules)
import etcd3
etcdsem.Semaphore(1, {name!r}, client=etcd3.client(port={etcd.port})).client.close()
assert "grpc" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_child_that_was_forked_ends(etcd: EtcdServer, name: str) -> None:
    """What it has inherited, streams that are open included, does not keep it from its end."""
    script = f"""
import os, time, etcd3
from etcdsem import Semaphore
sem = Semaphore(1, {name!r}, client=etcd3.client(port={etcd.port}))
with sem:
    while sem.client._driver._renewals._carrier is None:
        time.sleep(0.01)
    child = os.fork()
    if not child:
        raise SystemExit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert sem.get_value() == 1
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_an_eviction_by_their_hand(theirs: Any, name: str) -> None:
    """A lease that is revoked with python-etcd3 is lost at once."""
    sem = Semaphore(1, name, client=theirs, lease_timeout=30, raise_on_loss=False)
    with sem.hold() as lease:
        eventually(lambda: lease._grant.watch is not None)
        theirs.revoke_lease(int(lease.id, 16))
        assert lease.lost.wait(10)


def test_its_login_is_used(etcd_binary: str, name: str) -> None:
    """Its token is used while it lasts; then we log in by ourselves, if we were told how."""
    with secured(etcd_binary) as etcd:
        theirs = etcd3.client(host="127.0.0.1", port=etcd.port, user=JOB, password=SECRET)
        sem = Semaphore(1, name, client=theirs, lease_timeout=15)
        own = etcdsem.from_etcd3(theirs, user=JOB, password=SECRET)
        both = Semaphore(1, name, client=own)
        hand_over(sem)
        hand_over(both)
        assert sem.client._driver.connection.counters["login"] == 0
        assert own._driver.connection.counters["login"] == 0
        etcd.restart()  # tokens are forgotten
        eventually(lambda: both.get_value() == 0)
        hand_over(both)
        assert own._driver.connection.counters["login"] >= 1
        with pytest.raises(PermissionDenied, match=r"keeps no password.*from_etcd3"):
            sem.acquire(timeout=10)
        again = etcd3.client(host="127.0.0.1", port=etcd.port, user=JOB, password=SECRET)
        theirs.metadata = again.metadata  # who mends their client mends ours
        hand_over(sem)
        own.close()
        sem.client.close()


def test_tls(etcd_binary: str, name: str, tmp_path: Path) -> None:
    """Its certificates are those of its channel."""
    authority = Authority(tmp_path)
    with serving(authority.issue("server"), binary=etcd_binary) as etcd:
        theirs = etcd3.client(host="127.0.0.1", port=etcd.port, ca_cert=authority.path)
        sem = Semaphore(1, name, client=theirs)
        hand_over(sem)
        assert "https://" in repr(sem.client)
        sem.client.close()


def test_pickling_takes_the_endpoints_along(theirs: Any, name: str) -> None:
    """Where there is no such client, we connect to the same etcd by ourselves."""
    sem = Semaphore(1, name, client=theirs)
    copy = pickle.loads(pickle.dumps(sem))
    assert copy.client is not sem.client
    with copy:
        assert sem.get_value() == 1
        assert sem.acquire(timeout=0) is False
    copy.client.close()


def test_their_client_may_be_garbage(etcd: EtcdServer, name: str) -> None:
    """A client made just for ``client=``: its channel lives as long as our semaphore."""
    sem = Semaphore(1, name, client=etcd3.client(host="127.0.0.1", port=etcd.port))
    gc.collect()
    hand_over(sem)
    sem.client.close()


def test_a_member_that_restarts(fresh_etcd: EtcdServer, name: str) -> None:
    """A lease is kept over a restart, with the channel's options of docs/coming-from-etcd3.md."""
    page = Path(__file__).parents[2] / "docs" / "coming-from-etcd3.md"
    options: dict[str, int] = {"grpc.max_reconnect_backoff_ms": 2_000}
    if page.exists():
        lines = re.findall(r'"(grpc\.[\w.]+)": ([\d_]+)', page.read_text())
        options = {key: int(value) for key, value in lines}
        assert len(options) == 5
    where = {"host": "127.0.0.1", "port": fresh_etcd.port}
    with etcd3.client(**where, grpc_options=options.items()) as theirs:
        sem = Semaphore(1, name, client=theirs, lease_timeout=15)
        with sem.hold() as lease:
            fresh_etcd.restart()
            eventually(lambda: sem.get_value() == 1)
            assert lease.valid
        hand_over(sem)
        sem.client.close()


@pytest.mark.parametrize("order", ["etcd3, etcdsem.etcd.rpc", "etcdsem.etcd.rpc, etcd3"])
def test_messages_of_the_same_name(order: str) -> None:
    """Both libraries have a RangeRequest; whoever comes first, both work, and say the same."""
    script = f"""
import {order}
from etcd3 import etcdrpc
from etcdsem.etcd import rpc
ours, theirs = rpc.RangeRequest(key=b"k", limit=3), etcdrpc.RangeRequest(key=b"k", limit=3)
assert type(ours) is not type(theirs)
assert ours.SerializeToString() == theirs.SerializeToString()
assert etcdrpc.RangeRequest.FromString(ours.SerializeToString()).limit == 3
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_other_clients_are_refused() -> None:
    """What is no client is told so, before anything is done."""
    with pytest.raises(TypeError, match=r"python-etcd3"):
        Semaphore(1, "x", client="127.0.0.1:2379")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="from_etcd3"):
        etcdsem.from_etcd3(object())
    from etcdsem import aio

    with pytest.raises(TypeError, match="event loop"):
        aio.Semaphore(1, "x", client=etcd3.client())


def test_several_endpoints(etcd: EtcdServer, name: str) -> None:
    """python-etcd3 after 0.12 knows several endpoints; all of them are ours to use."""
    if not hasattr(etcd3, "MultiEndpointEtcd3Client"):
        pytest.skip(f"python-etcd3 {getattr(etcd3, '__version__', '?')} has one endpoint only")
    from etcd3.client import Endpoint

    several = [Endpoint(host="127.0.0.1", port=port, secure=False) for port in (1, etcd.port)]
    with etcd3.MultiEndpointEtcd3Client(endpoints=several) as theirs:
        sem = Semaphore(1, name, client=theirs)
        hand_over(sem)
        assert len(sem.client.settings.endpoints) == 2
        sem.client.close()
