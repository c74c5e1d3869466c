"""Containers that stand for pods: locked down as Kubernetes' "restricted" profile asks for, with
what the Downward API would tell them in their environment.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etcdsem import Semaphore, SemaphoreClosed
from tests.helpers.docker_etcd import ContainerCluster, docker_client

LOCKED_DOWN: dict[str, Any] = {
    "read_only": True,
    "user": "65532:65532",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}


class Pod:
    """A container that runs, or has run. One container is all of it."""

    def __init__(self, name: str, container: Any) -> None:
        self.name = name
        self.container = container

    def __repr__(self) -> str:
        return f"<Pod {self.name}>"

    @property
    def status(self) -> str:
        """``running``, ``paused``, ``exited``, ..."""
        self.container.reload()
        return str(self.container.status)

    def end(self, seconds: float = 60.0) -> int:
        """Wait for its end; gives its exit code."""
        try:
            return int(self.container.wait(timeout=seconds)["StatusCode"])
        except Exception as error:
            raise AssertionError(f"{self!r} did not end: {error}\n{self.log()}") from None

    def log(self, *, out: bool = True, err: bool = True) -> str:
        """What it wrote."""
        return str(self.container.logs(stdout=out, stderr=err).decode(errors="replace"))

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Wait until it has written `text`."""
        until = time.monotonic() + seconds
        while text not in self.log():
            assert time.monotonic() < until, f"{self!r} never wrote {text!r}: {self.log()}"
            assert self.status != "exited" or text in self.log(), f"{self!r} ended: {self.log()}"
            time.sleep(0.05)

    def exec(self, *command: str) -> tuple[int, str]:
        """Run a command in it, as `kubectl exec` and probes do: exit code and output."""
        done = self.container.exec_run(list(command))
        return int(done.exit_code), done.output.decode(errors="replace")


class Pods:
    """Those of one test; all are removed at its end."""

    def __init__(self, docker: Any, cluster: ContainerCluster) -> None:
        self._docker = docker
        self._cluster = cluster
        self._all: list[Any] = []
        self._volumes: list[Any] = []

    @property
    def network(self) -> Any:
        """The network that they and etcd share."""
        return self._docker.networks.get(self._cluster.network.name)

    def run(
        self,
        name: str,
        image: str,
        *command: str,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Pod:
        """Start one. `name` is its DNS name, and the pod's name in its labels."""
        labels = f"pod={name},namespace=test,node=here"
        container = self._docker.containers.create(
            image,
            list(command),
            detach=True,
            hostname=name or None,
            environment={
                "ETCDSEM_ENDPOINTS": ",".join(self._cluster.inner_endpoints),
                "ETCDSEM_LABELS": labels,
                **(env or {}),
            },
            **{**LOCKED_DOWN, "network": self._cluster.network.name, **options},
        )
        self._all.append(container)
        container.start()
        return Pod(name, container)

    def volume(self) -> str:
        """A fresh volume, as an emptyDir is. Who mounts it first at /tmp may write to it."""
        volume = self._docker.volumes.create()
        self._volumes.append(volume)
        return str(volume.name)

    def run_all(self, starts: Sequence[Callable[[], Pod]], at_once: int = 4) -> list[Pod]:
        """Start several, a few at a time."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda start: start(), starts))

    def remove(self) -> None:
        """Remove all of them."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(_remove, self._all))
        for volume in self._volumes:
            volume.remove(force=True)


def _remove(container: Any) -> None:
    import docker

    with contextlib.suppress(docker.errors.NotFound):
        container.remove(force=True, v=True)


@contextlib.contextmanager
def make_pods(cluster: ContainerCluster) -> Iterator[Pods]:
    """Pods on the cluster's network."""
    docker = docker_client()
    pods = Pods(docker, cluster)
    try:
        yield pods
    finally:
        pods.remove()
        docker.close()


# ---------------------------------------------------------------- at work, and who watches it

WORK = """
import os, socket, sys, time
host, beats = sys.argv[1], int(sys.argv[2])
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
referee = socket.getaddrinfo(host, 4444, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
said = " ".join(os.environ[key] for key in ("JOB", "ETCDSEM_SLOT", "ETCDSEM_FENCING_TOKEN"))
for beat in range(beats):
    try:
        out.sendto(said.encode(), referee)
    except OSError:
        pass  # cut off: nobody sees it work
    time.sleep(0.02)
"""
"""A job's work: tell the referee "I am at it", fifty times a second."""

REFEREE = """
import json, signal, socket, sys, time
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("0.0.0.0", 4444))
works, newest, refused = {}, {}, []
def verdict(*_):
    edges = sorted([(w[0], 1) for w in works.values()] + [(w[1], -1) for w in works.values()])
    now = most = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    print(json.dumps({"most": most, "jobs": sorted({w[2] for w in works.values()}),
                      "refused": refused}), flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, verdict)
print("ready", flush=True)
while True:
    job, slot, token = heard.recv(1000).decode().split()
    token = int(token)
    if token < newest.get(slot, 0):
        refused.append(job)  # what a fenced resource does with a holder that is late
        continue
    newest[slot] = token
    now = time.monotonic()
    works.setdefault(token, [now, now, job])[1] = now
"""
"""Sees who is at work, by its own clock and nobody's promise. Refuses tokens of the past."""


class Referee:
    """A container that only listens."""

    def __init__(self, pods: Pods, image: str) -> None:
        self._pod = pods.run("referee", image, "-c", REFEREE, entrypoint="python3")
        self._pod.wait_for("ready")
        pods.network.reload()
        self._pod.container.reload()
        network = self._pod.container.attrs["NetworkSettings"]["Networks"][pods.network.name]
        self.host = str(network["IPAddress"])

    def verdict(self) -> dict[str, Any]:
        """Stop it; what it saw."""
        self._pod.container.stop(timeout=30)
        said = self._pod.log(err=False).strip().splitlines()[-1]
        verdict: dict[str, Any] = json.loads(said)
        return verdict


def known(sem: Semaphore) -> bool:
    """Is it registered yet?"""
    try:
        sem.status()
    except SemaphoreClosed:
        return False
    return True
