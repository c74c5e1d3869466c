"""An etcd with TLS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from etcdsem import server
from tests.security.authority import Pair


class TlsEtcd(server.EtcdServer):
    """A member that uses TLS for its clients."""

    def __init__(self, pair: Pair, *options: str, binary: str) -> None:
        (self.metrics_port,) = server.free_ports(1)
        super().__init__(
            binary=binary,
            extra_args=[
                *("--cert-file", pair.cert, "--key-file", pair.key),
                *("--listen-metrics-urls", f"http://127.0.0.1:{self.metrics_port}"),
                *options,
            ],
        )

    @property
    def client_url(self) -> str:
        return f"https://{self.endpoint}"

    @property
    def health_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}/health"


@contextmanager
def serving(pair: Pair, *options: str, binary: str) -> Iterator[TlsEtcd]:
    """A member that serves with this certificate."""
    with TlsEtcd(pair, *options, binary=binary) as one:
        one.launch()
        one.wait_healthy()
        yield one
