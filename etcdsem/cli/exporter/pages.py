"""What the exporter serves besides metrics: pages for people, and their data as JSON.

    /                     all semaphores, as `top` shows them
    /semaphore/NAME       one of them, as `status` shows it
    /api/status           the JSON of `ls`
    /api/status/NAME      the JSON of `status`

1. It only reads. The list comes from the exporter's copy, and costs etcd one count of keys.
2. The holders and waiters of one semaphore are read as `status` reads them, but no more often than
   is cheap, however many browsers ask: see `_StatusReader`. A name that the copy does not have is
   not asked for.
3. Without ``--web`` only requests to an address or to ``localhost`` are answered. Otherwise a page
   elsewhere could make its own host name point to 127.0.0.1, and read these in a browser.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from etcdsem.cli.exporter.html import overview_page, status_page, trouble_page
from etcdsem.cli.http_server import Response, json_response
from etcdsem.cli.json_output import list_data, status_data
from etcdsem.cli.output import span
from etcdsem.errors import EtcdSemError, SemaphoreClosed

if TYPE_CHECKING:
    from etcdsem.model import Status
    from etcdsem.prefix_mirror import PrefixMirror
    from etcdsem.sync import Client

_FRESH: Final = 1.0
"""Seconds for which a status is served again."""

_PAUSE: Final = 10.0
"""The same in multiples of the time that the read took: so reads take at most 1/11 of the time."""

_PATIENCE: Final = 10.0
"""Seconds that a request waits for another one, which reads."""

_SAFE: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server that listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Pages:
    """Called with the path and the Host header of each request that is not for metrics."""

    def __init__(self, client: Client, mirror: PrefixMirror, *, any_host: bool) -> None:
        self._mirror = mirror
        self._reader = _StatusReader(client)
        self._any_host = any_host

    def __call__(self, target: str, host: str) -> Response | None:
        """Return the response; None if there is no such page."""
        path, _, query = target.partition("?")
        try:
            match [unquote(part, errors="strict") for part in path.split("/")[1:]]:
                case [""]:
                    found = self._allowed(host) or self._all(parse_qs(query).get("sort", [""])[0])
                case ["semaphore", name]:
                    found = self._allowed(host) or self._one(name)
                case ["api", "status"]:
                    found = self._allowed(host) or self._all_data()
                case ["api", "status", name]:
                    found = self._allowed(host) or self._one_data(name)
                case _:
                    return None
        except ValueError:  # not UTF-8, or too many fields
            return None
        return found._replace(headers={**_SAFE, **found.headers})

    def _allowed(self, host: str) -> Response | None:
        """Return the refusal of a request to a host name."""
        if self._any_host or not host or _is_plain(host):
            return None
        error = "start etcdsem exporter with --web to use its pages by a host name"
        return json_response(403, {"error": error})

    def _all(self, sort: str) -> Response:
        self._mirror.refresh()
        return overview_page(self._mirror.prefix, self._mirror.overview(), sort, self._trouble())

    def _one(self, name: str) -> Response:
        try:
            return status_page(self._status(name))
        except SemaphoreClosed as error:
            return trouble_page(404, name[:128], str(error))
        except EtcdSemError as error:
            return trouble_page(503, name[:128], str(error))

    def _all_data(self) -> Response:
        if not self._mirror.refresh():
            return json_response(503, {"error": self._mirror.trouble})
        return json_response(200, list_data(self._mirror.overview()))

    def _one_data(self, name: str) -> Response:
        try:
            return json_response(200, status_data(self._status(name)))
        except SemaphoreClosed as error:
            return json_response(404, {"error": str(error)})
        except EtcdSemError as error:
            return json_response(503, {"error": str(error)})

    def _status(self, name: str) -> Status:
        if not self._mirror.refresh():
            raise EtcdSemError(self._trouble())
        if not self._mirror.knows(name):
            raise SemaphoreClosed(f"there is no such semaphore below {self._mirror.prefix}")
        return self._reader.read(name)

    def _trouble(self) -> str:
        """Return why the copy is out of date, and since when; empty if it is not."""
        trouble, at = self._mirror.trouble, self._mirror.updated_at
        if not trouble:
            return ""
        when = "never updated" if at is None else f"updated {span(time.monotonic() - at)} ago"
        return f"{when}: {trouble}"


def _is_plain(host: str) -> bool:
    """Whether a Host header has an address or ``localhost``, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class _Read(NamedTuple):
    """A status, and until when it is served again."""

    status: Status
    until: float


class _StatusReader:
    """Reads the status of semaphores, one at a time, and keeps each for a while."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._turn = threading.Lock()
        self._kept: dict[str, _Read] = {}

    def read(self, name: str) -> Status:
        """Return the status, not older than a moment. Raises EtcdSemError."""
        if not self._turn.acquire(timeout=_PATIENCE):
            raise EtcdSemError("etcd has not answered other requests for this page")
        try:
            began = time.monotonic()
            self._kept = {key: one for key, one in self._kept.items() if one.until > began}
            if name not in self._kept:
                status = self._client.status(name)
                now = time.monotonic()
                self._kept[name] = _Read(status, now + max(_FRESH, _PAUSE * (now - began)))
            return self._kept[name].status
        finally:
            self._turn.release()
