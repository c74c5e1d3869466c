"""How a program gets a client."""

from __future__ import annotations

from collections.abc import Sequence

from etcdsem.aio.client import Client
from etcdsem.drivers.base import connect_settings
from etcdsem.model import Duration


def connect(
    endpoints: str | Sequence[str] | None = None,
    *,
    cacert: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    dial_timeout: Duration | None = None,
    prefix: str | None = None,
    keeper: bool | Duration | None = None,
) -> Client:
    """Create a client for the etcd at `endpoints`. It connects on first use.

    Settings that are not given come from ``ETCDSEM_ENDPOINTS``, ``ETCDSEM_CACERT`` and so on, else
    from the ``ETCDCTL_*`` variable of the same meaning, else they have their defaults.

    Args:
        endpoints: ``"host:2379"``, a list, or a comma-separated list; default ``127.0.0.1:2379``.
        cacert: path of the CA of etcd's certificates.
        cert: path of the client's certificate.
        key: path of its private key.
        user: for etcd's authentication.
        password: the user's password.
        password_file: a file with it instead, read again for each login.
        dial_timeout: how long the first call tries to reach etcd before it raises
            EtcdUnavailable; default 10 s. Later, acquire tries for 60 s, other calls for 10 s.
        prefix: of the keys in etcd; default ``ETCDSEM_PREFIX``, else ``/etcdsem``.
        keeper: start a helper process that also refreshes held leases, for programs whose
            interpreter may be busy for longer than the lease timeout. True, or for how long while
            the program gives no sign of life (True: 10 minutes); default ``ETCDSEM_KEEPER``.

    Raises:
        InvalidSetting: a setting is invalid.
    """
    given = {"cacert": cacert, "cert": cert, "key": key, "user": user, "password": password}
    settings = connect_settings(endpoints, dial_timeout, **given, password_file=password_file)
    return Client(settings, prefix=prefix, keeper=keeper)


__all__ = ["connect"]
