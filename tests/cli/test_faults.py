"""What a command line meets: the cases of other tools' trackers that no other module has.

Daemons, signals to a whole group, a long pause of etcd with somebody in line, and the environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import Cli, alive, etcdctl, keys, last_beat, ran
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]

NO_FORK = """
import os, sys
fork, left = os.fork, [int(sys.argv.pop(1))]
def some():
    left[0] -= 1
    if left[0] < 0:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = some
from etcdsem.cli.main import main
main()
"""


DEAF = (
    "import os, signal, sys, time\n"
    "path = sys.argv[1]\n"
    "def term(*_):\n"
    "    with open(path + '.term', 'a') as file: file.write('%f\\n' % time.monotonic())\n"
    "signal.signal(signal.SIGTERM, term)\n"
    "first = True\n"
    "while True:\n"
    "    with open(path + '.new', 'w') as file: file.write(str(time.monotonic()))\n"
    "    os.replace(path + '.new', path)\n"
    "    if first: os.write(1, b'beating %d\\n' % os.getpid())\n"
    "    first = False\n"
    "    time.sleep(0.01)\n"
)
"""Notes each SIGTERM, and works on."""

ON = "import time; print('on', time.monotonic(), flush=True)"


# ---------------------------------------------------------------- processes


def test_a_daemon_is_not_followed(etcd: EtcdServer, name: str, start: Start) -> None:
    """The command is what ends the lease; what moved to a session of its own is on its own."""
    script = "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!; exit 6"
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script)
    daemon = int(cli.expect(r"^(\d+)$")[1])
    assert cli.end() == 6
    eventually(lambda: os.getsid(daemon) == daemon)
    assert alive(daemon)
    assert keys(etcd, name) == ["max_leases"]
    os.kill(daemon, signal.SIGKILL)


def test_a_signal_to_the_wrappers_group_reaches_the_command_once(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """As a supervisor or `kill -- -PGID` sends it; the command has a group of its own."""
    beat = tmp_path / "beat"
    cli = start(etcd, "run", name, "-l", "1", "--", sys.executable, "-c", DEAF, str(beat))
    child = int(cli.expect(r"beating (\d+)")[1])
    for expected in (1, 2):
        os.killpg(cli.pid, signal.SIGTERM)
        eventually(lambda n=expected: _terms(beat) >= n)  # type: ignore[misc]
        seen = last_beat(beat)
        eventually(lambda before=seen: last_beat(beat) > before + 0.2)  # type: ignore[misc]
        assert _terms(beat) == expected
    assert keys(etcd, name).count("leases/00000") == 1
    os.kill(child, signal.SIGKILL)
    assert cli.end() == 128 + signal.SIGKILL


def _terms(beat: Path) -> int:
    try:
        return len(Path(f"{beat}.term").read_text().splitlines())
    except FileNotFoundError:
        return 0


def test_a_signal_to_the_group_of_one_who_waits(etcd: EtcdServer, name: str, start: Start) -> None:
    """The launcher and the watchdog hear it too: all leave, and the line is left."""
    start(etcd, "hold", name, "-l", "1").expect("is held", err=True)
    waiter = start(etcd, "run", name, "--", "echo", "ran")
    waiter.expect("place 1 of 1", err=True)
    os.killpg(waiter.pid, signal.SIGINT)
    assert waiter.end(20) == 128 + signal.SIGINT
    assert waiter.rest(err=False) == ""
    assert not [key for key in keys(etcd, name) if key.startswith("waiters")]


def test_grandchildren_end_with_a_killed_wrapper(etcd: EtcdServer, name: str, start: Start) -> None:
    """Three generations in the command's group, which ignore SIGTERM and SIGHUP."""
    script = (
        "trap '' TERM HUP; echo pid $$; "
        "sh -c 'echo pid $$; sh -c \"echo pid \\$\\$; sleep 600; :\"; :'; :"
    )
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script)
    family = [int(cli.expect(r"pid (\d+)")[1]) for _ in range(3)]
    assert len(set(family)) == 3
    cli.send(signal.SIGKILL)
    cli.end()
    eventually(lambda: not any(map(alive, family)), 10)


# ---------------------------------------------------------------- the lease


@pytest.mark.smoke
def test_etcd_silent_for_too_long_ends_the_work_before_the_next_one_starts(
    fresh_etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """SIGTERM, then SIGKILL, and only then the next in line, for whom etcd comes back."""
    beat = tmp_path / "beat"
    command = (sys.executable, "-c", DEAF, str(beat))
    cli = start(fresh_etcd, "run", name, "-l", "1", "-t", "5", "--kill-after", "1", "--", *command)
    child = int(cli.expect(r"beating (\d+)")[1])
    waiter = start(fresh_etcd, "run", name, "-t", "5", "--", sys.executable, "-c", ON)
    waiter.expect("place 1 of 1", err=True)
    fresh_etcd.pause()
    silent = time.monotonic()
    cli.expect("cannot be refreshed", err=True)
    assert cli.end(20) == 70
    assert not alive(child)
    ended = last_beat(beat)
    term = float(Path(f"{beat}.term").read_text().splitlines()[0])
    assert silent < term < ended < silent + 5
    assert waiter.process.poll() is None
    fresh_etcd.resume()
    assert float(waiter.expect(r"on ([\d.]+)", seconds=60)[1]) > ended
    assert waiter.end() == 0


# ---------------------------------------------------------------- the environment


HARMLESS: list[dict[str, str]] = [
    {"ETCDSEM_ENDPOINTS": " {endpoint} ,\n"},
    {"ETCDSEM_USER": "", "ETCDCTL_USER": ""},
    {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "socks5://127.0.0.1:1", "no_proxy": ""},
    {"ETCDCTL_API": "3", "ETCDCTL_DIAL_TIMEOUT": "x", "ETCDCTL_WRITE_OUT": "json"},
    {"LANG": "tr_TR.UTF-8", "LC_ALL": "nonsense", "TZ": "nonsense"},
    {"TMPDIR": "/absent", "PWD": "/absent"},
    {"ETCDSEM_ENDPOINTS": ""},
    {"ETCDSEM_ENDPOINTS": " \n"},
    {"ETCDSEM_PREFIX": ""},
    {"ETCDSEM_LABELS": " ,"},
    {"ETCDSEM_OWNER": ""},
    {
        "http_proxy": "http://127.0.0.1:1",
        "https_proxy": "x",
        "grpc_proxy": "http://127.0.0.1:1",
    },
    {"GRPC_DNS_RESOLVER": "native", "GRPC_POLL_STRATEGY": "poll"},
    {"GRPC_ENABLE_FORK_SUPPORT": "1"},
    {"GRPC_ENABLE_FORK_SUPPORT": "nonsense", "GRPC_VERBOSITY": "none"},
    {"PYTHONHASHSEED": "0", "PYTHONOPTIMIZE": "1"},
    {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "default", "PYTHONNOUSERSITE": "1"},
    {"TERM": "", "COLUMNS": "x", "LINES": "-1"},
]


@pytest.mark.parametrize("env", sample(HARMLESS, 6), ids=lambda env: ",".join(env))
def test_an_environment_that_does_no_harm(etcd: EtcdServer, name: str, env: dict[str, str]) -> None:
    """Empty is unset; proxies, gRPC's and Python's own settings have no say."""
    given = {key: value.replace("{endpoint}", etcd.endpoint) for key, value in env.items()}
    done = ran(etcd, "run", name, "-l", "1", "--", "echo", "ran", env=given)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert keys(etcd, name) == ["max_leases"]


def test_only_what_etcdctl_uses_is_enough(etcd: EtcdServer, name: str) -> None:
    env = {"ETCDSEM_ENDPOINTS": "", "ETCDCTL_ENDPOINTS": etcd.endpoint}
    assert ran(None, "run", name, "-l", "1", "--", "true", env=env).returncode == 0
    lost = {**env, "ETCDSEM_ENDPOINTS": "127.0.0.1:1"}  # ours wins
    assert ran(None, "run", name, "-w", "1", "--", "true", env=lost).returncode == 69


def test_no_home_and_nothing_else(etcd: EtcdServer, name: str) -> None:
    """As cron or a container's init starts it: hardly any variable at all."""
    command = [sys.executable, "-m", "etcdsem", "run", name, "-l", "1", "--", "/bin/echo", "ran"]
    env = {"ETCDSEM_ENDPOINTS": etcd.endpoint}
    done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"ETCDSEM_ENDPOINTS": "http://"}, "endpoint"),
        ({"ETCDSEM_ENDPOINTS": "a:b:c:d"}, "endpoint"),
        ({"ETCDSEM_LEASE_TIMEOUT": "1e999"}, "lease_timeout"),
        ({"ETCDSEM_LEASE_TIMEOUT": "٣"}, "lease_timeout"),
        ({"ETCDSEM_LEASE_TIMEOUT": "nan"}, "lease_timeout"),
        ({"ETCDSEM_REFRESH_INTERVAL": "0"}, "refresh_interval"),
        ({"ETCDSEM_LABELS": "novalue"}, "ETCDSEM_LABELS"),
        ({"ETCDSEM_CACERT": "."}, "directory"),
        ({"ETCDSEM_CACERT": "relative.pem"}, "relative.pem"),
        ({"ETCDSEM_CERT": "/dev/null"}, "go together"),
        ({"ETCDCTL_CACERT": "/absent"}, "ETCDCTL_CACERT"),
        ({"ETCDSEM_USER": "u", "ETCDSEM_PASSWORD_FILE": "/absent"}, "ETCDSEM_PASSWORD_FILE"),
        ({"ETCDSEM_OWNER": "a\nb"}, "owner"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_an_environment_that_cannot_be(env: dict[str, str], says: str) -> None:
    """64 and one line that names it, for every command that looks at it."""
    for command in (["run", "n", "-l", "1", "--", "true"], ["hold", "n", "-l", "1"]):
        done = ran(None, *command, env=env)
        assert (done.returncode, done.stdout) == (64, ""), done.stderr
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_relative_certificate_is_read_from_where_we_are(
    etcd: EtcdServer, name: str, tmp_path: Path
) -> None:
    """It is found before anything changes folders; what it holds is then looked at."""
    (tmp_path / "ca.pem").write_text("no certificate")
    done = subprocess.run(
        [sys.executable, "-m", "etcdsem", "ls"],
        env={**os.environ, "ETCDSEM_CACERT": "ca.pem"},
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 64
    assert b"contains no PEM certificate" in done.stderr


def test_passwords_with_colons_and_spaces(fresh_etcd: EtcdServer, name: str) -> None:
    """By every way in; none of them shows in an argument list."""
    password = "a:b c:"
    for line in (("user", "add", f"root:{password}"), ("user", "grant-role", "root", "root"),
                 ("auth", "enable")):  # fmt: skip
        etcdctl(fresh_etcd, *line)
    for env in (
        {"ETCDSEM_USER": "root", "ETCDSEM_PASSWORD": password},
        {"ETCDCTL_USER": f"root:{password}"},
        {"ETCDCTL_USER": "root", "ETCDCTL_PASSWORD": password},
    ):
        script = "tr '\\0' ' ' < /proc/$PPID/cmdline"
        done = ran(fresh_etcd, "run", name, "-l", "1", "--", "sh", "-c", script, env=env)
        assert done.returncode == 0, done.stderr
        assert password not in done.stdout


JSON_COMMANDS = (
    "ls", "status n", "status n --watch", "limit n", "limit n 3", "evict n --slot 0", "close n",
    "top", "hold n", "bench",
)  # fmt: skip


def test_json_prints_nothing_on_errors(etcd: EtcdServer, start: Start) -> None:
    """Standard output stays empty: a program reads the code, and a person the one line.

    All at once, since each waits for the time that a first contact may take.
    """
    away = ("--endpoints", "127.0.0.1:1")
    running = [start(etcd, *away, *line.split(), "--json") for line in JSON_COMMANDS]
    for command in running:
        assert command.end(60) == 69
        assert command.rest(err=False) == ""
        assert command.rest().startswith("etcdsem: ")


@pytest.mark.parametrize("forks", [0, 1])
def test_no_process_can_be_started(etcd: EtcdServer, name: str, forks: int) -> None:
    """At a limit of processes: one line that says so, code 69, and nothing is registered."""
    done = subprocess.run(
        [sys.executable, "-c", NO_FORK, str(forks), "run", name, "-l", "1", "--", "true"],
        env={**os.environ, **etcd.env()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 69
    said = "cannot start a process for true: Resource temporarily unavailable. Raise the limit on "
    assert done.stderr.startswith(f"etcdsem: {said}")
    assert done.stderr.count("\n") == 1
    assert keys(etcd, name) == []


def test_credentials_in_the_environment_of_the_command(
    fresh_etcd: EtcdServer, name: str, tmp_path: Path
) -> None:
    """The command inherits them, unless --drop-credentials removes them; etcdsem still has them."""
    for line in (("user", "add", "root:s3cret"), ("user", "grant-role", "root", "root"),
                 ("auth", "enable")):  # fmt: skip
        etcdctl(fresh_etcd, *line)
    (tmp_path / "secret").write_text("s3cret")
    (tmp_path / "secret").chmod(0o600)
    env = {
        "ETCDSEM_USER": "root",
        "ETCDSEM_PASSWORD": "s3cret",
        "ETCDSEM_PASSWORD_FILE": str(tmp_path / "secret"),
        "ETCDCTL_USER": "root:s3cret",
        "ETCDCTL_PASSWORD": "s3cret",
    }
    run = ("run", name, "-l", "1", "--", "env")
    kept = ran(fresh_etcd, *run, env=env).stdout.splitlines()
    assert {f"{key}={value}" for key, value in env.items()} <= set(kept)
    dropped = ran(fresh_etcd, *run[:2], "--drop-credentials", *run[2:], env=env)
    assert dropped.returncode == 0, dropped.stderr
    assert "s3cret" not in dropped.stdout
    assert "ETCDSEM_ENDPOINTS=" in dropped.stdout
    assert not [line for line in dropped.stdout.splitlines() if line.partition("=")[0] in env]


def test_a_password_file_that_others_can_read(etcd: EtcdServer, name: str, tmp_path: Path) -> None:
    """One line on stderr; the command runs."""
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    given = ("--user", "root", "--password-file", str(secret))
    for mode, warnings in ((0o600, 0), (0o644, 1)):
        secret.chmod(mode)
        done = ran(etcd, "run", name, "-l", "1", *given, "--", "true")
        assert done.returncode == 0
        said = [line for line in done.stderr.splitlines() if "all users of this machine" in line]
        assert len(said) == warnings
        assert all(line.startswith("etcdsem: the password file: ") for line in said)
