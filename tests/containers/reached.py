"""An etcd of the player, as etcdctl reaches it."""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

from etcdsem.errors import EtcdSemError
from tests.helpers.docker_etcd import etcd_programs


class Reached(NamedTuple):
    """An etcd that etcdctl reaches with these options, as `tests.helpers.history` needs it."""

    endpoint: str
    options: tuple[str, ...] = ()

    @property
    def etcdctl_binary(self) -> str:
        return str(etcd_programs()["etcdctl"])

    def etcdctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.etcdctl_binary, f"--endpoints={self.endpoint}", *self.options, *arguments],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise EtcdSemError(done.stderr)
        return done.stdout
