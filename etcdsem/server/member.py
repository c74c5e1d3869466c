"""One member of etcd: its process, its addresses, and what tests do to it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from etcdsem import interpreter
from etcdsem.clock import boot_time
from etcdsem.errors import EtcdSemError, EtcdUnavailable
from etcdsem.server.guardian import Guardian
from etcdsem.server.programs import binary_version, environment, find_binary

START_TIMEOUT = 30.0
"""Seconds within which etcd must become healthy."""


def free_ports(count: int) -> list[int]:
    """Return loopback ports that are currently free."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class EtcdServer:
    """One member of etcd, run by this process."""

    def __init__(
        self,
        *,
        binary: str | None = None,
        port: int | None = None,
        data_dir: str | None = None,
        extra_args: Sequence[str] = (),
        name: str | None = None,
        peer_port: int | None = None,
        cluster: str | None = None,
    ) -> None:
        self.binary = binary or find_binary("etcd")
        self.version = binary_version(self.binary)
        ports = free_ports(2)
        self.port = port or ports[0]
        self.peer_port = peer_port or ports[1]
        self.name = name or f"dev-{secrets.token_hex(4)}"  # by which `wait_healthy` knows it
        self.extra_args = tuple(extra_args)
        self._cluster = cluster or f"{self.name}=http://127.0.0.1:{self.peer_port}"
        self._made = tempfile.mkdtemp(prefix="etcdsem-") if data_dir is None else None
        self.data_dir = data_dir or os.path.join(self._made or "", "data")
        self.log_path = os.path.join(self._made or self.data_dir, "etcd.log")
        self.pid = 0
        self._guardian: Guardian | None = None

    def __repr__(self) -> str:
        return f"<EtcdServer {self.version} at {self.endpoint}, pid {self.pid}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """The endpoint for clients: ``127.0.0.1:port``."""
        return f"127.0.0.1:{self.port}"

    @property
    def client_url(self) -> str:
        """The endpoint for clients as a URL."""
        return f"http://{self.endpoint}"

    @property
    def health_url(self) -> str:
        """The URL of the health check."""
        return f"{self.client_url}/health"

    @property
    def etcdctl_binary(self) -> str:
        """The path of the etcdctl with the same version. Raises EtcdNotFound."""
        return find_binary("etcdctl", beside=self.binary)

    def env(self) -> dict[str, str]:
        """Return the environment variables that point etcdsem and etcdctl to it."""
        return {
            "ETCDSEM_ENDPOINTS": self.endpoint,
            "ETCDCTL_ENDPOINTS": self.endpoint,
            "ETCDCTL_API": "3",
        }

    def etcdctl(self, *arguments: str) -> str:
        """Run etcdctl against it, and return its output. Raises EtcdSemError if it fails."""
        done = subprocess.run(
            [self.etcdctl_binary, *arguments],
            env={**environment(), **self.env()},
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

    # -- lifecycle

    def launch(self) -> None:
        """Start the process, without waiting for it to be healthy.

        Raises:
            EtcdUnavailable: another program listens on the port.
            EtcdSemError: no process can be started.
        """
        if self._guardian is None:
            if reason := interpreter.why_not():
                raise EtcdSemError(f"cannot start etcd from here, because {reason}")
            _check_free(self.port)
            os.makedirs(self.data_dir, mode=0o700, exist_ok=True)
            self._guardian = Guardian(self._made, self.log_path, self._command(), environment())
        self.pid = int(self._ask("start"))

    def _command(self) -> list[str]:
        peer = f"http://127.0.0.1:{self.peer_port}"
        command = [self.binary, "--name", self.name, "--data-dir", self.data_dir]
        command += ["--listen-client-urls", self.client_url]
        command += ["--advertise-client-urls", self.client_url]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", self._cluster]
        if self._made is not None and _has_no_fsync(self.version):
            command.append("--unsafe-no-fsync")  # the data is temporary
        return [*command, *self.extra_args]

    def _ask(self, what: str) -> str:
        if self._guardian is None:
            raise EtcdSemError("this etcd is not running: it was not started, or was stopped")
        answer = self._guardian.ask(what)
        if not answer:
            raise EtcdSemError(f"the guardian process of {self!r} has died")
        return answer

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._guardian is not None and self._ask("status") == "running"

    def wait_healthy(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until it is healthy. Raises EtcdUnavailable, with the end of its log.

        Another etcd that answers on the port does not count.
        """
        until = boot_time() + timeout
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                with opener.open(self.health_url, timeout=2) as answer:
                    healthy = b'"true"' in answer.read()
                if healthy and self._answers(opener) and self.running:
                    return
            except (OSError, urllib.error.URLError):
                pass  # not yet
            if not self.running or boot_time() > until:
                if f":{self.port}: bind: address already in use" in self.log_end():
                    raise _in_use(self.port)
                raise EtcdUnavailable(f"etcd did not start; its log:\n{self.log_end()}")
            time.sleep(0.02)

    def _answers(self, opener: urllib.request.OpenerDirector) -> bool:
        """Whether the etcd on the port has our member's name; True if it does not tell names."""
        where = f"{self.health_url.removesuffix('/health')}/v3/cluster/member/list"
        try:
            with opener.open(where, data=b"{}", timeout=2) as answer:
                members = json.load(answer)["members"]
            return self.name in [member.get("name") for member in members]
        except (urllib.error.HTTPError, ValueError, KeyError):
            return True

    def log(self) -> str:
        """Return its log, across all restarts; empty without one."""
        with contextlib.suppress(OSError), open(self.log_path, errors="replace") as file:
            return file.read()
        return ""

    def log_end(self, last: int = 12) -> str:
        """Return the first three lines of its log, which name invalid options, and the last."""
        lines = self.log().splitlines(keepends=True)
        if len(lines) > last + 3:
            lines = [*lines[:3], "...\n", *lines[-last:]]
        return "".join(lines) or "(no log)"

    def pause(self) -> None:
        """Send SIGSTOP: it keeps its connections but does not answer."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT, after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL and wait for its end. `restart` starts it again with its data."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            self._ask("wait")

    def restart(self) -> None:
        """Stop it if it is running, and start it again with the same ports and data."""
        self.launch()
        self.wait_healthy()

    def stop(self) -> None:
        """Stop it and remove its temporary files. Stopping it again is a no-op."""
        guardian, self._guardian = self._guardian, None
        if guardian is not None:
            guardian.end()
        elif self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)


def _check_free(port: int) -> None:
    """Raise EtcdUnavailable if nobody can listen on a loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as etcd does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _in_use(port) from None
            raise EtcdUnavailable(f"cannot listen on port {port}: {error.strerror}") from None


def _in_use(port: int) -> EtcdUnavailable:
    return EtcdUnavailable(f"port {port} is in use by another program: choose another port")


def _has_no_fsync(version: str) -> bool:
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= (3, 5)
