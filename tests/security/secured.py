"""An etcd with users, and what operators do to them while clients work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from etcdsem.server import EtcdServer

JOB = "job"
SECRET = "pass:with:colons"
"""As long as etcdctl's --user allows: the first colon ends the name."""


class SecuredEtcd(EtcdServer):
    """A member with the users root and job; `job` may use all semaphores below /etcdsem/."""

    def root(self, *lines: str) -> None:
        """Run etcdctl commands as root."""
        for line in lines:
            self.etcdctl("--user", "root:root", *line.split())

    def prepare(self) -> None:
        """Users and roles; not yet enabled."""
        for line in (
            "user add root:root",
            "user grant-role root root",
            "role add jobs",
            "role grant-permission jobs --prefix=true readwrite /etcdsem/",
            f"user add {JOB}:{SECRET}",
            f"user grant-role {JOB} jobs",
        ):
            self.etcdctl(*line.split())

    def enable(self) -> None:
        """From now on a login is needed."""
        self.etcdctl("auth", "enable")


@contextmanager
def secured(
    binary: str, *, options: Sequence[str] = (), enabled: bool = True
) -> Iterator[SecuredEtcd]:
    """A member with users."""
    with SecuredEtcd(binary=binary, extra_args=options) as one:
        one.launch()
        one.wait_healthy()
        one.prepare()
        if enabled:
            one.enable()
        yield one
