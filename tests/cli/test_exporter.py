"""`etcdsem exporter`: a real one, before a real etcd, scraped over HTTP."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

import etcdsem
from etcdsem import Client, Rate, RateLimit, Semaphore
from etcdsem.cli.http_server import read_address
from tests.cli.driver import Cli, ran
from tests.helpers.waiting import eventually
from tests.security.secured import secured

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Starter = Callable[..., Cli]
Samples = Mapping[tuple[str, str], float]


class Exporter:
    """One that runs."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.url = cli.expect(r"serving metrics of \S+ on (http://\S+)/metrics", err=True)[1]
        self.get("/readyz")  # it has looked at what there is

    def get(self, path: str) -> tuple[int, str]:
        """The status and the body of an answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def scrape(self) -> Samples:
        """All samples, by name and semaphore, without the start of their names."""
        code, text = self.get("/metrics")
        assert code == 200
        return {
            (
                one.name.removeprefix("etcdsem_semaphore_").removeprefix("etcdsem_"),
                one.labels.get("name", ""),
            ): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    def shows(self, name: str, **expected: float) -> bool:
        """Are these the numbers of a semaphore now?"""
        seen = self.scrape()
        return all(seen.get((key, name)) == value for key, value in expected.items())


@pytest.fixture
def exporter(start: Callable[..., Cli]) -> Callable[..., Exporter]:
    """Start one: ``exporter(etcd, ...)``."""

    def one(etcd: EtcdServer, *arguments: object, **options: object) -> Exporter:
        return Exporter(start(etcd, "exporter", "--listen", "127.0.0.1:0", *arguments, **options))

    return one


def test_a_semaphores_life(
    any_etcd: EtcdServer, client: Client, name: str, exporter: Callable[..., Exporter]
) -> None:
    """Limit, held, waiting, grants, losses, drift and junk, as they come and go."""
    sem = Semaphore(2, name, client=client)
    sem.acquire()
    one = exporter(any_etcd)
    first = {"max_leases": 2, "active_leases": 1, "pending_leases": 0, "oldest_wait_seconds": 0}
    assert one.shows(name, **first, acquire_total=0, junk_keys=0, limit_unreadable=0)
    assert one.scrape()["oldest_hold_seconds", name] > 0
    assert one.scrape()["up", ""] == 1

    sem.acquire()
    waiting = threading.Thread(target=sem.acquire)
    waiting.start()
    eventually(lambda: one.shows(name, active_leases=2, pending_leases=1, acquire_total=1))
    eventually(lambda: one.scrape()["oldest_wait_seconds", name] > 0)

    client.evict(name, slot=1)  # while somebody waits: surely a loss
    waiting.join(30)
    eventually(lambda: one.shows(name, losses_total=1, acquire_total=2, pending_leases=0))
    assert one.shows(name, release_total=0, overbooked_total=0)

    any_etcd.etcdctl("put", f"/etcdsem/{name}/max_leases", "1")
    any_etcd.etcdctl("put", f"/etcdsem/{name}/leases/strange", "x")
    eventually(lambda: one.shows(name, max_leases=1, overbooked_leases=1, junk_keys=1))
    while sem.leases:
        sem.release()
    eventually(lambda: one.shows(name, overbooked_leases=0, active_leases=0, release_total=2))

    sem.acquire()  # the program still carries 2
    eventually(lambda: one.shows(name, active_leases=1, limit_drift=1))
    any_etcd.etcdctl("put", f"/etcdsem/{name}/max_leases", "many")
    eventually(lambda: one.shows(name, limit_unreadable=1))
    assert ("max_leases", name) not in one.scrape()
    sem.release()
    any_etcd.etcdctl("del", "--prefix", f"/etcdsem/{name}/")
    eventually(lambda: ("active_leases", name) not in one.scrape())


def test_overridden(
    etcd: EtcdServer, client: Client, name: str, exporter: Callable[..., Exporter]
) -> None:
    """A limit or a rate that was changed since it was applied."""
    client.apply_limits(client.plan_limits({name: 5, f"{name}-r": Rate(5, 60.0, 1)}))
    one = exporter(etcd)
    seen = one.scrape()
    assert seen["limit_overridden", name] == 0
    assert seen["rate_limit_overridden", f"{name}-r"] == 0
    client.resize(name, 8)
    client.resize(f"{name}-r", Rate(8, 60.0, 1))
    eventually(lambda: one.scrape()["limit_overridden", name] == 1)
    assert one.scrape()["rate_limit_overridden", f"{name}-r"] == 1
    client.close_semaphore(name)
    Semaphore(5, name, client=client)
    eventually(lambda: ("limit_overridden", name) not in one.scrape())


def test_paused(
    etcd: EtcdServer, client: Client, name: str, exporter: Callable[..., Exporter]
) -> None:
    """It says so, keeps the limit, and neither holders nor what they give back look wrong."""
    sem = Semaphore(2, name, client=client)
    sem.acquire()
    one = exporter(etcd)
    assert one.shows(name, paused=0)
    client.pause(name)
    eventually(lambda: one.shows(name, paused=1, max_leases=2, active_leases=1))
    assert one.shows(name, overbooked_leases=0, limit_unreadable=0, limit_drift=0)
    waiting = threading.Thread(target=sem.acquire)
    waiting.start()
    eventually(lambda: one.shows(name, pending_leases=1))
    sem.release()
    eventually(lambda: one.shows(name, active_leases=0, release_total=1, losses_total=0))
    assert ("paused_until_timestamp_seconds", name) not in one.scrape()
    client.resume(name)
    waiting.join(30)
    eventually(lambda: one.shows(name, paused=0, active_leases=1, overbooked_total=0))
    client.penalize(name, "1h")
    pause = client.limit_info(name).pause
    assert pause is not None
    assert pause.until is not None
    until = pause.until.timestamp()
    eventually(lambda: one.shows(name, paused=1, paused_until_timestamp_seconds=until))
    sem.release()


def test_leases_of_several_slots(
    any_etcd: EtcdServer, client: Client, name: str, exporter: Callable[..., Exporter]
) -> None:
    """A lease of weight 3 is one lease and three slots; what the first in line wants is told."""
    one = exporter(any_etcd)
    sem = Semaphore(4, name, client=client)
    three = sem.acquire_lease(weight=3)
    assert three is not None
    eventually(lambda: one.shows(name, active_leases=1, active_slots=3, acquire_total=1))
    first = one.scrape()["oldest_hold_seconds", name]
    small = sem.acquire_lease()
    assert small is not None
    eventually(lambda: one.shows(name, active_leases=2, active_slots=4, acquire_total=2))
    assert one.scrape()["oldest_hold_seconds", name] > first > 0
    assert one.shows(name, next_wants_slots=0)
    big = threading.Thread(target=sem.acquire, kwargs={"weight": 2})
    big.start()
    eventually(lambda: one.shows(name, pending_leases=1, next_wants_slots=2))
    small.release()
    eventually(lambda: one.shows(name, active_slots=3, release_total=1, pending_leases=1))
    client.evict(name, slot=three.slots[1])
    big.join(30)
    eventually(lambda: one.shows(name, losses_total=1, active_leases=1, active_slots=2))
    assert one.shows(name, acquire_total=3, release_total=1, overbooked_total=0, next_wants_slots=0)
    client.resize(name, 1)
    eventually(lambda: one.shows(name, overbooked_leases=1))
    while sem.leases:
        sem.release()
    eventually(lambda: one.shows(name, active_leases=0, active_slots=0, release_total=2))


def test_a_rate_limit(
    any_etcd: EtcdServer, client: Client, name: str, exporter: Callable[..., Exporter]
) -> None:
    """It shows as a rate, and not as a semaphore: limit, period, used, waiting, grants, paused."""
    one = exporter(any_etcd)
    limit = RateLimit(name, 2, "1h", client=client)

    def shows(**expected: float) -> bool:
        return one.shows(name, **{f"rate_limit_{key}": value for key, value in expected.items()})

    eventually(lambda: shows(max_starts=2, period_seconds=3600, block_starts=1, used_starts=0))
    assert limit.acquire()
    assert limit.acquire()
    waiting = threading.Thread(target=limit.acquire, args=(120,))
    waiting.start()
    eventually(lambda: shows(used_starts=2, starts_total=2, pending_starts=1))
    eventually(lambda: one.scrape()["rate_limit_oldest_wait_seconds", name] > 0)
    client.pause(name)
    eventually(lambda: shows(paused=1, max_starts=2, overbooked_starts=0))
    limit.resize(1, "1h")
    eventually(lambda: shows(overbooked_starts=1, max_starts=1))
    client.resume(name)
    limit.resize(3, "1h")
    waiting.join(30)
    eventually(lambda: shows(used_starts=3, starts_total=3, pending_starts=0, paused=0))
    assert shows(overbooked_starts=0, overbooked_total=0, junk_keys=0, unreadable=0)
    limit.resize(1000, "1h")  # in blocks of 4; those before count as such
    assert limit.acquire(30)
    eventually(lambda: shows(max_starts=1000, block_starts=4, starts_total=7, used_starts=16))
    any_etcd.etcdctl("put", f"/etcdsem/{name}/max_leases", "soon")
    eventually(lambda: shows(unreadable=1, starts_total=7))
    seen = one.scrape()
    assert ("rate_limit_max_starts", name) not in seen
    assert not [key for key, of in seen if of == name and not key.startswith("rate_limit_")]
    assert seen["rate_limits", ""] >= 1


def test_a_holder_that_dies_while_others_wait_is_a_loss(
    etcd: EtcdServer, client: Client, name: str, exporter: Callable[..., Exporter], start: Starter
) -> None:
    """Expiry is told from a hand-over: its key goes, and somebody was in line."""
    sem = Semaphore(1, name, client=client)
    one = exporter(etcd)
    holder = start(etcd, "hold", name, "-t", "2")
    holder.expect("is held", err=True)
    waiting = threading.Thread(target=sem.acquire)
    waiting.start()
    eventually(lambda: one.shows(name, pending_leases=1))
    holder.send(signal.SIGKILL)
    waiting.join(30)
    eventually(lambda: one.shows(name, losses_total=1, release_total=0, acquire_total=2))
    sem.release()


def test_hand_overs_are_counted_exactly(
    etcd: EtcdServer, client: Client, name: str, exporter: Callable[..., Exporter]
) -> None:
    """A busy semaphore: as many grants as there were, and as many releases, no losses."""
    one = exporter(etcd)
    sem = Semaphore(2, name, client=client)
    eventually(lambda: one.shows(name, max_leases=2))

    def work() -> None:
        for _ in range(25):
            with sem:
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        one.scrape()
    for thread in threads:
        thread.join()
    eventually(lambda: one.shows(name, acquire_total=150, release_total=150, active_leases=0))
    assert one.shows(name, losses_total=0, overbooked_total=0)
    assert one.scrape()["full_reads_total", ""] == 1


def test_without_etcd_it_stays_and_says_so(
    fresh_etcd: EtcdServer, name: str, exporter: Callable[..., Exporter]
) -> None:
    """Down: `etcdsem_up 0` within seconds, no stale gauges, counts kept; back: all is there."""
    one = exporter(fresh_etcd)
    with etcdsem.connect(fresh_etcd.endpoint) as client, Semaphore(3, name, client=client):
        pass
    eventually(lambda: one.shows(name, max_leases=3, release_total=1))
    assert one.get("/readyz")[0] == 200
    fresh_etcd.pause()
    began = time.monotonic()
    eventually(lambda: one.scrape()["up", ""] == 0, 9)
    seen = one.scrape()
    assert time.monotonic() - began < 20
    assert ("max_leases", name) not in seen
    assert seen["acquire_total", name] == 1
    assert one.get("/readyz")[0] == 503
    assert one.get("/livez")[0] == 200
    fresh_etcd.resume()
    eventually(lambda: one.scrape()["up", ""] == 1, 60)
    assert one.shows(name, max_leases=3, acquire_total=1)
    one.cli.expect("cannot be reached", err=True)
    one.cli.expect("etcd answers again", err=True)


@pytest.mark.slow
def test_it_starts_without_etcd(
    etcd: EtcdServer, start: Starter, exporter: Callable[..., Exporter]
) -> None:
    """Nobody listens there: it serves all the same, and ends at once when told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        one = exporter(etcd, "--endpoints", f"127.0.0.1:{free.getsockname()[1]}")
        assert one.scrape()["up", ""] == 0
    one.cli.send(signal.SIGTERM)
    assert one.cli.end(10) == 128 + signal.SIGTERM


def test_a_user_who_may_not_read_and_then_may(
    etcd_binary: str, name: str, exporter: Callable[..., Exporter]
) -> None:
    """A watch that is refused is asked for again: up as soon as the role is there."""
    with secured(etcd_binary) as etcd:
        etcd.root("user add viewer:secret", "role add viewers", "user grant-role viewer viewers")
        with etcdsem.connect(etcd.endpoint, user="root", password="root") as root:
            Semaphore(3, name, client=root)
        login = {"ETCDSEM_USER": "viewer", "ETCDSEM_PASSWORD": "secret"}
        one = exporter(etcd, env=login)
        assert one.scrape()["up", ""] == 0
        one.cli.expect("refuses", err=True)
        etcd.root("role grant-permission viewers --prefix=true read /etcdsem/")
        eventually(lambda: one.shows(name, max_leases=3))
        assert one.scrape()["up", ""] == 1


def test_a_compaction_costs_one_more_read(
    fresh_etcd: EtcdServer, name: str, exporter: Callable[..., Exporter]
) -> None:
    """The watch's next revision is compacted away while the stream is cut: read again."""
    one = exporter(fresh_etcd)
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        sem = Semaphore(3, name, client=client)
        eventually(lambda: one.shows(name, active_leases=0))
        one.cli.send(signal.SIGSTOP)
        for _ in range(50):
            with sem:
                pass
        sem.acquire()
        revision = client._driver.connection.status(5).revision
        client._driver.connection.compact(revision, 5)
        one.cli.send(signal.SIGCONT)
        eventually(lambda: one.shows(name, active_leases=1))
        sem.release()


def test_only_its_prefix(etcd: EtcdServer, name: str, exporter: Callable[..., Exporter]) -> None:
    """--prefix chooses which semaphores; the label says it too."""
    one = exporter(etcd, "--prefix", f"/teams/{name}")
    with etcdsem.connect(etcd.endpoint, prefix=f"/teams/{name}") as client:
        Semaphore(4, "mine", client=client)
    Semaphore(4, name, client=etcdsem.connect(etcd.endpoint))
    eventually(lambda: one.shows("mine", max_leases=4))
    assert ("max_leases", name) not in one.scrape()
    _code, text = one.get("/metrics")
    assert f'etcdsem_semaphores{{prefix="/teams/{name}"}} 1.0' in text


def test_other_paths(etcd: EtcdServer, exporter: Callable[..., Exporter]) -> None:
    """404, and which there are."""
    one = exporter(etcd)
    code, text = one.get("/nothing")
    assert code == 404
    assert "/metrics" in json.loads(text)["paths"]


def address(where: str) -> tuple[str, int]:
    """As --listen reads it."""
    return read_address(where, option="--listen", port_alone=False)


def test_addresses() -> None:
    """HOST:PORT, with brackets or without; no host is every address."""
    assert address("127.0.0.1:9379") == ("127.0.0.1", 9379)
    assert address("[::1]:0") == ("::1", 0)
    assert address(":9379") == ("", 9379)
    bad = ("here", "127.0.0.1", "9379", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:²", "")
    for where in bad:
        with pytest.raises(etcdsem.InvalidSetting, match="--listen"):
            address(where)


def test_an_address_that_cannot_be() -> None:
    """Usage."""
    done = ran(None, "exporter", "--listen", "here")
    assert done.returncode == 64
    assert "--listen" in done.stderr


def test_an_address_that_is_taken() -> None:
    """Usage, too, with the reason."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = ran(None, "exporter", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 64
    assert "in use" in done.stderr


def test_without_prometheus_client_it_says_what_to_install(tmp_path: object) -> None:
    """One line, with the command."""
    with open(f"{tmp_path}/prometheus_client.py", "w") as file:
        file.write("raise ModuleNotFoundError('x', name='prometheus_client')\n")
    done = ran(None, "exporter", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "pip install 'etcdsem[metrics]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
