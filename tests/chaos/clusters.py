"""The clusters for chaos: three members in containers, in network namespaces, or as processes.

All have the same interface, `Cluster`: members that can be killed, paused and restarted, a proxy
for clients in front of each, and, except for plain processes, a way to cut a member off from the
others.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from etcdsem import server
from etcdsem.errors import EtcdSemError
from etcdsem.server import EtcdServer
from tests.etcd.proxy import Proxy
from tests.helpers.docker_etcd import start_containers

LOGGED = ("--logger=zap",)
"""etcd 3.4 does not write JSON by default; see elections.py."""


class Member(Protocol):
    """One etcd member, wherever it runs."""

    name: str
    version: str

    @property
    def endpoint(self) -> str: ...

    @property
    def etcdctl_binary(self) -> str: ...

    @property
    def running(self) -> bool: ...

    def etcdctl(self, *arguments: str) -> str: ...

    def kill(self) -> None: ...

    def launch(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def wait_healthy(self) -> None: ...

    def log(self) -> str: ...


@dataclass
class Cluster:
    """Three members and the proxies in front of them."""

    kind: str
    members: Sequence[Member]
    isolate: Callable[[int], None] | None = None
    rejoin: Callable[[int], None] | None = None
    proxies: list[Proxy] = field(default_factory=list)

    @property
    def endpoints(self) -> list[str]:
        """The members' own endpoints."""
        return [member.endpoint for member in self.members]

    @property
    def proxied(self) -> list[str]:
        """The proxies' endpoints."""
        return [proxy.endpoint for proxy in self.proxies]

    def status(self, number: int) -> dict[str, str] | None:
        """A member's own status; None if it does not answer."""
        member = self.members[number]
        try:
            said = member.etcdctl("endpoint", "status", "--command-timeout=2s", "-w", "fields")
        except (EtcdSemError, subprocess.TimeoutExpired):
            return None
        lines = [line.split(" : ", 1) for line in said.splitlines() if " : " in line]
        return {key.strip().strip('"'): value.strip() for key, value in lines}

    def leader(self, timeout: float = 30.0) -> int:
        """The number of the current leader; waits until there is one."""
        until = time.monotonic() + timeout
        while True:
            for number in range(len(self.members)):
                said = self.status(number)
                if said is not None and said.get("MemberID") == said.get("Leader"):
                    return number
            if time.monotonic() > until:
                raise AssertionError("there is no leader")
            time.sleep(0.1)

    def ask(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run etcdctl at any member that answers; for reads, and commands that may be repeated."""
        until = time.monotonic() + timeout
        while True:
            for member in self.members:
                try:
                    return member.etcdctl("--command-timeout=5s", *arguments)
                except (EtcdSemError, subprocess.TimeoutExpired) as error:
                    if time.monotonic() > until:
                        raise AssertionError(f"etcd does not answer: {error}") from error
            time.sleep(0.2)


@contextlib.contextmanager
def _with_proxies(cluster: Cluster) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        cluster.proxies = [stack.enter_context(Proxy(one)) for one in cluster.endpoints]
        yield cluster


@contextlib.contextmanager
def in_containers() -> Iterator[Cluster]:
    """Members in containers."""
    with start_containers(3) as started:
        members = started.members
        cluster = Cluster(
            "containers",
            members,
            isolate=lambda number: members[number].disconnect(),
            rejoin=lambda number: members[number].connect(),
        )
        with _with_proxies(cluster):
            yield cluster


@contextlib.contextmanager
def in_processes(binary: str) -> Iterator[Cluster]:
    """Members as plain processes on loopback; none can be cut off from the others."""
    with (
        server.start_cluster(3, binary=binary, extra_args=LOGGED) as members,
        _with_proxies(Cluster("processes", members)) as cluster,
    ):
        yield cluster


# ---------------------------------------------------------------- network namespaces


def namespaces_work() -> bool:
    """Can network namespaces be created here?"""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"etcdsem-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        return False
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return True


class NamespacedServer(EtcdServer):
    """A member in its own network namespace."""

    def __init__(
        self, *, namespace: str, address: str, cluster: str, name: str, binary: str
    ) -> None:
        super().__init__(
            binary=binary,
            port=2379,
            peer_port=2380,
            name=name,
            cluster=cluster,
            extra_args=LOGGED,
        )
        self.namespace = namespace
        self.address = address

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.port}"

    def _command(self) -> list[str]:
        command = [part.replace("127.0.0.1", self.address) for part in super()._command()]
        return ["ip", "netns", "exec", self.namespace, *command]  # which becomes etcd


class Namespaces:
    """A namespace for each member, with a cable between each two of them, and to this machine.

    There is no bridge: where Docker has set up the firewall, bridged packets are dropped.
    """

    _made = itertools.count()  # an old namespace's cables may outlive it for a moment

    def __init__(self, count: int) -> None:
        self.id = f"{os.getpid() % 100000:05d}{next(self._made) % 100:02d}"
        self.subnet = f"10.213.{os.getpid() % 250 + 1}"
        self.names = [f"etcdsem-{self.id}-{number}" for number in range(count)]
        self.addresses = [f"{self.subnet}.{number + 11}" for number in range(count)]

    def __enter__(self) -> Namespaces:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        host = f"{self.subnet}.1"
        for number, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            outside, inside = f"eso{self.id}{number}", f"esi{self.id}{number}"
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"{address}/32", "dev", "lo")
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
            _ip("addr", "add", f"{host}/32", "dev", outside)
            _ip("link", "set", outside, "up")
            _ip("-n", name, "link", "set", inside, "up")
            _ip("route", "add", f"{address}/32", "dev", outside, "src", host)
            _ip("-n", name, "route", "add", f"{host}/32", "dev", inside, "src", address)
        for number, name in enumerate(self.names):
            for other in range(number):
                here, there = self._cable(number, other), self._cable(other, number)
                _ip(
                    *("-n", name, "link", "add", here, "type", "veth", "peer", "name", there),
                    *("netns", self.names[other]),
                )
                _ip("-n", name, "link", "set", here, "up")
                _ip("-n", self.names[other], "link", "set", there, "up")
        for number in range(len(self.names)):
            self.rejoin(number)

    def __exit__(self, *exc_info: object) -> None:
        for number, name in enumerate(self.names):  # the other cables disappear with them
            for command in (["link", "del", f"eso{self.id}{number}"], ["netns", "del", name]):
                subprocess.run(["ip", *command], capture_output=True, check=False)

    @staticmethod
    def _cable(number: int, to: int) -> str:
        return f"{number}-to-{to}"

    def _others(self, number: int) -> list[int]:
        return [other for other in range(len(self.names)) if other != number]

    def isolate(self, number: int) -> None:
        """Silently drop packets to the other members; clients are unaffected."""
        for other in self._others(number):
            route = ("replace", "blackhole", f"{self.addresses[other]}/32")
            _ip("-n", self.names[number], "route", *route)

    def rejoin(self, number: int) -> None:
        """Restore the route to the other members."""
        for other in self._others(number):
            to, source = f"{self.addresses[other]}/32", self.addresses[number]
            route = ("replace", to, "dev", self._cable(number, other), "src", source)
            _ip("-n", self.names[number], "route", *route)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EtcdSemError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextlib.contextmanager
def in_namespaces(binary: str) -> Iterator[Cluster]:
    """Members as processes, each in its own network namespace."""
    with contextlib.ExitStack() as stack:
        spaces = stack.enter_context(Namespaces(3))
        names = [f"m{number}" for number in range(3)]
        pairs = zip(names, spaces.addresses, strict=True)
        cluster = ",".join(f"{name}=http://{address}:2380" for name, address in pairs)
        members = [
            stack.enter_context(
                NamespacedServer(
                    namespace=spaces.names[number],
                    address=spaces.addresses[number],
                    cluster=cluster,
                    name=names[number],
                    binary=binary,
                )
            )
            for number in range(3)
        ]
        for member in members:
            member.launch()
        for member in members:
            member.wait_healthy()
        made = Cluster("namespaces", members, spaces.isolate, spaces.rejoin)
        yield stack.enter_context(_with_proxies(made))


@contextlib.contextmanager
def on_this_machine(binary: str) -> Iterator[Cluster]:
    """In network namespaces if possible, else as plain processes."""
    with in_namespaces(binary) if namespaces_work() else in_processes(binary) as cluster:
        yield cluster
