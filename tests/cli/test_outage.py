"""What `run` and `hold` report while etcd does not answer, and before it has ever answered."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import etcdsem
from etcdsem import server
from etcdsem.cli.options import DIAL_TIMEOUT
from etcdsem.cli.run.acquire_worker import connect_for
from etcdsem.cli.run.contact import connecting
from etcdsem.cli.run.outage import Outage
from etcdsem.core.session import PATIENCE
from tests.cli.driver import ETCDSEM, Cli, Console, ran, ran_here
from tests.cli.test_request import request
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]

GONE = "etcd has not answered for "
BACK = "etcd answers again, after "
SHORT = ("-t", "12", "-l", "1")


def test_one_message_at_each_end() -> None:
    """A single late look, as after SIGCONT, reports nothing."""
    said: list[str] = []
    outage = Outage(10.0, said.append)
    for silent in (9.0, 11.0, 3.0, 11.0, 12.0, 13.0, 1.0, 2.0):
        outage.look(silent, lambda: "it ends")
    assert said == [f"{GONE}12s: it ends", f"{BACK}13s"]


def test_a_bound_that_comes_first_hides_an_outage() -> None:
    """The lease ends at its --max-hold, whether etcd answers or not."""
    said: list[str] = []
    outage = Outage(10.0, said.append)
    for left in (5.0, 4.0, 3.0):
        outage.look_at_lease(30.0, left, left, lambda: "it ends")
    assert said == []
    for left in (5.0, 4.0, 3.0):
        outage.look_at_lease(30.0, left, 60.0, lambda: "it ends")
    assert said == [f"{GONE}25s: it ends"]


RUN = ("run", "--kill-after", "1")
WARN = (*RUN, "--on-lost", "warn")
HOLD = ("hold", "--notice", "1")


@pytest.mark.parametrize(
    "case",
    sample(
        [
            (RUN, ("--", "sh", "-c", "echo on; sleep 600"), r"the command will be ended in \ds"),
            (HOLD, (), r"the lease on '.*' will count as lost in \ds"),
            (WARN, ("--", "sh", "-c", "echo on; sleep 600"), r"the lease on '.*' will be lost in "),
        ],
    ),
)
def test_an_outage_while_holding(
    fresh_etcd: EtcdServer,
    name: str,
    start: Start,
    case: tuple[tuple[str, ...], tuple[str, ...], str],
) -> None:
    """One line when it is noticed, with what comes of it, and one when it is over."""
    command, tail, then = case
    cli = start(fresh_etcd, *command, name, *SHORT, *tail)
    cli.expect("^on$") if tail else cli.expect("is held", err=True)
    fresh_etcd.pause()
    cli.expect(f"^etcdsem: {GONE}.s: {then}", err=True)
    fresh_etcd.resume()
    cli.expect(f"^etcdsem: {BACK}", err=True)
    cli.send(signal.SIGTERM)
    cli.end()
    assert not [line for line in cli.rest().splitlines() if "etcd " in line]


@pytest.mark.smoke
def test_an_outage_while_waiting(fresh_etcd: EtcdServer, name: str, start: Start) -> None:
    """The same in the queue; nothing with --quiet."""
    start(fresh_etcd, "hold", name, "-l", "1", "-t", "60").expect("is held", err=True)
    waiter = start(fresh_etcd, "run", name, *SHORT, "--", "true")
    waiter.expect("place 1 of 1", err=True)
    quiet = start(fresh_etcd, "run", name, *SHORT, "-q", "--", "true")
    timed = start(fresh_etcd, "hold", name, *SHORT, "-w", "9m")
    timed.expect("in the queue", err=True)
    fresh_etcd.pause()
    waiter.expect(f"{GONE}.s: giving up in 5.s unless it answers", err=True)
    timed.expect(f"{GONE}.s: giving up in 8m", err=True)
    fresh_etcd.resume()
    for cli in (waiter, timed):
        cli.expect(BACK, err=True)
    quiet.send(signal.SIGTERM)
    quiet.end()
    assert "etcd " not in quiet.rest()


@pytest.mark.slow
def test_an_outage_on_a_terminal(
    fresh_etcd: EtcdServer, name: str, start: Start, console: Callable[..., Console]
) -> None:
    """The messages are lines of their own, between two drawings of the status line."""
    start(fresh_etcd, "hold", name, "-l", "1", "-t", "60").expect("is held", err=True)
    waiter = console(fresh_etcd, *ETCDSEM, "run", name, *SHORT, "--", "true")
    waiter.expect("place 1 of 1")
    fresh_etcd.pause()
    waiter.expect(r"\x1b\[Ketcdsem: " + GONE + r"[^\n]*answers\r\n")
    waiter.expect(r"\x1b\[Ketcdsem: ")
    fresh_etcd.resume()
    waiter.expect(r"\x1b\[Ketcdsem: " + BACK + r"\d+s\r\n")


def test_connecting(start: Start, etcd: EtcdServer) -> None:
    """After a second without a first contact: what it connects to."""
    cli = start(etcd, "run", "n", "-l", "1", "-w", "2", "--endpoints", "127.0.0.1:1", "--", "true")
    cli.expect("^etcdsem: connecting to 127.0.0.1:1$", err=True)
    assert cli.end() == 69


def test_a_hint_if_no_endpoint_is_set(etcd: EtcdServer) -> None:
    """With what to set."""
    hint = "connecting to 127.0.0.1:2379 (no endpoint is set: use --endpoints or ETCDSEM_ENDPOINTS)"
    with etcdsem.connect() as client:
        assert connecting(client) == hint
    with etcdsem.connect("127.0.0.1:2379") as client:
        assert connecting(client) == "connecting to 127.0.0.1:2379"


def test_quiet_while_connecting(etcd: EtcdServer) -> None:
    """Only the error at the end."""
    line = ("hold", "n", "-l", "1", "-w", "1.5", "-q", "--endpoints", "127.0.0.1:1")
    done = ran(etcd, *line)
    assert (done.returncode, done.stderr.count("\n")) == (69, 1)


def test_etcd_wait_at_the_start(
    etcd: EtcdServer, etcd_binary: str, name: str, start: Start
) -> None:
    """An etcd that starts late costs time only; the variable means the same as the option."""
    (port,) = server.free_ports(1)
    late = ("--endpoints", f"127.0.0.1:{port}")
    env = {"ETCDSEM_ETCD_WAIT": "1s"}
    short = start(etcd, "hold", name, "-l", "1", *late, env=env)
    cli = start(etcd, "run", name, "-l", "1", "--etcd-wait", "10m", *late, "--", "echo", "on")
    cli.expect("connecting to", err=True)
    assert short.end() == 69
    with server.start(binary=etcd_binary, port=port):
        assert cli.expect("on")
        assert cli.end() == 0


def test_etcd_wait_in_the_queue(fresh_etcd: EtcdServer, name: str, start: Start) -> None:
    """A waiter gives up after this long, instead of 60 s."""
    start(fresh_etcd, "hold", name, "-l", "1", "-t", "60").expect("is held", err=True)
    line = ("run", name, "-l", "1", "-t", "2", "--etcd-wait")
    short, long = (start(fresh_etcd, *line, wait, "--", "true") for wait in ("3s", "10m"))
    for cli in (short, long):
        cli.expect("in the queue", err=True)
    fresh_etcd.pause()
    long.expect("giving up in 9m", err=True)
    assert short.end() == 69
    assert long.process.poll() is None


@pytest.mark.parametrize(
    ("wait", "etcd_wait", "first", "later"),
    [
        (None, None, DIAL_TIMEOUT, None),
        (None, "2h", 7200.0, 7200.0),
        ("5", "2h", 5.0, 7200.0),
        ("1h", "5", 5.0, 5.0),
    ],
)
def test_the_settings_of_the_client(
    wait: str | None, etcd_wait: str | None, first: float, later: float | None
) -> None:
    """--wait bounds the first contact, too."""
    context = click.Context(click.Command("run"))
    client = connect_for(context, request(wait=wait, etcd_wait=etcd_wait))
    assert (client.settings.dial_timeout, client.settings.patience) == (first, later)
    session = client._driver.session
    assert session.first_contact == first
    assert session.patience == (later or PATIENCE)
    client.close()


def test_etcd_waits_that_are_refused(etcd: EtcdServer) -> None:
    """64, and the option or the variable is named."""
    for given, env in (
        (("--etcd-wait", "0"), {}),
        (("--etcd-wait", "soon"), {}),
        ((), {"ETCDSEM_ETCD_WAIT": "-1s"}),
    ):
        done = ran_here(etcd, "run", "n", "-l", "1", *given, "--", "true", env=env)
        assert done.returncode == 64
        assert ("--etcd-wait" if given else "ETCDSEM_ETCD_WAIT") in done.stderr


JOB = """
d="$1/at-work/$$"
trap 'rmdir "$d"; exit 143' TERM
mkdir "$d"
[ "$(ls "$1/at-work" | wc -l)" -le 5 ] || echo "too many" >> "$1/too-many"
echo at work >> "$1/began"
until [ -e "$1/back" ]; do sleep 0.1; done
sleep 0.2
rmdir "$d"
"""


@pytest.mark.slow
def test_an_outage_costs_time_and_no_job(fresh_etcd: EtcdServer, name: str, tmp_path: Path) -> None:
    """Twenty jobs under a limit of 5, and an outage that is longer than their leases: holders end
    with 70 and are started again, as Kubernetes does; waiters wait for etcd. All jobs complete.
    """
    (tmp_path / "at-work").mkdir()
    command = [*ETCDSEM, "run", name, "-l", "5", "-t", "4", "--kill-after", "1", "--"]
    script = ["sh", "-c", JOB, "sh", str(tmp_path)]
    codes: list[list[int]] = [[] for _ in range(20)]

    def job(number: int) -> None:
        while len(codes[number]) < 7 and (not codes[number] or codes[number][-1]):
            done = subprocess.run(
                [*command, *script],
                env={**os.environ, **fresh_etcd.env(), "ETCDSEM_ETCD_WAIT": "5m"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            codes[number].append(done.returncode)

    threads = [threading.Thread(target=job, args=(n,), daemon=True) for n in range(20)]
    for thread in threads:
        thread.start()
    eventually(lambda: (tmp_path / "began").exists())
    fresh_etcd.pause()
    eventually(lambda: any(70 in some for some in codes), 60)
    fresh_etcd.resume()
    (tmp_path / "back").touch()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert all(some[-1] == 0 for some in codes), codes
    assert {code for some in codes for code in some} == {0, 70}
    assert not (tmp_path / "too-many").exists()
