"""One refusal of a server makes all processes wait for as long as it says: a shared back-off."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

RETRY_AFTER = 5.0

UNDER_WAY = 2.0
"""Seconds that a request may be under way on a busy machine, when its permit was granted before the
pause began."""

PROGRAM = """
import sys, urllib.error, urllib.request
from etcdsem import RateLimit

url, name, worker = sys.argv[1:]
api = RateLimit(name, 200, "2s")
while True:
    api.acquire()
    try:
        urllib.request.urlopen(f"{url}/{worker}", timeout=30).close()
    except urllib.error.HTTPError as refusal:
        if refusal.code == 410:
            break
        api.penalize(refusal.headers["Retry-After"], reason="429")
        urllib.request.urlopen(f"{url}/paused", timeout=30).close()
"""


class Service(BaseHTTPRequestHandler):
    """Refuses one request, once all programs have made one; ends when all have made another."""

    programs: ClassVar[int]
    lock: ClassVar[threading.Lock]
    seen: ClassVar[list[tuple[float, str]]]
    refused: ClassVar[list[float]]
    paused: ClassVar[list[float]]

    def do_GET(self) -> None:
        """Answer."""
        with self.lock:
            status = self._status(time.monotonic(), self.path[1:])
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if status == 429:
            self.send_header("Retry-After", str(RETRY_AFTER))
        self.end_headers()

    def _status(self, now: float, who: str) -> int:
        if who == "paused":
            self.paused.append(now)
            return 200
        self.seen.append((now, who))
        everybody = len({one for _, one in self.seen}) == self.programs
        if everybody and not self.refused:
            self.refused.append(now)
            return 429
        again = {one for at, one in self.seen if self.refused and at > self.refused[0] + UNDER_WAY}
        return 410 if len(again) == self.programs else 200

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@contextmanager
def service(programs: int) -> Iterator[tuple[type[Service], str]]:
    """A new service, and its URL."""
    fields = {"programs": programs, "lock": threading.Lock(), "seen": [], "refused": []}
    kind = type("ThisService", (Service,), {**fields, "paused": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    yield kind, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", sample([4, 20]))
def test_one_refusal_stops_all(etcd: EtcdServer, name: str, count: int) -> None:
    """No process makes another request in that time, except what was under way when the pause
    began; afterwards all continue.
    """
    with service(count) as (seen, url):
        programs = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, url, name, f"worker{number}"],
                env={"ETCDSEM_ENDPOINTS": etcd.endpoint},
            )
            for number in range(count)
        ]
        try:
            eventually(lambda: all(one.poll() is not None for one in programs), 90)
        finally:
            for one in programs:
                one.kill()
                one.wait()
        assert [one.returncode for one in programs] == [0] * count
    (refused,), (paused,) = seen.refused, seen.paused
    early = [at for at, _ in seen.seen if paused + UNDER_WAY < at < refused + RETRY_AFTER]
    assert not early
    under_way = [at - paused for at, _ in seen.seen if paused < at < refused + RETRY_AFTER]
    print(f"{len(under_way)} under way, the last for {max(under_way, default=0.0):.3f} s")
    assert len(under_way) <= 3 * count
