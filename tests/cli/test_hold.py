"""``etcdsem hold``: a lease for those who cannot be wrapped; the ready file and the port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
import etcdsem.testing
from etcdsem import Semaphore
from etcdsem.cli.run.hold import _Holding, _Plan
from etcdsem.cli.run.ready_file import ReadyFile, ready_data
from etcdsem.cli.run.supervisor import slack
from etcdsem.errors import InvalidSetting
from tests.cli.driver import Cli, etcdctl, keys, ran, ran_here
from tests.cli.test_request import request
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]

FACTS = [
    "name", "slot", "slots", "limit", "fencing_token", "lease", "acquired_at", "ttl", "pid",
    "boot_id", "good_until",
]  # fmt: skip


def probe(port: int, path: str = "/readyz", *, host: str = "127.0.0.1") -> tuple[int, Any]:
    """What a probe gets."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def port_of(holder: Cli) -> int:
    """Where it says that it answers."""
    return int(holder.expect(r"on port (\d+)", err=True)[1])


def held(path: Path) -> bool:
    """What the exec probe says, without any etcd to ask."""
    done = ran(None, "hold", "--check", str(path))
    assert done.returncode in (0, 1)
    assert done.stdout == ""
    assert bool(done.stderr) == bool(done.returncode)
    return done.returncode == 0


@pytest.mark.smoke
def test_ready_while_held_and_no_longer(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """The file and the port tell the lease; SIGTERM gives it back at once, and is no error."""
    path = tmp_path / "ready"
    holder = start(
        etcd, "hold", name, "-l", "2", "--ready-file", str(path), "--ready-port", "0", "--label",
        "pod=p", "--json",
    )  # fmt: skip
    port = port_of(holder)
    told = json.loads(holder.expect(r"\{.*\}")[0])
    assert list(told) == FACTS
    assert path.read_text().count("\n") == 1
    written = json.loads(path.read_text())
    assert {**written, "good_until": 0} == {**told, "good_until": 0}
    status = json.loads(ran(etcd, "status", name, "--json").stdout)["holders"][0]
    assert (told["slot"], told["lease"]) == (status["slot"], status["lease"])
    assert told["fencing_token"] == status["fencing_token"]
    assert (told["name"], told["limit"], told["pid"]) == (name, 2, holder.pid)
    assert status["labels"] == {"pod": "p"}
    code, body = probe(port)
    assert (code, body["lease"]) == (200, told["lease"])
    assert probe(port, "/livez") == (200, {"held": True})
    assert probe(port, "/other")[0] == 404
    assert held(path)
    holder.send(signal.SIGTERM)
    assert holder.end(10) == 0
    assert not path.exists()
    assert keys(etcd, name) == ["max_leases"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", sample([signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]))
def test_each_stop_is_a_clean_end(etcd: EtcdServer, name: str, start: Start, number: int) -> None:
    holder = start(etcd, "hold", name, "-l", "1")
    holder.expect("slot 0 of 1 is held", err=True)
    holder.send(signal.SIGUSR1)  # says nothing to it
    holder.send(number)
    assert holder.end(10) == 0
    assert "releasing the lease" in holder.rest()
    assert keys(etcd, name) == ["max_leases"]


def test_the_ready_file_of_run(etcd: EtcdServer, name: str, start: Start, tmp_path: Path) -> None:
    """It is there before the command starts, and not while it waits, or after its end."""
    path, later = tmp_path / "ready", tmp_path / "later"
    script = ("sh", "-c", f"cat {path}; read line")
    stdin, tell = os.pipe()
    with open(stdin, "rb") as given:
        line = ("run", name, "-l", "1", "-t", "4", "--kill-after", "1", "--ready-file", str(path))
        first = start(etcd, *line, "--", *script, stdin=given)
    told = json.loads(first.expect(r"\{.*\}")[0])
    assert list(told) == FACTS
    assert (told["name"], told["slot"], told["pid"]) == (name, 0, first.pid)
    assert held(path)
    second = start(etcd, "run", f"{name}", "--ready-file", str(later), "--", "cat", str(later))
    second.expect("place 1 of 1", err=True)
    assert not held(later)
    eventually(lambda: json.loads(path.read_text())["good_until"] > told["good_until"])
    os.write(tell, b"\n")
    os.close(tell)
    assert first.end() == 0
    assert json.loads(second.expect(r"\{.*\}")[0])["name"] == name
    assert second.end() == 0
    assert os.listdir(tmp_path) == []


def test_the_ready_file_of_run_ends_with_the_lease(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """Lost: it goes before the command does. Several leases: it describes the first."""
    path = tmp_path / "ready"
    script = ("sh", "-c", f"trap '' TERM; echo on; until test ! -e {path}; do :; done; echo gone")
    several = (name, f"{name}-b", "--ready-file", str(path))
    run = start(etcd, "run", f"{several[0]}=1", f"{several[1]}=1", *several[2:], "--", *script)
    run.expect("^on$")
    assert json.loads(path.read_text())["name"] == name
    assert ran(etcd, "evict", f"{name}-b", "--slot", "0").returncode == 0
    run.expect("^gone$")
    assert run.end() == 70
    assert (
        "--ready-file"
        in ran_here(
            etcd, "run", name, "--rate", "5/1m", "--ready-file", str(path), "--", "true"
        ).stderr
    )


def test_not_ready_while_it_waits(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """503, no file, and what an earlier holder left there is taken away; then it is granted."""
    path = tmp_path / "ready"
    first = start(etcd, "hold", name, "-l", "1")
    first.expect("is held", err=True)
    path.write_text('{"left": "by somebody who was killed"}\n')
    second = start(etcd, "hold", name, "--ready-file", str(path), "--ready-port", "127.0.0.1:0")
    port = port_of(second)
    second.expect("place 1 of 1", err=True)
    assert not path.exists()
    assert not held(path)
    assert probe(port) == (503, {"held": False})
    assert probe(port, "/livez") == (200, {"held": False})
    first.send(signal.SIGTERM)
    second.expect("slot 0 of 1 is held", err=True)
    assert path.exists()
    assert probe(port)[0] == 200


def test_stopped_while_it_waits_is_128_and_the_signal(
    etcd: EtcdServer, name: str, start: Start
) -> None:
    first = start(etcd, "hold", name, "-l", "1")
    first.expect("is held", err=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        second = start(etcd, "hold", name)
        second.expect("place 1 of 1", err=True)
        second.send(number)
        assert second.end(10) == 128 + number
        assert not any(key.startswith("waiters/") for key in keys(etcd, name))


def test_gave_up_is_75_or_what_was_chosen(etcd: EtcdServer, name: str, start: Start) -> None:
    first = start(etcd, "hold", name, "-l", "1")
    first.expect("is held", err=True)
    assert ran(etcd, "hold", name, "-n").returncode == 75
    assert ran(etcd, "hold", name, "-w", "2s", "-E", "3").returncode == 3
    assert ran(etcd, "hold", name, "-l", "2").returncode == 78


@pytest.mark.parametrize("by", sample(["evict", "revoke", "close"]))
def test_lost_is_70_and_not_ready(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path, by: str
) -> None:
    path = tmp_path / "ready"
    holder = start(etcd, "hold", name, "-l", "1", "--ready-file", str(path))
    lease = holder.expect(r"lease (\w+)\)", err=True)[1]
    if by == "revoke":
        etcdctl(etcd, "lease", "revoke", lease)
    else:
        ran(etcd, by, name, *(["--slot", "0"] if by == "evict" else ["--force"]))
    assert holder.end(10) == 70
    assert "was lost: " in holder.rest()
    assert not path.exists()


def test_warn_stays_and_is_never_ready_again(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """A sidecar that would be started again must not be ready for a main container that ran on."""
    path = tmp_path / "ready"
    holder = start(
        etcd, "hold", name, "-l", "1", "--on-lost", "warn", "--ready-file", str(path),
        "--ready-port", "0",
    )  # fmt: skip
    port = port_of(holder)
    holder.expect("is held", err=True)
    ran(etcd, "evict", name, "--slot", "0")
    holder.expect("WARNING", err=True, seconds=10)
    assert not path.exists()
    assert probe(port) == (503, {"held": False})
    assert probe(port, "/livez") == (200, {"held": False})
    holder.send(signal.SIGTERM)
    assert holder.end(10) == 70


def test_a_probe_is_answered_by_the_clock() -> None:
    """Not ready --notice before the lease could end, also while the main thread is busy and has
    not taken "ready" back.
    """
    nobody: Any = None
    plan = _Plan(
        request("30s"), on_lost="terminate", notice=5.0, file=None, port=None, as_json=False
    )
    holding = _Holding(plan, nobody, nobody)
    with etcdsem.testing.memory() as etcd:
        sem = etcdsem.Semaphore(1, "db", client=etcd.client(), lease_timeout=30)
        assert sem.acquire()
        (lease,) = sem.leases
        holding._lease = lease
        assert holding._reported() is None, "not announced yet"
        holding._ready = True
        told = holding._reported()
        assert told is not None
        assert told["lease"] == lease.id
        etcd.cut()  # nothing is renewed any more
        etcd.suspend(lease.remaining - plan.notice - slack(30.0))
        assert lease.valid
        assert holding._reported() is None
        etcd.suspend(60)
        assert not lease.valid
        assert holding._reported() is None


def test_lost_with_notice_when_etcd_is_silent(
    fresh_etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """Not ready `--notice` before the lease could end, by the clock alone."""
    path = tmp_path / "ready"
    holder = start(
        fresh_etcd, "hold", name, "-l", "1", "-t", "6s", "--notice", "2s", "--ready-file",
        str(path),
    )  # fmt: skip
    holder.expect("is held", err=True)
    before = json.loads(path.read_text())["good_until"]
    eventually(lambda: json.loads(path.read_text())["good_until"] > before)  # it was renewed
    fresh_etcd.pause()
    told = time.clock_gettime(time.CLOCK_BOOTTIME)
    said = holder.expect(r"ends in ([0-9.]+)s", err=True)
    assert 1.0 < float(said[1]) <= 2.5
    assert time.clock_gettime(time.CLOCK_BOOTTIME) - told < 6 - 2 + 1
    assert holder.end(10) == 70
    assert not path.exists()
    fresh_etcd.resume()


def test_killed_its_file_goes_stale(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """SIGKILL and SIGSTOP leave the file; --check believes it no longer than the lease lasts."""
    paths = [tmp_path / "killed", tmp_path / "stopped"]
    for path, number in zip(paths, (signal.SIGKILL, signal.SIGSTOP), strict=True):
        one = f"{name}-{number:d}"
        holder = start(
            etcd, "hold", one, "-l", "1", "-t", "3s", "--ready-file", str(path), "--notice", "0"
        )
        holder.expect("is held", err=True)
        assert held(path)
        holder.send(number)
    for path in paths:
        eventually(lambda path=path: not held(path))  # type: ignore[misc]
        assert path.exists()


def test_check_of_what_is_no_ready_file(tmp_path: Path) -> None:
    """1 and one line, whatever lies there."""
    path = tmp_path / "ready"
    assert not held(path)
    assert not held(tmp_path)
    for text in ("", "{}", "[]", "no json", '{"good_until": null, "boot_id": ""}', "\x80", "1"):
        path.write_bytes(text.encode("latin-1"))
        assert not held(path)
    path.write_text(json.dumps({"good_until": 1e12, "boot_id": "another start"}))
    assert not held(path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ready-port", "x"], "ready-port"),
        (["--ready-port", "65536"], "ready-port"),
        (["--ready-port", "host:"], "ready-port"),
        (["--ready-file", "/no/such/folder/ready"], "No such file"),
        (["--ready-file", "/"], "ready-file"),
        (["--notice", "30s"], "--notice"),
        (["--notice", "-1"], "--notice"),
        (["--on-lost", "stay"], "stay"),
        (["-n", "-w", "1"], "--wait"),
        (["--label", "x"], "KEY=VALUE"),
        (["extra"], "extra"),
    ],
)
def test_usage_errors(arguments: list[str], says: str) -> None:
    """64 and one line, before etcd is asked for anything."""
    run = ran if arguments[0].startswith("--ready") else ran_here
    done = run(None, "hold", "n", "--endpoints", "127.0.0.1:1", *arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_64(etcd: EtcdServer, name: str, start: Start) -> None:
    first = start(etcd, "hold", name, "-l", "2", "--ready-port", "0")
    done = ran(etcd, "hold", name, "--ready-port", str(port_of(first)))
    assert done.returncode == 64
    assert "in use" in done.stderr


def test_a_file_that_cannot_be_written_any_more_is_1(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """Its folder went away while it waited: the lease is given back, nobody believes in it."""
    folder = tmp_path / "run"
    folder.mkdir()
    first = start(etcd, "hold", name, "-l", "1")
    first.expect("is held", err=True)
    second = start(etcd, "hold", name, "--ready-file", str(folder / "ready"))
    second.expect("place 1 of 1", err=True)
    folder.rmdir()
    first.send(signal.SIGTERM)
    assert second.end(20) == 1
    assert re.search("cannot write --ready-file", second.rest())
    assert keys(etcd, name) == ["max_leases"]


def test_a_planted_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etcd: EtcdServer, name: str
) -> None:
    """The temporary file has a name that nobody knows, and must not exist."""
    victim, path = tmp_path / "victim", tmp_path / "ready"
    victim.write_text("precious")
    with (
        etcdsem.connect(etcd.endpoint) as client,
        Semaphore(1, name, client=client).hold() as lease,
    ):
        os.symlink(victim, f"{path}.{os.getpid()}.tmp")
        ready = ReadyFile(str(path))
        assert ready.show(ready_data(lease, 9.0))
        assert not path.is_symlink()
        monkeypatch.setattr(os, "urandom", lambda size: bytes(size))
        os.symlink(victim, f"{path}.{bytes(8).hex()}.tmp")
        assert not ready.show(ready_data(lease, 9.0))
        with pytest.raises(InvalidSetting, match="exists"):
            ReadyFile(str(path))
    assert victim.read_text() == "precious"


def test_a_prober_that_says_nothing_blocks_nobody(
    etcd: EtcdServer, name: str, start: Start
) -> None:
    import socket

    holder = start(etcd, "hold", name, "-l", "1", "--ready-port", "0")
    port = port_of(holder)
    holder.expect("is held", err=True)
    with socket.create_connection(("127.0.0.1", port)):
        assert probe(port)[0] == 200
        holder.send(signal.SIGTERM)
        assert holder.end(10) == 0


def test_as_pid_1(etcd: EtcdServer, name: str, start: Start) -> None:
    """In a container: SIGTERM is heard, and ends it cleanly."""
    pid_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*pid_1, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a PID namespace")
    holder = start(etcd, "hold", name, "-l", "1", before=pid_1)
    holder.expect("is held", err=True)
    inner = int(subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(holder.pid)]))
    os.kill(inner, signal.SIGTERM)
    assert holder.end(10) == 0
    assert keys(etcd, name) == ["max_leases"]


@pytest.mark.parametrize("command", ["hold", "check"])
def test_kill_pod_is_refused_outside_of_a_pod(name: str, command: str) -> None:
    """Process 1 of this machine or container is not a pod's, and we would kill who knows what."""
    done = ran_here(None, command, name, "-l", "1", "--on-lost", "kill-pod")
    assert done.returncode == 64
    assert "shareProcessNamespace" in done.stderr
