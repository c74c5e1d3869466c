"""How `run` and `hold` report that the lease is held: a file, and an HTTP port for probes.

1. The file exists only while the lease is held: one line of JSON, written to a temporary file and
   renamed, so that no reader sees half of it. It is removed before the lease is released.
2. A holder that is killed or stopped cannot remove it. So the file says until when the lease is
   valid (`good_until`, on the machine's clock since boot) and is rewritten with each renewal; a
   file whose time has passed does not count, see `check()`.
3. ``GET /readyz`` returns 200 and the same JSON while the lease is held, else 503. ``GET /livez``
   returns 200 as long as the process can answer.
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
    """Return the JSON data for a lease that is valid for `good_for` seconds; see docs/cli.md."""
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
    """The ready file at `path`. A file that an earlier holder left there is removed."""

    def __init__(self, path: str) -> None:
        """Remove an old file. Raises InvalidSetting if `path` cannot be written."""
        self._path = path
        self._shown = 0.0  # until when the lease is valid by the last file
        self._failed = False
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise OSError(errno.EEXIST, "exists and is not a regular file")
            _remove(self._write_aside(b""))  # fail now rather than after waiting for the lease
            self.remove()
        except OSError as error:
            raise InvalidSetting(f"--ready-file {path}: {error.strerror}") from None

    def show(self, data: ReadyData) -> bool:
        """Write the file. Returns False if that fails; the previous file then becomes stale."""
        try:
            self._write(json.dumps(data).encode() + b"\n")
        except OSError as error:
            if not self._failed:
                say(f"cannot write --ready-file {self._path}: {error.strerror}")
            self._failed = True
            return False
        self._failed = False
        self._shown = data["good_until"]
        return True

    def refresh(self, data: ReadyData) -> None:
        """Write the file again if the lease was renewed since."""
        if data["good_until"] > self._shown + 0.1:
            self.show(data)

    def _write(self, text: bytes) -> None:
        aside = self._write_aside(text)
        try:
            os.replace(aside, self._path)
        except OSError:
            _remove(aside)
            raise

    def _write_aside(self, text: bytes) -> str:
        """Write a new temporary file, and return its path."""
        # Nobody can plant a file or a link there: the name is random, and must not exist.
        path = f"{self._path}.{os.urandom(8).hex()}.tmp"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with open(handle, "wb") as file:
                file.write(text)
        except OSError:
            _remove(path)
            raise
        return path

    def remove(self) -> None:
        """Remove the file, if it exists."""
        self._shown = 0.0
        _remove(self._path)


def check(path: str) -> str | None:
    """Return None if the ready file says that the lease is held now, else the reason why not."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        until, boot = float(data["good_until"]), data["boot_id"]
    except OSError as error:
        return f"{path}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{path}: not a ready file"
    if boot != boot_id():
        return f"{path}: stale, written before the last boot"
    if boot_time() >= until:
        return f"{path}: stale, its holder stopped refreshing it"
    return None


def serve_ready(where: str, current: Callable[[], ReadyData | None]) -> HttpServer:
    """Start the HTTP server for probes.

    Args:
        where: PORT or HOST:PORT.
        current: returns the data of the held lease, or None; called for each probe.

    Raises:
        InvalidSetting: the server cannot listen there.
    """

    def ready(accept: str) -> Response:
        data = current()
        return json_response(200 if data else 503, data or {"held": False})

    def live(accept: str) -> Response:
        return json_response(200, {"held": current() is not None})

    routes = {"/readyz": ready, "/livez": live}
    return HttpServer(where, routes, option="--ready-port", port_alone=True)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
