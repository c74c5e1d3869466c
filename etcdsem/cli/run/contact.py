"""Messages about the contact with etcd while waiting for a lease."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from etcdsem.cli.output import span
from etcdsem.cli.run.outage import Outage
from etcdsem.cli.run.request import LeaseRequest
from etcdsem.clock import boot_time
from etcdsem.intervals import missed_after

if TYPE_CHECKING:
    from etcdsem import Client

_CONNECTING = 1.0
"""Seconds without a first contact after which a message says what we connect to."""


class ContactReport:
    """Reports that etcd has not answered yet, or not any more."""

    def __init__(
        self, client: Client, request: LeaseRequest, until: float, tell: Callable[[str], object]
    ) -> None:
        """`until`: when --wait is over, by `boot_time()`."""
        self._client = client
        self._until = until
        self._tell = tell
        self._connecting_at = boot_time() + _CONNECTING
        # Waiters for a rate refresh another lease than the requested one; all waiters reread.
        refresh = math.inf if request.only_rate else request.refresh
        every = min(refresh, client._session.reread[1])
        self._outage = Outage(missed_after(every, request.ttl), tell)

    def look(self, *, connected: bool) -> None:
        """Call this about twice a second. `connected`: etcd has answered."""
        if connected:
            self._outage.look(self._client._session.silence, self._consequence)
        elif boot_time() >= self._connecting_at:
            self._connecting_at = math.inf
            self._tell(connecting(self._client))

    def _consequence(self) -> str:
        session = self._client._session
        left = session.patience - session.silence
        if self._until < math.inf:
            left = self._until - boot_time()
        return f"giving up in {span(max(0.0, left))} unless it answers"


def connecting(client: Client) -> str:
    """Return a message about a connection that takes long."""
    where = ", ".join(map(str, client.settings.endpoints))
    hint = " (no endpoint is set: use --endpoints or ETCDSEM_ENDPOINTS)"
    return f"connecting to {where}{hint if client.settings.default_endpoint else ''}"
