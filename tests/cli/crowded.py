"""An etcd with semaphores of each kind and state, and hostile text wherever it can be."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from etcdsem import Client, EtcdSemError, RateLimit, Semaphore
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

MARKUP = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;]]>--><!--"
EVIL = f"{MARKUP}\x1b[2J\u202e"
"""What must come back as text, if at all."""


def fill(etcd: EtcdServer, client: Client) -> None:
    """Weights, priorities, backfill, rates, a pause, over limit, unreadable, unrecognized."""
    labels = {"team": MARKUP}
    gpu = Semaphore(4, "gpu", client=client, owner=MARKUP, labels=labels, max_hold="2h")
    gpu.acquire(weight=2)
    gpu.acquire()
    wait(client, "gpu", gpu.acquire, weight=3)
    wait(client, "gpu", gpu.acquire, weight=4, priority=7)
    wait(client, "gpu", gpu.acquire, weight=2, backfill=True)
    RateLimit("blocks", 1000, "1h", client=client).acquire()
    mail = RateLimit("mail", 1, "1h", client=client)
    assert mail.acquire()
    wait(client, "mail", mail.acquire)
    over = Semaphore(3, "over", client=client)
    for _ in range(3):
        over.acquire()
    over.resize(1)
    paused = Semaphore(3, "paused", client=client)
    paused.acquire()
    client.pause("paused", reason='new <b>driver</b> & "more"')
    for name in ("odd", "unreadable", "unread.able-rate_", "x" * 128):
        Semaphore(2, name, client=client)
    RateLimit("fast", 5, "1s", client=client)
    etcd.etcdctl("put", "/etcdsem/unreadable/max_leases", EVIL)
    etcd.etcdctl("put", "/etcdsem/fast/max_leases", "5/soon")
    record = {"owner": EVIL, "host": EVIL, "client": EVIL, "labels": {EVIL: EVIL}, "pid": EVIL}
    lease = etcd.etcdctl("lease", "grant", "600").split()[1]
    text = json.dumps({**record, "acquired": EVIL, "max_hold": EVIL})
    etcd.etcdctl("put", "--lease", lease, "/etcdsem/odd/leases/00001", text)
    etcd.etcdctl("put", f"/etcdsem/odd/leases/{EVIL}", EVIL)
    etcd.etcdctl("put", f"/etcdsem/odd/waiters/{EVIL}", EVIL)
    etcd.etcdctl("put", f"/etcdsem/{EVIL}/max_leases", "1")
    etcd.etcdctl("put", "/etcdsem/only-junk/leases/x", "1")
    etcd.etcdctl("put", "--lease", lease, "/etcdsem/no-limit/leases/00000", "{}")


def wait(client: Client, name: str, acquire: Callable[..., object], **wants: Any) -> None:
    """Have a thread wait until the client is closed, and return when it waits."""
    number = len(client.status(name, ttl=False).waiters)

    def waiting() -> None:
        with contextlib.suppress(EtcdSemError):
            acquire(**wants)

    threading.Thread(target=waiting, daemon=True).start()
    eventually(lambda: len(client.status(name, ttl=False).waiters) > number)


NAMES = ("blocks", "fast", "gpu", "mail", "odd", "over", "paused", "unreadable", "x" * 128)
