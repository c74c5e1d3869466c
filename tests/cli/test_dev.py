"""``etcdsem dev``: it uses its own etcd, and no other."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from etcdsem import server
from etcdsem.errors import EtcdUnavailable
from etcdsem.server import member
from tests.cli.driver import ETCDSEM

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def dev(binary: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``etcdsem dev``, to its end."""
    return subprocess.run(
        [*ETCDSEM, "dev", *arguments],
        env={**os.environ, "ETCDSEM_ETCD": binary},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_dev_on_the_port_of_another_etcd(etcd: EtcdServer, etcd_binary: str, name: str) -> None:
    """It neither announces the other one as its own nor runs a command against it."""
    alone = dev(etcd_binary, "--port", str(etcd.port))
    said = f"port {etcd.port} is in use by another program: choose another port"
    assert (alone.returncode, alone.stdout, alone.stderr) == (69, "", f"etcdsem: {said}\n")
    write = ("sh", "-c", f"{' '.join(ETCDSEM)} run {name} -l 1 -- true")
    with_command = dev(etcd_binary, "--port", str(etcd.port), "--", *write)
    assert with_command.returncode == 69
    assert etcd.etcdctl("get", "--prefix", f"/etcdsem/{name}/") == ""


def test_dev_is_for_trying_out(etcd_binary: str) -> None:
    """It says so, and for the etcd of '[server]' why."""
    with subprocess.Popen(
        [*ETCDSEM, "dev"],
        env={**os.environ, "ETCDSEM_ETCD": etcd_binary},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        last = next(line for line in process.stderr if "etcdctl get" not in line and "try" in line)
        process.terminate()
    bundled = server.binary_version(etcd_binary) == "3.5.1"
    why = ": etcd 3.5.1 has known bugs (see: etcdsem doctor)" if bundled else ""
    assert last == f"# For trying out only{why}.\n"


def test_dev_on_the_port_of_another_program(etcd_binary: str) -> None:
    """The same, on whatever address that one listens."""
    for address in ("127.0.0.1", "0.0.0.0"):
        with socket.create_server((address, 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(EtcdUnavailable, match=f"^port {port} is in use"):
                server.start(binary=etcd_binary, port=port)


def test_another_etcd_takes_the_port_meanwhile(
    etcd: EtcdServer, etcd_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers, and is healthy, while ours has not listened yet."""
    monkeypatch.setattr(member, "_check_free", lambda port: None)
    with pytest.raises(EtcdUnavailable, match=f"^port {etcd.port} is in use"):
        server.start(binary=etcd_binary, port=etcd.port)


def test_a_slow_start_on_the_port_of_another_etcd(
    etcd: EtcdServer, tmp_path: Path, etcd_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one answers many times before ours ends."""
    monkeypatch.setattr(member, "_check_free", lambda port: None)
    slow = tmp_path / "etcd"
    slow.write_text(f'#!/bin/sh\n[ "$1" = --version ] || sleep 1\nexec {etcd_binary} "$@"\n')
    slow.chmod(0o755)
    with pytest.raises(EtcdUnavailable, match=f"^port {etcd.port} is in use"):
        server.start(binary=str(slow), port=etcd.port)


def test_restart_where_another_etcd_has_taken_the_port(etcd_binary: str) -> None:
    """A restarted member is not taken for the one that answers now."""
    with server.start(binary=etcd_binary) as ours:
        ours.kill()
        with (
            server.start(binary=etcd_binary, port=ours.port),
            pytest.raises(EtcdUnavailable, match=f"^port {ours.port} is in use"),
        ):
            ours.restart()
        ours.restart()


def test_a_free_port_that_was_taken_is_replaced(
    etcd: EtcdServer, etcd_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a port given, another one is tried."""
    genuine, given = member.free_ports, [etcd.port]

    def ports(count: int) -> list[int]:
        free = genuine(count)
        return [given.pop(), *free[1:]] if given else free

    monkeypatch.setattr(member, "free_ports", ports)
    with server.start(binary=etcd_binary) as ours:
        assert ours.port != etcd.port
    assert not given


def test_kept_data_of_an_earlier_name(etcd_binary: str, tmp_path: Path) -> None:
    """Each start has a name of its own; the data stays."""
    names = []
    for number in range(2):
        with server.start(binary=etcd_binary, data_dir=str(tmp_path / "data")) as ours:
            names.append(ours.name)
            ours.etcdctl("put", f"k{number}", "v")
            assert ours.etcdctl("get", "k0").split() == ["k0", "v"]
    assert len(set(names)) == 2
