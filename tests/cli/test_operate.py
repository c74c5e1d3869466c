"""``ls``, ``status``, ``limit``, ``evict``, ``close``, and the command line as a whole."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from etcdsem import Client, RateLimit, Semaphore, SemaphoreClosed
from tests.cli.driver import ETCDSEM, Cli, Console, etcdctl, keys, ran, ran_here
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]


def data(etcd: EtcdServer, *arguments: str) -> Any:
    """The JSON object that it prints, on one line."""
    done = ran(etcd, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


@pytest.fixture
def used(etcd: EtcdServer, name: str, start: Start) -> tuple[Cli, Cli]:
    """A semaphore with one holder, who has labels, and one waiter."""
    holder = start(
        etcd, "run", name, "-l", "1", "--label", "team=blue", "--label", "note=a b", "--",
        "sh", "-c", "echo held; exec sleep 600",
    )  # fmt: skip
    holder.expect("held")
    waiter = start(etcd, "run", name, "--", "true")
    waiter.expect("place 1", err=True)
    return holder, waiter


# ---------------------------------------------------------------- looking


def test_ls_with_a_pattern(fresh_etcd: EtcdServer) -> None:
    """Whole names, upper and lower case told apart; no match is no error."""
    for one in ("team-a", "team-b", "my-team-a", "TEAM-c"):
        ran(fresh_etcd, "run", one, "-l", "2", "--", "true")
    listed = ran(fresh_etcd, "ls", "team-*").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["NAME", "team-a", "team-b"]
    found = data(fresh_etcd, "ls", "*team-[a]")["semaphores"]
    assert [one["name"] for one in found] == ["my-team-a", "team-a"]
    done = ran(fresh_etcd, "ls", "gpu?")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "etcdsem: no semaphore below /etcdsem matches 'gpu?'\n"
    assert data(fresh_etcd, "ls", "gpu?") == {"semaphores": []}


def test_status_json(etcd: EtcdServer, name: str, used: tuple[Cli, Cli]) -> None:
    """The documented keys, in their order, with their types."""
    seen = data(etcd, "status", name)
    assert list(seen) == [
        "name", "limit", "held", "waiting", "revision", "holders", "waiters", "junk",
        "paused", "rate", "used", "next_free", "applied", "drift", "expires_in",
    ]  # fmt: skip
    assert (seen["name"], seen["limit"], seen["held"], seen["waiting"]) == (name, 1, 1, 1)
    assert seen["junk"] == []
    (holder,), (waiter,) = seen["holders"], seen["waiters"]
    assert list(holder) == [
        "slot", "owner", "host", "pid", "client", "lease", "fencing_token", "acquired_at", "ttl",
        "labels", "over_limit", "weight", "max_hold", "ends_at",
    ]  # fmt: skip
    assert list(waiter) == [
        "position", "owner", "host", "pid", "client", "lease", "since", "ttl", "labels",
        "weight", "priority", "eager", "backfill",
    ]  # fmt: skip
    assert holder["slot"] == 0
    assert holder["pid"] == used[0].pid
    assert holder["labels"] == {"team": "blue", "note": "a b"}
    assert holder["acquired_at"].endswith("Z")
    assert datetime.fromisoformat(holder["acquired_at"]).tzinfo is not None
    assert 0 < holder["ttl"] <= 30
    assert waiter["position"] == 1
    assert waiter["pid"] == used[1].pid
    assert waiter["lease"] in etcdctl(etcd, "lease", "list")


@pytest.mark.usefixtures("used")
def test_status_in_columns(etcd: EtcdServer, name: str) -> None:
    """Piped, it is plain text in columns, however narrow the terminal."""
    done = ran(etcd, "status", name, env={"COLUMNS": "20"})
    lines = done.stdout.splitlines()
    assert lines[0] == f"{name}: limit 1, 1 held, 1 waiting"
    assert lines[2].split() == ["SLOT", "HOLDER", "FOR", "TTL", "TOKEN", "LEASE", "LABELS"]
    assert "team=blue" in lines[3]
    assert lines[5].split() == ["PLACE", "WAITER", "FOR", "TTL", "LEASE", "LABELS"]
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in lines)


def test_status_of_weights_and_priorities(etcd: EtcdServer, client: Client, name: str) -> None:
    """How many slots a lease has, what who waits wants, and why a slot is free all the same."""
    sem = Semaphore(4, name, client=client)
    assert sem.acquire(weight=3)
    wanted = [{"weight": 2}, {"priority": 5, "weight": 4}, {"backfill": True, "weight": 2}, {}]
    for number, how in enumerate(wanted, start=1):
        threading.Thread(target=_wait, args=(sem,), kwargs=how, daemon=True).start()
        eventually(partial(_in_line, sem, number))
    lines = ran(etcd, "status", name).stdout.splitlines()
    assert lines[0] == (
        f"{name}: limit 4, 3 held, 4 waiting; 1 free, reserved for the first waiter, which wants 4"
    )
    assert lines[2].split()[:4] == ["SLOT", "HOLDER", "WEIGHT", "FOR"]
    assert [line.split()[2] for line in lines[3:6]] == ["3"] * 3
    assert lines[7].split()[:4] == ["PLACE", "WAITER", "WANTS", "FOR"]
    wants = [line.split(maxsplit=2)[2] for line in lines[8:]]
    shown = ("weight 4, priority 5 ", "weight 2 ", "weight 2, backfill ", "- ")
    assert all(map(str.startswith, wants, shown)), wants
    waiters = json.loads(ran(etcd, "status", name, "--json").stdout)["waiters"]
    assert [one["backfill"] for one in waiters] == [False, False, True, False]
    assert [one["eager"] for one in waiters] == [False, False, True, False]
    client.pause(name)
    headline = ran(etcd, "status", name).stdout.splitlines()[0]
    assert "paused" in headline
    assert "kept" not in headline
    client.close_semaphore(name, force=True)


def _in_line(sem: Semaphore, number: int) -> bool:
    return len(sem.waiters()) == number


def _wait(sem: Semaphore, **how: Any) -> None:
    with contextlib.suppress(SemaphoreClosed):
        sem.acquire(**how)


def test_a_rate_limit_in_tables(etcd: EtcdServer, client: Client, name: str) -> None:
    """Permits that count, and not slots; when the next is free, but not while it is paused."""
    limit = RateLimit(name, 3600, "1h", block=20, client=client)
    assert limit.acquire()
    (row,) = [one for one in ran(etcd, "ls").stdout.splitlines() if one.startswith(name)]
    assert row.split() == [name, "3600/1h/20", "20", "0"]
    (row,) = [one for one in ran(etcd, "top").stdout.splitlines() if one.startswith(name)]
    assert row.split()[:4] == [name, "20", "3600/1h/20", "0"]
    lines = ran(etcd, "status", name).stdout.splitlines()
    assert lines[0] == f"{name}: rate 3600/1h/20, 20 used, 0 waiting"
    assert lines[2].split()[:4] == ["SLOT", "GRANTED", "TO", "AGO"]
    limit.resize(1, "1h")
    lines = ran(etcd, "status", name).stdout.splitlines()
    soon = r"next free in (1h00m|\d+m\d\ds)"
    assert re.fullmatch(rf"{name}: rate 1/1h, 1 used, 0 waiting; {soon}", lines[0])
    assert re.search(soon, ran(etcd, "rate", name).stdout)
    client.pause(name)
    assert "next free" not in ran(etcd, "status", name).stdout
    assert "next free" not in ran(etcd, "rate", name).stdout
    assert data(etcd, "rate", name)["next_free"] is None
    (row,) = [one for one in ran(etcd, "ls").stdout.splitlines() if one.startswith(name)]
    assert row.split() == [name, "1/1h", "paused", "1", "0"]


@pytest.mark.usefixtures("used")
def test_status_on_a_narrow_terminal(
    etcd: EtcdServer, name: str, console: Callable[..., Console]
) -> None:
    """Nothing is cut: what does not fit goes to lines of its own."""
    screen = console(etcd, *ETCDSEM, "status", name, env={"COLUMNS": "50"})
    assert screen.end() == 0
    assert "…" not in screen.seen
    assert max(len(line.split("\x1b[0m")[-1]) for line in screen.seen.splitlines()) <= 50


@pytest.mark.usefixtures("used")
def test_ls(etcd: EtcdServer, name: str) -> None:
    (line,) = [one for one in data(etcd, "ls")["semaphores"] if one["name"] == name]
    since = line.pop("waiting_since")
    assert since.endswith("Z")
    counts = {"held": 1, "waiting": 1, "junk": 0, "overbooked": 0}
    plain_one = {"paused": None, "rate": None, "used": 1}
    plain_one |= {"applied": None, "drift": False, "expires": False}
    assert line == {"name": name, "limit": 1, **counts, **plain_one}
    plain = ran(etcd, "ls").stdout.splitlines()
    assert plain[0].split() == ["NAME", "LIMIT", "HELD", "WAITING"]
    assert [name, "1", "1", "1"] in [one.split() for one in plain]


def test_ls_of_nothing(etcd: EtcdServer, name: str) -> None:
    prefix = f"/empty-{name}"
    assert data(etcd, "ls", "--prefix", prefix) == {"semaphores": []}
    done = ran(etcd, "--prefix", prefix, "ls")
    assert (done.returncode, done.stdout) == (0, "")
    assert prefix in done.stderr


def test_the_option_nearest_to_the_command_wins(etcd: EtcdServer, name: str) -> None:
    assert ran(etcd, "--prefix", f"/one-{name}", "run", name, "-l", "1", "true").returncode == 0
    assert ran(etcd, "--prefix", f"/two-{name}", "limit", name).returncode == 78
    found = ran(etcd, "--prefix", f"/two-{name}", "limit", "--prefix", f"/one-{name}", name)
    assert found.stdout == "1\n"


def test_junk_from_etcd_does_not_reach_the_terminal(
    etcd: EtcdServer, name: str, start: Start
) -> None:
    """Escapes that somebody put into etcd are shown as such; the junk is named."""
    cli = start(etcd, "run", name, "-l", "2", "--", "sh", "-c", "echo held; exec sleep 600")
    cli.expect("held")
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    record = json.dumps({"owner": evil, "host": evil, "labels": {evil: evil}}, ensure_ascii=False)
    lease = etcdctl(etcd, "lease", "grant", "60").split()[1]
    etcdctl(etcd, "put", "--lease", lease, f"/etcdsem/{name}/leases/00001", record)
    etcdctl(etcd, "put", f"/etcdsem/{name}/leases/\x1b[2Jx", "junk")
    for arguments in (["status", name], ["ls"], ["evict", name, "--slot", "1"]):
        done = ran(etcd, *arguments)
        assert done.returncode == 0
        for sign in "\x1b\x07\u202e":
            assert sign not in done.stdout + done.stderr
    seen = data(etcd, "status", name)
    assert len(seen["junk"]) == 1
    assert seen["junk"][0].keys() == {"key", "reason"}


# ---------------------------------------------------------------- changing


def test_limit(etcd: EtcdServer, name: str) -> None:
    assert ran(etcd, "run", name, "-l", "2", "--", "true").returncode == 0
    assert ran(etcd, "limit", name).stdout == "2\n"
    assert data(etcd, "limit", name) == {"name": name, "limit": 2}
    assert ran(etcd, "limit", name, "7").stdout == f"{name}: 2 -> 7\n"
    assert data(etcd, "limit", name, "0") == {"name": name, "old": 7, "new": 0}
    assert ran(etcd, "run", "-n", name, "--", "true").returncode == 75
    for wrong in ("100000", "x", "1.5"):
        assert ran(etcd, "limit", name, wrong).returncode == 64
    assert ran(etcd, "limit", name, "--", "-1").returncode == 64


def test_a_limit_is_changed_by_a_difference(etcd: EtcdServer, name: str) -> None:
    """+N and -N count from the present limit, wherever they stand; a pause stays."""
    assert ran(etcd, "run", name, "-l", "20", "--", "true").returncode == 0
    assert ran(etcd, "limit", name, "+1").stdout == f"{name}: 20 -> 21\n"
    assert ran(etcd, "limit", name, "-2").stdout == f"{name}: 21 -> 19\n"
    assert ran(etcd, "limit", name, "--", "-2").stdout == f"{name}: 19 -> 17\n"
    assert data(etcd, "limit", "--json", name, "-7") == {"name": name, "old": 17, "new": 10}
    assert data(etcd, "limit", name, "-1", "--json") == {"name": name, "old": 10, "new": 9}
    assert ran(etcd, "pause", name).returncode == 0
    done = ran(etcd, "limit", name, "+1")
    assert done.stdout == f"{name}: 9 -> 10\n"
    assert "is still paused" in done.stderr
    for difference, said in (("-11", "-1"), ("+99990", "100000")):
        done = ran(etcd, "limit", name, difference)
        assert done.returncode == 64
        assert f"the limit is 10; {difference} would make it {said}, but it must" in done.stderr
    assert ran(etcd, "limit", name, "-10").stdout == f"{name}: 10 -> 0\n"


@pytest.mark.parametrize(
    "given", ["", " 5", "5 ", "1_000", "1e3", "5.0", "\u0665", "\uff15", "0x5", "+", "++1", "+1_0"]
)
def test_a_limit_is_never_misread(etcd: EtcdServer, name: str, given: str) -> None:
    """Nothing but plain digits, with or without a sign."""
    done = ran_here(etcd, "limit", name, given)
    assert done.returncode == 64
    assert f"invalid limit {given!r}: expected a whole number (5), or a change" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["limit", "NAME", "-2x"], "No such option"),
        (["limit", "NAME", "-2", "--jsno"], "unexpected extra argument (--jsno)"),
        (["limit", "NAME", "5", "6"], "unexpected extra argument (6)"),
        (["rate", "NAME", "+1"], "invalid rate '+1': give 100/1m"),
        (["rate", "NAME", "+1/1m"], "invalid rate '+1/1m'"),
        (["rate", "NAME", "-1"], "No such option"),
        (["rate", "NAME", "1_0/1m"], "invalid rate '1_0/1m'"),
        (["rate", "NAME", "\u0665/1m"], "invalid rate"),
        (["rate", "NAME", "\u00b2/1m"], "invalid rate"),
        (["run", "NAME", "-l", "+1", "--", "true"], "'+1' is not a whole number"),
        (["run", "NAME", "-l", "1_0", "--", "true"], "'1_0' is not a whole number"),
        (["run", "NAME", "-l", "\u0665", "--", "true"], "is not a whole number"),
        (["run", "NAME", "--weight", "2.0", "--", "true"], "'2.0' is not a whole number"),
        (["run", "NAME=+1", "--", "true"], "expected NAME=N"),
        (["run", "NAME=\u0665", "--", "true"], "expected NAME=N"),
        (["evict", "NAME", "--slot", "+1"], "'+1' is not a whole number"),
    ],
)
def test_other_numbers_are_never_misread(
    etcd: EtcdServer, name: str, arguments: list[str], said: str
) -> None:
    """A usage error in one line, and nothing is registered."""
    done = ran_here(etcd, *(one.replace("NAME", name) for one in arguments))
    assert done.returncode == 64
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert keys(etcd, name) == []


def test_a_raised_limit_lets_the_next_in(
    etcd: EtcdServer, name: str, used: tuple[Cli, Cli]
) -> None:
    assert ran(etcd, "limit", name, "2").returncode == 0
    assert used[1].end() == 0


@pytest.mark.parametrize("by", sample(["slot", "lease"]))
def test_evict_a_holder(etcd: EtcdServer, name: str, used: tuple[Cli, Cli], by: str) -> None:
    """Its command ends, the next in line starts."""
    holder, waiter = used
    (before,) = data(etcd, "status", name)["holders"]
    gone = data(etcd, "evict", name, f"--{by}", str(before[by]))
    assert gone["evicted"] == "holder"
    assert gone["holder"]["lease"] == before["lease"]
    assert holder.end() == 70
    assert waiter.end() == 0


def test_evict_a_waiter(etcd: EtcdServer, name: str, used: tuple[Cli, Cli]) -> None:
    """Its waiting ends with 70 and a line that says who did it; the holder is not disturbed."""
    (before,) = data(etcd, "status", name)["waiters"]
    done = ran(etcd, "evict", name, "--lease", before["lease"], env={"ETCDSEM_OWNER": "alice"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "place 1" in done.stdout
    assert used[1].end() == 70
    (said,) = [line for line in used[1].rest().splitlines() if "evicted" in line]
    assert re.fullmatch(rf"etcdsem: .*'{name}': evicted from the queue by alice at .*", said)
    assert used[0].process.poll() is None


@pytest.mark.parametrize("command", sample([["hold"], ["run", "--rate", "1/1h", "--", "true"]]))
def test_evict_who_waits_otherwise(
    etcd: EtcdServer, name: str, start: Start, command: list[str]
) -> None:
    """`hold` and `run --rate` end with 70 too."""
    verb, *rest = command
    used = ["hold", name, "-l", "1"] if verb == "hold" else ["run", name, *rest]
    first = start(etcd, *used)
    if verb == "hold":
        first.expect("is held", err=True)
    else:
        assert first.end() == 0
    waiting = start(etcd, *used)
    eventually(lambda: data(etcd, "status", name)["waiters"])
    (waiter,) = data(etcd, "status", name)["waiters"]
    assert ran(etcd, "evict", name, "--lease", waiter["lease"]).returncode == 0
    assert waiting.end() == 70
    assert "evicted from the queue by" in waiting.rest()


@pytest.mark.parametrize("command", sample(["del", "revoke"]))
def test_a_waiter_whose_key_is_deleted_waits_on(
    etcd: EtcdServer, name: str, used: tuple[Cli, Cli], command: str
) -> None:
    """`etcdctl del` of its key, and `lease revoke`, put it to the end of the queue."""
    (before,) = data(etcd, "status", name)["waiters"]
    if command == "del":
        etcdctl(etcd, "del", f"/etcdsem/{name}/waiters/{before['client']}/{before['lease']}")
    else:
        etcdctl(etcd, "lease", "revoke", before["lease"])

    def again() -> bool:
        waiters = data(etcd, "status", name)["waiters"]
        return [one["lease"] != before["lease"] for one in waiters] == [True]

    eventually(again, 40)
    used[0].send(signal.SIGTERM)
    assert used[1].end() == 0


def test_evict_nobody(etcd: EtcdServer, name: str) -> None:
    assert ran(etcd, "evict", name, "--slot", "0").returncode == 78
    assert ran(etcd, "run", name, "-l", "1", "--", "true").returncode == 0
    assert ran(etcd, "evict", name, "--slot", "0").returncode == 1
    assert ran(etcd, "evict", name, "--lease", "abc").returncode == 1
    for wrong in (["--lease", "xyz"], [], ["--slot", "0", "--lease", "abc"], ["--slot", "-1"]):
        assert ran_here(etcd, "evict", name, *wrong).returncode == 64


def test_close_refuses_while_in_use(etcd: EtcdServer, name: str, used: tuple[Cli, Cli]) -> None:
    done = ran(etcd, "close", name)
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert used[0].process.poll() is None
    assert ran(etcd, "close", name, "--force").returncode == 0
    assert used[0].end() == 70
    assert used[1].end() == 78
    assert keys(etcd, name) == []
    assert ran(etcd, "close", name).returncode == 78


@pytest.mark.parametrize("command", sample(["status", "limit", "close"]))
def test_unknown_is_78_and_one_line(etcd: EtcdServer, name: str, command: str) -> None:
    for more in ([], ["--json"]):
        done = ran(etcd, command, name, *more)
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr.startswith("etcdsem: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_unreachable_is_69() -> None:
    done = ran(None, "ls", "--endpoints", "127.0.0.1:1")
    assert done.returncode == 69
    assert "127.0.0.1:1" in done.stderr
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------- the whole


def test_help_is_complete_and_loads_little() -> None:
    """Help needs neither grpc nor rich nor asyncio; each command has its own."""
    check = (
        "import sys\n"
        "sys.argv = ['etcdsem', '--help']\n"
        "from etcdsem.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print(sorted({'grpc', 'rich', 'asyncio', 'google.protobuf'} & set(sys.modules)), code)\n"
    )
    shown = subprocess.check_output([sys.executable, "-c", check], text=True)
    assert shown.endswith("[] 0\n")
    from etcdsem.cli.main import _COMMANDS

    for command in _COMMANDS:
        assert re.search(rf"\n  {command} +\w", shown)
        done = ran_here(None, command, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: etcdsem" in done.stdout
        assert "Example" in done.stdout


def test_usage_errors_of_the_group() -> None:
    for arguments in (["nonsense"], ["--nonsense"], ["--user", "a:b", "ls"], ["ls", "a", "extra"]):
        done = ran(None, *arguments)
        assert (done.returncode, done.stdout) == (64, "")
        assert done.stderr.count("\n") == 1
    assert ran(None).returncode == 64


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("rnu", "run"), ("statsu", "status"), ("Status", "status"), ("xyzzy", None)],
)
def test_a_command_that_is_mistyped_gets_a_suggestion(typed: str, meant: str | None) -> None:
    hint = f". Did you mean {meant!r}?" if meant else ""
    for arguments in ([typed], [typed, "gpu"], ["help", typed]):
        done = ran_here(None, *arguments)
        assert (done.returncode, done.stdout) == (64, "")
        assert done.stderr == f"etcdsem: No such command {typed!r}{hint} (see: etcdsem --help)\n"


def test_help_is_a_command_too() -> None:
    assert ran_here(None, "help").stdout == ran_here(None, "--help").stdout
    assert ran_here(None, "help", "run").stdout == ran_here(None, "run", "--help").stdout


@pytest.mark.parametrize("name", [".", ".."])
def test_names_that_look_like_a_path_are_refused(name: str) -> None:
    for arguments in (["status", name], ["limit", name], ["pause", name]):
        done = ran_here(None, *arguments)
        assert (done.returncode, done.stdout) == (64, "")
        assert f"invalid semaphore name {name!r}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("status x -i 0", "-i 0 is"),
        ("status x --interval=0", "--interval 0 is"),
        ("drain x --timeout abc", "--timeout: "),
        ("drain x -w abc", "-w: "),
        ("drain x --wait abc", "--wait: "),
        ("run x -w1 -w abc -- sleep --timeout 5", "-w: "),
        ("run x -l 100000 -- true", "-l must be"),
        ("run x --limit=abc -- true", "Invalid value for '--limit': "),
        ("top -s x", "Invalid value for '-s': "),
    ],
)
def test_usage_errors_name_the_option_that_was_typed(arguments: str, option: str) -> None:
    done = ran(None, *arguments.split())
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith(f"etcdsem: {option}")


def test_version() -> None:
    from etcdsem import __version__

    assert ran(None, "--version").stdout == f"etcdsem {__version__}\n"
    assert ran_here(None, "-V").stdout == f"etcdsem {__version__}\n"


@pytest.mark.parametrize("arguments", sample(["status NAME", "ls", "--help", "limit NAME --json"]))
def test_a_reader_that_goes_away(etcd: EtcdServer, name: str, arguments: str) -> None:
    """Quietly, as if SIGPIPE had ended it."""
    assert ran(etcd, "run", name, "-l", "1", "--", "true").returncode == 0
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*ETCDSEM, *arguments.replace("NAME", name).split()],
        env={**os.environ, **etcd.env()},
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("where", sample([">/dev/full", ">&-"]))
def test_output_that_cannot_be_written(etcd: EtcdServer, name: str, where: str) -> None:
    assert ran(etcd, "run", name, "-l", "1", "--", "true").returncode == 0
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {where}', "sh", *ETCDSEM, "limit", name],
        env={**os.environ, **etcd.env()},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"etcdsem: cannot write")
    assert done.stderr.count(b"\n") == 1


def test_debug_shows_where_it_came_from(etcd: EtcdServer, name: str) -> None:
    done = ran(etcd, "status", name, env={"ETCDSEM_DEBUG": "1"})
    assert done.returncode == 78
    assert "Traceback" in done.stderr


# ---------------------------------------------------------------- pause, resume


def test_pause_and_resume(etcd: EtcdServer, name: str, start: Start) -> None:
    """Everything that shows a semaphore says that it is paused, by whom, since when and why; a
    job that waits says so, and starts when it is resumed.
    """
    assert ran(etcd, "run", name, "-l", "2", "true").returncode == 0
    why = {"ETCDSEM_OWNER": "ops team"}
    done = ran(etcd, "pause", name, "--reason", "new driver", env=why)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}: paused\n", "")
    paused = data(etcd, "status", name)["paused"]
    assert (paused["by"], paused["reason"]) == ("ops team", "new driver")
    assert paused["since"].endswith("Z")
    headline = ran(etcd, "status", name).stdout.splitlines()[0]
    assert re.fullmatch(
        rf"{name}: limit 2, 0 held, 0 waiting; paused \d+s ago by ops team: new driver", headline
    )
    (line,) = [one for one in data(etcd, "ls")["semaphores"] if one["name"] == name]
    assert line["paused"] == paused
    rows = [one.split() for one in ran(etcd, "ls").stdout.splitlines()]
    assert [name, "2", "paused", "0", "0"] in rows
    waiting = start(etcd, "run", name, "--", "echo", "it runs")
    waiting.expect(
        "place 1 of 1 in the queue, 0 of 2 held, paused .* by ops team: new driver", err=True
    )
    again = ran(etcd, "pause", name, "--reason", "other")
    assert again.returncode == 0
    assert re.search("unchanged, already paused .* by ops team: new driver", again.stdout)
    assert ran(etcd, "run", name, "-n", "true").returncode == 75
    resized = ran(etcd, "limit", name, "7")
    assert resized.stdout == f"{name}: 2 -> 7\n"
    assert f"to resume: etcdsem resume {name}" in resized.stderr
    done = ran(etcd, "resume", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}: resumed\n", "")
    assert waiting.end() == 0
    waiting.expect("it runs")
    assert "not paused" in ran(etcd, "resume", name).stdout
    assert etcdctl(etcd, "get", "--print-value-only", f"/etcdsem/{name}/max_leases").strip() == "7"


def test_pause_json(etcd: EtcdServer, name: str) -> None:
    """What changed, and what is so now."""
    ran(etcd, "run", name, "-l", "1", "true")
    seen = data(etcd, "pause", name)
    assert seen["changed"] is True
    assert list(seen["paused"]) == ["by", "since", "until", "reason"]
    assert seen["paused"]["until"] is None
    assert "@" in seen["paused"]["by"]
    again = data(etcd, "pause", name)
    assert again == {**seen, "changed": False}
    assert data(etcd, "resume", name) == {"name": name, "changed": True, "paused": None}
    assert data(etcd, "resume", name)["changed"] is False


def test_pause_for_a_time(etcd: EtcdServer, name: str) -> None:
    """Everything says for how long; a longer one wins; `resume` ends it; code 64 for nonsense."""
    ran(etcd, "run", name, "-l", "2", "true")
    done = ran(etcd, "pause", name, "--for", "100s", "--reason", "429")
    assert re.fullmatch(rf"{name}: paused until \d{{4}}-\d\d-\d\d .*\n", done.stdout)
    headline = ran(etcd, "status", name).stdout.splitlines()[0]
    assert re.search(r"; paused \d+s ago by .*, 1m\d\ds left: 429$", headline)
    assert data(etcd, "ls")["semaphores"]
    again = ran(etcd, "pause", name, "--for", "50s")
    assert re.search(r"unchanged, already paused .*, 1m\d\ds left: 429", again.stdout)
    assert ran(etcd, "run", name, "-n", "true").returncode == 75
    longer = data(etcd, "pause", name, "--for", "1h")
    assert longer["changed"] is True
    assert longer["paused"]["until"].endswith("Z")
    assert ran(etcd, "resume", name).stdout == f"{name}: resumed\n"
    assert ran(etcd, "run", name, "-n", "true").returncode == 0
    for wrong in ("0", "soon", "400d"):
        assert ran_here(etcd, "pause", name, "--for", wrong).returncode == 64


def test_pause_of_what_is_not_known(etcd: EtcdServer, name: str) -> None:
    for verb in ("pause", "resume"):
        done = ran(etcd, verb, name)
        assert done.returncode == 78
        assert "not known" in done.stderr
    done = ran(etcd, "pause", name, "--reason", "x" * 300)
    assert done.returncode == 64


# ---------------------------------------------------------------- drain


def test_drain(etcd: EtcdServer, name: str, start: Start) -> None:
    """It says who still holds, and ends with 0 when nobody does."""
    job = start(etcd, "run", name, "-l", "2", "--", "sh", "-c", "echo held; exec sleep 600")
    job.expect("held")
    draining = start(etcd, "drain", name, "--reason", "disks")
    draining.expect(rf"draining {name}: 1 still held, \S+:{job.pid} for \d+s", err=True)
    assert data(etcd, "status", name)["paused"]["reason"] == "disks"
    job.send(signal.SIGTERM)
    assert draining.end() == 0
    draining.expect(f"{name}: paused and drained; to resume: etcdsem resume {name}")
    assert ran(etcd, "run", name, "-n", "true").returncode == 75
    seen = data(etcd, "drain", name)
    assert list(seen) == ["name", "drained", "holders", "paused"]
    assert (seen["drained"], seen["holders"]) == (True, [])
    assert ran(etcd, "resume", name).returncode == 0
    assert ran(etcd, "run", name, "-n", "true").returncode == 0


def test_drain_names_a_holder_of_several_slots_once(
    etcd: EtcdServer, name: str, start: Start
) -> None:
    job = start(etcd, "hold", name, "-l", "4", "--weight", "2", env={"ETCDSEM_OWNER": "alice"})
    job.expect("held", err=True)
    done = ran(etcd, "drain", name, "--wait", "0")
    assert done.returncode == 75
    assert re.fullmatch(rf"etcdsem: {name}: 1 holder left \(alice for \d+s\); .*\n", done.stderr)


def test_a_holder_without_an_owner(etcd: EtcdServer, name: str) -> None:
    """A key made by hand with a lease but no owner: no message has a hole."""
    ran(etcd, "run", name, "-l", "2", "--", "true")
    lease = etcdctl(etcd, "lease", "grant", "60").split()[1]
    etcdctl(etcd, "put", f"/etcdsem/{name}/leases/00001", "", "--lease", lease)
    assert re.search(r"^ +1  \? ", ran(etcd, "status", name).stdout, re.MULTILINE)
    assert "(unknown owner for " in ran(etcd, "drain", name, "--wait", "0").stderr
    said = ran(etcd, "evict", name, "--slot", "1").stdout
    assert said == f"{name}: evicted unknown owner from slot 1 (lease {lease})\n"


def test_a_limit_that_cannot_be_read_is_reported_once(etcd: EtcdServer, name: str) -> None:
    etcdctl(etcd, "put", f"/etcdsem/{name}/max_leases", "many")
    done = ran(etcd, "status", name)
    assert done.stderr == ""
    assert done.stdout == (
        f"{name}: limit unreadable, no lease is granted, 0 held, 0 waiting; "
        "it reads 'many', which is not a number from 0 to 99999\n"
    )
    for command in (["limit", name], ["limit", name, "+1"], ["pause", name], ["resume", name]):
        done = ran(etcd, *command)
        assert done.stderr.count("\n") == 1
        assert f"etcdsem limit {name} N" in done.stderr
    assert ran(etcd, "limit", name, "5").stderr == ""


def test_drain_that_takes_too_long(etcd: EtcdServer, name: str, start: Start) -> None:
    """75, it stays paused, and how to resume is said; the same when it is stopped by a signal."""
    job = start(etcd, "run", name, "-l", "2", "--", "sh", "-c", "echo held; exec sleep 600")
    job.expect("held")
    for wait in ("0", "100ms"):
        done = ran(etcd, "drain", name, "--wait", wait)
        assert (done.returncode, done.stdout) == (75, "")
        assert "1 holder left" in done.stderr
        assert f"{name} stays paused; to resume: etcdsem resume {name}" in done.stderr
    done = ran(etcd, "drain", name, "-w", "0", "--json")
    assert done.returncode == 75
    assert json.loads(done.stdout)["holders"][0]["pid"] == job.pid
    ran(etcd, "resume", name)
    for number in (signal.SIGINT, signal.SIGTERM):
        draining = start(etcd, "drain", name)
        draining.expect("1 still held", err=True)
        draining.send(number)
        assert draining.end() == 128 + number
        draining.expect(f"stays paused; to resume: etcdsem resume {name}", err=True)
        assert data(etcd, "resume", name)["changed"] is True
    draining = start(etcd, "drain", name)
    draining.expect("1 still held", err=True)
    ran(etcd, "resume", name)
    assert draining.end() == 1
    draining.expect("was resumed while it was being drained", err=True)
    assert ran(etcd, "drain", name, "--wait", "soon").returncode == 64
    assert ran(etcd, "drain", f"{name}-not").returncode == 78


def test_drain_on_a_terminal(
    etcd: EtcdServer, name: str, start: Start, console: Callable[..., Console]
) -> None:
    """One line that is drawn again, and is gone at the end."""
    job = start(etcd, "run", name, "-l", "2", "--", "sh", "-c", "echo held; exec sleep 600")
    job.expect("held")
    screen = console(etcd, *ETCDSEM, "drain", name, size=(100, 24))
    screen.expect(f"draining {name}: 1 still held")
    job.send(signal.SIGTERM)
    assert screen.end() == 0
    assert "paused and drained" in screen.seen


# ---------------------------------------------------------------- a bounded queue


def test_max_waiting(etcd: EtcdServer, name: str, used: tuple[Cli, Cli]) -> None:
    """One holds and one waits: the next is refused at once, with code 75 or that of -E."""
    for code, more in ((75, []), (9, ["-E", "9"])):
        done = ran(etcd, "run", name, "--max-waiting", "1", *more, "--", "echo", "ran")
        assert (done.returncode, done.stdout) == (code, "")
        assert re.fullmatch(rf"etcdsem: '{name}': 1 or more callers are waiting.*\n", done.stderr)
    assert used[1].process.poll() is None
    assert ran_here(etcd, "run", name, "--max-waiting", "-1", "true").returncode == 64
