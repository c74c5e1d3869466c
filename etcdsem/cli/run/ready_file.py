"""How a sidecar tells its neighbours that the lease is held: a file, and a port for probes.

1. The file is there while the lease is held, and at no other time: one line of JSON, written aside
   and moved into place, so nobody reads half of it. It is removed before the lease is given back.
2. A holder that is killed or stopped cannot remove it. So the file says until when the lease is
   good (`good_until`, on the machine's clock since boot), and is written again with each renewal:
   a file whose time has passed means nothing, see `check()`.
3. ``GET /readyz``: 200 and the same JSON while the lease is held, else 503. ``GET /livez``: 200 as
   long as there is anybody to answer.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from etcdsem.cli.http_server import HttpServer, Response, json_response
from etcdsem.cli.json_output import stamp
from etcdsem.cli.output import say
from etcdsem.clock import boot_time
from etcdsem.errors import InvalidSetting
from etcdsem.posix import boot_id

if TYPE_CHECKING:
    from etcdsem import Lease

ReadyData = Mapping[str, Any]


def ready_data(lease: Lease, good_for: float) -> ReadyData:
    """What is told of a lease that is good for so many seconds; described in docs/cli.md."""
    return {
        "name": lease.name,
        "slot": lease.slot,
        "slots": list(lease.slots),
        "limit": lease.limit,
        "fencing_token": lease.fencing_token,
        "lease": lease.id,
        "acquired_at": stamp(lease.acquired_at),
        "ttl": lease.ttl,
        "pid": os.getpid(),
        "boot_id": boot_id(),
        "good_until": round(boot_time() + good_for, 3),
    }


class ReadyFile:
    """The file at `path`, ours from now on: what an earlier holder left there is removed."""

    def __init__(self, path: str) -> None:
        """Raises InvalidSetting if nothing could be written there."""
        self._path = path
        self._aside_path = f"{path}.{os.getpid()}.tmp"
        self._failed = False
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise OSError(errno.EEXIST, "what is there is no file")
            self._aside(b"")  # to see that it can be done, before queueing for it
            _remove(self._aside_path)
            self.remove()
        except OSError as error:
            raise InvalidSetting(f"--ready-file {path}: {error.strerror}") from None

    def show(self, told: ReadyData) -> bool:
        """Write it. False if that fails; a file that was there goes stale by itself."""
        try:
            self._write(json.dumps(told).encode() + b"\n")
        except OSError as error:
            if not self._failed:
                say(f"cannot write --ready-file {self._path}: {error.strerror}")
            self._failed = True
            return False
        self._failed = False
        return True

    def _write(self, text: bytes) -> None:
        self._aside(text)
        try:
            os.replace(self._aside_path, self._path)
        except OSError:
            _remove(self._aside_path)
            raise

    def _aside(self, text: bytes) -> None:
        try:
            with open(self._aside_path, "wb") as file:
                file.write(text)
        except OSError:
            _remove(self._aside_path)
            raise

    def remove(self) -> None:
        """See to it that it is not there."""
        _remove(self._path)


def check(path: str) -> str | None:
    """None if the ready file says that the lease is held now; else what is wrong."""
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
        until, boot = float(told["good_until"]), told["boot_id"]
    except OSError as error:
        return f"{path}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{path}: it is no ready file"
    if boot != boot_id():
        return f"{path}: it was written before the machine started"
    if boot_time() >= until:
        return f"{path}: its holder has not refreshed it for too long"
    return None


def serve_ready(where: str, told: Callable[[], ReadyData | None]) -> HttpServer:
    """Answer probes on `where`, PORT or HOST:PORT; `told` gives what is held."""

    def ready(accept: str) -> Response:
        now = told()
        return json_response(200 if now else 503, now or {"held": False})

    def live(accept: str) -> Response:
        return json_response(200, {"held": told() is not None})

    routes = {"/readyz": ready, "/livez": live}
    return HttpServer(where, routes, option="--ready-port", port_alone=True)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
