"""A python-etcd3 client's channels and login, lent to us.

1. Known by its class's module, so that python-etcd3 need not be installed, nor be imported.
2. What is lent is not ours to close. Calls and streams share its one channel, with the options
   that it was made with.
3. python-etcd3 logs in once, when its client is made, and keeps no password. We take its token,
   and log in by ourselves only if a user and a password were given to us too.
4. Where a semaphore that uses it is unpickled, there is no such client: the endpoints go along,
   and everything else comes from the environment there.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from etcdsem.errors import InvalidSetting
from etcdsem.etcd.settings import ConnectionSettings, Endpoint, Lender, parse_endpoints


def is_etcd3(client: object) -> bool:
    """Is it a client of python-etcd3 (of one endpoint or of several)?"""
    return any(
        kind.__module__.partition(".")[0] == "etcd3" and kind.__name__.endswith("Etcd3Client")
        for kind in type(client).__mro__
    )


def borrow(client: Any, user: str | None, password: str | None) -> ConnectionSettings:
    """Settings that use a python-etcd3 client's channels and login."""
    if (user is None) != (password is None):
        raise InvalidSetting("a user and a password go together: give both, or neither")
    channels = _channels(client)
    return ConnectionSettings(
        endpoints=tuple(channels),
        user=user,
        password=password,
        lender=_Etcd3(client, {endpoint.address: one for endpoint, one in channels.items()}),
    )


def _channels(client: Any) -> dict[Endpoint, Any]:
    several: Mapping[str, Any] | None = getattr(client, "endpoints", None)
    if several is None:  # version 0.12: one channel
        return {_endpoint(client._url, client.uses_secure_channel): client.channel}
    found = {_endpoint(one.netloc, one.secure): one.channel for one in several.values()}
    in_use = client.endpoint_in_use.channel  # first, since it is known to be good
    return dict(sorted(found.items(), key=lambda pair: pair[1] is not in_use))


def _endpoint(address: str, secure: bool) -> Endpoint:
    return parse_endpoints(f"{'https' if secure else 'http'}://{address}")[0]


class _Etcd3(Lender):
    """Channels of a python-etcd3 client. Does not keep the client itself."""

    def __init__(self, client: Any, channels: Mapping[str, Any]) -> None:
        self._client = weakref.ref(client)
        self._channels = channels
        self._token = self.token()

    def channel(self, endpoint: Endpoint) -> Any:
        return self._channels[endpoint.address]

    def token(self) -> str | None:
        client = self._client()
        if client is None:
            return self._token
        for key, value in client.metadata or ():
            if key == "token":
                return str(value)
        return None
