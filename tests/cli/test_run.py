"""``etcdsem run``: arguments, environment, exit codes, streams, waiting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import Cli, etcdctl, keys, ran, ran_here
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]

HOLD = ("sh", "-c", "echo held $$; read x")


# ---------------------------------------------------------------- the command and its code


@pytest.mark.smoke
def test_the_commands_code_is_passed_on(etcd: EtcdServer, name: str) -> None:
    """Whatever the command ends with is what etcdsem ends with, and nothing is left in etcd."""
    for code in (0, 1, 7, 64, 70, 75, 255):
        done = ran(etcd, "run", name, "-l", "2", "--", "sh", "-c", f"exit {code}")
        assert (done.returncode, done.stderr) == (code, "")
    assert keys(etcd, name) == ["max_leases"]


def test_a_signal_that_ended_the_command_is_128_and_its_number(etcd: EtcdServer, name: str) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGPIPE):
        done = ran(etcd, "run", name, "-l", "1", "--", "sh", "-c", f"kill -{number:d} $$")
        assert done.returncode == 128 + number


def test_the_environment_of_the_command(etcd: EtcdServer, name: str) -> None:
    """It gets ours, and what it needs to know about its lease."""
    script = "env; etcdctl() { :; }; exit 0"
    done = ran(etcd, "run", name, "-l", "3", "--", "sh", "-c", script, env={"MINE": "a b\tc"})
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert found["MINE"] == "a b\tc"
    assert found["ETCDSEM_NAME"] == name
    assert found["ETCDSEM_LIMIT"] == "3"
    assert found["ETCDSEM_SLOT"] in ("0", "1", "2")
    assert int(found["ETCDSEM_FENCING_TOKEN"]) > 0
    assert int(found["ETCDSEM_LEASE_ID"], 16) > 0


def test_token_and_lease_are_etcds(etcd: EtcdServer, name: str, start: Start) -> None:
    """The token is the slot key's revision, the lease the one that etcdctl lists."""
    script = "echo $ETCDSEM_SLOT $ETCDSEM_FENCING_TOKEN $ETCDSEM_LEASE_ID; read x"
    held = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    slot, token, lease = held.expect(r"(\d+) (\d+) (\w+)").groups()
    shown = etcdctl(etcd, "get", "-w", "fields", f"/etcdsem/{name}/leases/{int(slot):05}")
    assert f'"ModRevision" : {token}' in shown
    assert lease in etcdctl(etcd, "lease", "list")


@pytest.mark.parametrize(
    "arguments",
    sample(
        [
            ["NAME", "-l", "2", "--", "printf", "%s,", "-l", "--", "-x", "--json"],
            ["-l", "2", "NAME", "printf", "%s,", "-l", "--", "-x", "--json"],
            ["-l2", "-q", "--", "NAME", "printf", "%s,", "-l", "--", "-x", "--json"],
            ["-ql", "2", "NAME", "--label=a=b", "--", "printf", "%s,", "-l", "--", "-x", "--json"],
            ["--limit", "2", "NAME", "-w", "1m", "printf", "%s,", "-l", "--", "-x", "--json"],
        ],
        2,
    ),
)
def test_the_commands_own_flags_are_never_ours(
    etcd: EtcdServer, name: str, arguments: list[str]
) -> None:
    done = ran(etcd, "run", *(name if word == "NAME" else word for word in arguments))
    assert (done.returncode, done.stdout) == (0, "-l,--,-x,--json,"), done.stderr


def test_the_commands_signals_are_as_ours_were(etcd: EtcdServer, name: str) -> None:
    """What Python ignores for itself (SIGPIPE), or blocks, is none of the command's business."""
    look = ("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status")
    plain = subprocess.run(look, capture_output=True, text=True, check=True).stdout
    assert ran(etcd, "run", name, "-l", "1", "--", *look).stdout == plain


def test_a_huge_command_line(etcd: EtcdServer, name: str) -> None:
    words = ["x" * 1000] * 900
    done = ran(etcd, "run", name, "-l", "1", "--", "sh", "-c", "echo $#", "sh", *words)
    assert done.stdout == "900\n"


def test_bytes_that_are_no_text_pass_through(etcd: EtcdServer, name: str) -> None:
    odd = os.fsdecode(b"caf\xe9 \xff")
    for env in ({}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}):
        done = ran(etcd, "run", name, "-l", "1", "--", "sh", "-c", "printf %s \"$1\" | od -An -tx1",
                   "sh", odd, env=env)  # fmt: skip
        assert done.stdout.split() == ["63", "61", "66", "e9", "20", "ff"], done.stderr


def test_what_cannot_be_run(etcd: EtcdServer, name: str, tmp_path: Path) -> None:
    """126 and 127 come before anything is asked of etcd."""
    text = tmp_path / "text"
    text.write_text("hello")
    for command, code in (
        ("no-such-command", 127),
        (str(tmp_path / "absent"), 127),
        (str(text), 126),
        (str(tmp_path), 126),
        ("", 127),
    ):
        done = ran(None, "run", "--endpoints", "127.0.0.1:1", name, "-l", "1", "--", command)
        assert done.returncode == code
        assert done.stderr.startswith("etcdsem: cannot run")
        assert done.stderr.count("\n") == 1


def test_what_turns_out_not_to_run(etcd: EtcdServer, name: str, tmp_path: Path) -> None:
    """Found out only by exec: the same codes, and the lease is given back."""
    script = tmp_path / "script"
    for text, code in (("#!/no/such/interpreter\n", 127), ("no first line\n", 126)):
        script.write_text(text)
        script.chmod(0o755)
        done = ran(etcd, "run", name, "-l", "1", "--", str(script))
        assert done.returncode == code
        assert done.stderr.count("\n") == 1
        assert keys(etcd, name) == ["max_leases"]


# ---------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "NAME"),
        (["n"], "no command given"),
        (["n", "--"], "no command given"),
        (["n", "-x", "--", "true"], "-x"),
        (["n", "-l", "0", "--", "true"], "-l must be"),
        (["n", "-l", "many", "--", "true"], "many"),
        (["n", "-n", "-w", "3", "--", "true"], "--wait"),
        (["n", "-w", "-1", "--", "true"], "negative"),
        (["n", "-w", "soon", "--", "true"], "soon"),
        (["n", "-t", "1", "--", "true"], "-t must be from 2s"),
        (["n", "-E", "256", "--", "true"], "255"),
        (["n", "-t", "6", "--kill-after", "4", "--", "true"], "is too long for"),
        (["n", "--kill-after", "nan", "--", "true"], "nan"),
        (["n", "--on-lost", "pray", "--", "true"], "terminate"),
        (["n", "--label", "novalue", "--", "true"], "KEY=VALUE"),
        (["n", "--label", "k=\x1b[2J", "--", "true"], "printable"),
        (["a/b", "-l", "1", "--", "true"], "invalid semaphore name"),
        (["", "-l", "1", "--", "true"], "invalid semaphore name"),
        (["n", "--user", "root:secret", "--", "true"], "--password-file"),
        (["n", "--user", "root", "--password-file", "/absent", "--", "true"], "/absent"),
        (["n", "--endpoints", "ftp://x", "--", "true"], "ftp"),
        (["n", "--endpoints", "", "--", "true"], "endpoint"),
        (["n", "--cacert", "/absent", "--", "true"], "/absent"),
        (["n", "--prefix", "no-slash", "--", "true"], "prefix"),
    ],
)
def test_usage_errors(arguments: list[str], says: str) -> None:
    """64, one line that says what is wrong, and neither etcd nor the command is touched."""
    done = ran_here(None, "run", *arguments)
    assert done.returncode == 64, done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("etcdsem: ")
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("ETCDSEM_LEASE_TIMEOUT", "soon", 64),
        ("ETCDSEM_LEASE_TIMEOUT", "1", 64),
        ("ETCDSEM_LEASE_TIMEOUT", " 20s\n", 0),
        pytest.param("ETCDSEM_LEASE_TIMEOUT", "", 0, marks=pytest.mark.slow),
        ("ETCDSEM_REFRESH_INTERVAL", "40s", 64),
        ("ETCDSEM_REFRESH_INTERVAL", "29s", 64),
        ("ETCDSEM_VALIDATION_INTERVAL", "0", 64),
        pytest.param("ETCDSEM_VALIDATION_INTERVAL", "inf", 64, marks=pytest.mark.slow),
        pytest.param("ETCDSEM_VALIDATION_INTERVAL", "often", 64, marks=pytest.mark.slow),
        ("ETCDSEM_CACERT", "/absent", 64),
        ("ETCDSEM_PREFIX", "x", 64),
        pytest.param("http_proxy", "http://127.0.0.1:1", 0, marks=pytest.mark.slow),
        ("ETCDCTL_API", "2", 0),
        ("HOME", "", 0),
        pytest.param("PYTHONOPTIMIZE", "2", 0, marks=pytest.mark.slow),
        pytest.param("LC_ALL", "C", 0, marks=pytest.mark.slow),
    ],
)
def test_settings_from_the_environment(
    etcd: EtcdServer, name: str, variable: str, value: str, code: int
) -> None:
    kill_after = ("--kill-after", "5") if value == "29s" else ()
    early = code and variable != "ETCDSEM_VALIDATION_INTERVAL"  # before a process is started
    run = ran_here if early else ran
    done = run(etcd, "run", name, "-l", "1", *kill_after, "--", "true", env={variable: value})
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)


# ---------------------------------------------------------------- etcd says no


def test_another_limit_is_78(etcd: EtcdServer, name: str) -> None:
    assert ran(etcd, "run", name, "-l", "2", "--", "true").returncode == 0
    done = ran(etcd, "run", name, "-l", "3", "--", "true")
    assert done.returncode == 78
    assert "2" in done.stderr
    assert "3" in done.stderr


def test_an_operators_limit_is_obeyed(etcd: EtcdServer, name: str) -> None:
    """After a live resize programs that still carry the old number go on."""
    assert ran(etcd, "run", name, "-l", "2", "--", "true").returncode == 0
    assert ran(etcd, "limit", name, "5").stdout == f"{name}: 2 -> 5\n"
    done = ran(etcd, "run", name, "-l", "2", "--", "sh", "-c", "echo $ETCDSEM_LIMIT")
    assert (done.returncode, done.stdout) == (0, "5\n")


def test_not_registered_is_78(etcd: EtcdServer, name: str) -> None:
    done = ran(etcd, "run", name, "--", "true")
    assert done.returncode == 78
    assert "--limit" in done.stderr
    assert keys(etcd, name) == []


def test_credentials_that_are_refused_are_77(
    fresh_etcd: EtcdServer, name: str, tmp_path: Path
) -> None:
    """None, wrong ones, and right ones without the right to the key; the right ones work."""
    for line in ("user add root:right", "user grant-role root root", "user add guest:guest",
                 "auth enable"):  # fmt: skip
        etcdctl(fresh_etcd, *line.split())
    root, guest, wrong = (tmp_path / file for file in ("root", "guest", "wrong"))
    root.write_text("right\n")
    guest.write_text("guest")
    wrong.write_text("wrong")
    for file in (root, guest, wrong):
        file.chmod(0o600)
    for login, code in (
        ((), 77),
        (("--user", "root", "--password-file", str(wrong)), 77),
        (("--user", "guest", "--password-file", str(guest)), 77),
        (("--user", "root", "--password-file", str(root)), 0),
    ):
        done = ran(fresh_etcd, "run", *login, name, "-l", "1", "--", "true")
        assert done.returncode == code, (login, done.stderr)
        assert done.stderr.count("\n") == (1 if code else 0)


def test_unreachable_is_69_within_the_wait(name: str) -> None:
    """Also if it is shorter than the time for a first contact; and it is not 75."""
    began = time.monotonic()
    done = ran(None, "run", "--endpoints", "127.0.0.1:1", name, "-l", "1", "-w", "1s", "--", "true")
    assert done.returncode == 69
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_unreachable_is_69_in_bounded_time(name: str) -> None:
    began = time.monotonic()
    done = ran(None, "run", "--endpoints", "127.0.0.1:1", name, "-l", "1", "--", "true")
    assert done.returncode == 69
    assert time.monotonic() - began < 15


def test_silent_etcd_is_69_in_bounded_time(fresh_etcd: EtcdServer, name: str) -> None:
    """It takes the connection, and says nothing."""
    fresh_etcd.pause()
    began = time.monotonic()
    done = ran(fresh_etcd, "run", name, "-l", "1", "-w", "3s", "--", "true")
    assert done.returncode == 69, done.stderr
    assert time.monotonic() - began < 10


# ---------------------------------------------------------------- waiting


@pytest.fixture
def full(etcd: EtcdServer, name: str, start: Start) -> Cli:
    """The only slot of `name` is held; `end_holder` ends that."""
    holder = start(etcd, "run", name, "-l", "1", "--", *HOLD, stdin=subprocess.PIPE)
    holder.expect("held")
    return holder


def end_holder(holder: Cli) -> None:
    """Let the holder's command end."""
    assert holder.process.stdin is not None
    holder.process.stdin.close()


@pytest.mark.usefixtures("full")
def test_nonblock_is_75(etcd: EtcdServer, name: str) -> None:
    done = ran(etcd, "run", "-n", name, "--", "true")
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1
    assert name in done.stderr


@pytest.mark.usefixtures("full")
def test_the_conflict_code_can_be_chosen(etcd: EtcdServer, name: str) -> None:
    for code in (0, 1, 255):
        done = ran(etcd, "run", "-n", "-E", str(code), name, "--", "echo", "ran")
        assert (done.returncode, done.stdout) == (code, "")


@pytest.mark.usefixtures("full")
def test_wait_gives_up(etcd: EtcdServer, name: str) -> None:
    began = time.monotonic()
    done = ran(etcd, "run", "-w", "3s", name, "--", "true")
    assert done.returncode == 75
    assert 3 <= time.monotonic() - began < 20
    assert [key for key in keys(etcd, name) if key.startswith("waiters")] == []


def test_whoever_waits_gets_the_slot(etcd: EtcdServer, name: str, full: Cli, start: Start) -> None:
    """A log line tells the place in line; then the command runs."""
    waiter = start(etcd, "run", name, "--", "echo", "my turn")
    waiter.expect(rf"waiting for {name}: place 1 of 1 in the queue, 1 of 1 held", err=True)
    end_holder(full)
    waiter.expect("my turn")
    assert waiter.end() == 0
    assert full.end() == 1  # read met EOF


def test_quiet_waits_silently(etcd: EtcdServer, name: str, full: Cli, start: Start) -> None:
    waiter = start(etcd, "run", "-q", name, "--", "true")
    eventually(lambda: any(key.startswith("waiters") for key in keys(etcd, name)))
    end_holder(full)
    assert waiter.end() == 0
    assert waiter.rest() == ""


@pytest.mark.parametrize(
    "number", sample([signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], 2)
)
@pytest.mark.usefixtures("full")
def test_a_signal_leaves_the_line_at_once(
    etcd: EtcdServer, name: str, start: Start, number: signal.Signals
) -> None:
    waiter = start(etcd, "run", name, "--", "echo", "ran")
    waiter.expect("place 1 of 1", err=True)
    waiter.send(number)
    assert waiter.end(5) == 128 + number
    assert [key for key in keys(etcd, name) if key.startswith("waiters")] == []
    assert number.name in waiter.rest()
    assert waiter.rest(err=False) == ""


@pytest.mark.usefixtures("full")
def test_two_signals_in_a_row_leave_the_line_cleanly(
    etcd: EtcdServer, name: str, start: Start
) -> None:
    waiter = start(etcd, "run", name, "--", "true")
    waiter.expect("place 1 of 1", err=True)
    waiter.send(signal.SIGINT)
    waiter.send(signal.SIGTERM)
    waiter.send(signal.SIGINT)
    assert waiter.end(5) in (130, 143)
    assert "Traceback" not in waiter.rest()
    assert [key for key in keys(etcd, name) if key.startswith("waiters")] == []


def test_an_ignored_signal_stays_ignored(
    etcd: EtcdServer, name: str, full: Cli, start: Start
) -> None:
    """Under nohup neither we nor the command hear HUP."""
    script = "kill -HUP $$; echo survived"
    waiter = start(etcd, "run", name, "--", "sh", "-c", script, before=["nohup"])
    waiter.expect("place 1 of 1", err=True)
    waiter.send(signal.SIGHUP)
    end_holder(full)
    waiter.expect("survived")
    assert waiter.end() == 0


def test_closed_while_waiting_is_78(etcd: EtcdServer, name: str, full: Cli, start: Start) -> None:
    waiter = start(etcd, "run", name, "--", "echo", "ran")
    waiter.expect("place 1 of 1", err=True)
    assert ran(etcd, "close", name, "--force").returncode == 0
    assert waiter.end(10) == 78
    assert full.end() == 70


# ---------------------------------------------------------------- streams


def test_stdin_is_the_commands(etcd: EtcdServer, name: str) -> None:
    data = os.urandom(300_000)
    done = subprocess.run(
        [sys.executable, "-m", "etcdsem", "run", name, "-l", "1", "--", "cat"],
        env={**os.environ, **etcd.env()},
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == data
    assert done.returncode == 0


def test_stdin_is_not_touched_while_waiting(
    etcd: EtcdServer, name: str, full: Cli, start: Start
) -> None:
    waiter = start(etcd, "run", name, "--", "cat", stdin=subprocess.PIPE)
    assert waiter.process.stdin is not None
    waiter.process.stdin.write(b"early\n")
    waiter.process.stdin.flush()
    waiter.expect("place 1 of 1", err=True)
    waiter.process.stdin.write(b"late\n")
    waiter.process.stdin.close()
    end_holder(full)
    waiter.expect("early")
    waiter.expect("late")
    assert waiter.end() == 0


def test_a_stream_that_the_command_closes_is_closed(
    etcd: EtcdServer, name: str, start: Start
) -> None:
    """Nobody else keeps the command's stdout open while it runs."""
    script = "echo last words; exec >&-; read x"
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    cli.expect("last words")
    assert cli.out.get(timeout=10) is None
    assert cli.process.poll() is None


@pytest.mark.parametrize("closed", sample(["<&- >&- 2>&-", "<&-", ">&-", "2>&-"]))
def test_closed_streams_stay_closed(
    etcd: EtcdServer, name: str, tmp_path: Path, closed: str
) -> None:
    """The command finds them as they were, and none of our pipes takes their place."""
    look = (
        "import os, sys\n"
        "for fd in (0, 1, 2):\n"
        "    try: os.fstat(fd)\n"
        f"    except OSError: open('{tmp_path}/closed{{}}'.format(fd), 'x')\n"
        "os._exit(3)"
    )
    command = [sys.executable, "-m", "etcdsem", "run", name, "-l", "1", "--"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command, sys.executable, "-c", look],
        env={**os.environ, **etcd.env()},
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    gone = {fd for fd, sign in ((0, "<&-"), (1, " >&-"), (2, "2>&-")) if sign in f" {closed}"}
    assert {int(path.name[-1]) for path in tmp_path.iterdir()} == gone


def test_an_extra_file_is_passed_on(etcd: EtcdServer, name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "etcdsem", "run", name, "-l", "1", "--"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" 7>{tmp_path}/seven', "sh", *command, "sh", "-c", "echo x >&7"],
        env={**os.environ, **etcd.env()},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "seven").read_text() == "x\n"


def test_etcd_gone_at_the_end(fresh_etcd: EtcdServer, name: str, start: Start) -> None:
    """The command's code stands; that etcd could not be told is a note, soon."""
    cli = start(fresh_etcd, "run", name, "-l", "1", "--", "sh", "-c", "echo held; read x; exit 9",
                stdin=subprocess.PIPE)  # fmt: skip
    cli.expect("held")
    fresh_etcd.pause()
    end_holder(cli)
    began = time.monotonic()
    assert cli.end() == 9
    assert time.monotonic() - began < 5
    assert "could not release the lease" in cli.rest()


def test_labels_of_the_environment_are_in_the_holder_record(etcd: EtcdServer, name: str) -> None:
    """ETCDSEM_LABELS, as the Downward API would fill it, and --label, which wins."""
    ran(etcd, "run", name, "-l", "1", "--", "true")
    show = ["etcdsem", "status", name, "--json"]
    done = ran(
        etcd,
        "run",
        name,
        "--label",
        "app=x",
        "--",
        sys.executable,
        "-m",
        *show,
        env={"ETCDSEM_LABELS": "pod=p-1,app=y"},
    )
    assert json.loads(done.stdout)["holders"][0]["labels"] == {"pod": "p-1", "app": "x"}


def test_a_try_says_why_nothing_is_granted(etcd: EtcdServer, name: str) -> None:
    """Who paused it and why, a limit that cannot be read, a limit of 0."""
    assert ran(etcd, "run", name, "-l", "1", "--", "true").returncode == 0
    paused = {"ETCDSEM_OWNER": "alice"}
    assert ran(etcd, "pause", name, "--reason", "upgrade", env=paused).returncode == 0
    done = ran(etcd, "run", name, "-n", "--", "true")
    assert done.returncode == 75
    assert "by alice: upgrade (to resume: etcdsem resume" in done.stderr
    assert ran(etcd, "resume", name).returncode == 0
    assert ran(etcd, "limit", name, "0").returncode == 0
    done = ran(etcd, "run", name, "-n", "--", "true")
    assert (done.returncode, "its limit is 0" in done.stderr) == (75, True)
    etcdctl(etcd, "put", f"/etcdsem/{name}/max_leases", "5.0")
    done = ran(etcd, "run", name, "-n", "--", "true")
    assert done.returncode == 75
    assert (
        f"its limit in etcd reads '5.0', so nothing is granted (to fix it: etcdsem limit {name}"
        in (done.stderr)
    )
