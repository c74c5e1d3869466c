"""``etcdsem run --weight``, ``--priority``, ``--backfill``: what COMMAND gets, who is next."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import Cli, keys, ran, ran_here
from tests.helpers.slow import sample

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]

DEPRECATED = "etcdsem: --eager is deprecated: use --backfill"

HOLD = ("sh", "-c", 'echo "held $ETCDSEM_SLOTS"; read x')


def let_go(cli: Cli) -> None:
    """End the command of one that holds, and see its lease given back."""
    assert cli.process.stdin is not None
    cli.process.stdin.close()
    cli.end()


def test_the_command_knows_its_weight(etcd: EtcdServer, name: str) -> None:
    """All slots, the first of them in the variable of one slot, and how many they are."""
    done = ran(etcd, "run", name, "-l", "5", "--weight", "3", "--", "env")
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    slots = found["ETCDSEM_SLOTS"].split(",")
    assert len(set(slots)) == 3
    assert set(slots) <= {"0", "1", "2", "3", "4"}
    assert (found["ETCDSEM_SLOT"], found["ETCDSEM_WEIGHT"]) == (slots[0], "3")
    assert found["ETCDSEM_LIMIT"] == "5"
    leases = json.loads(found["ETCDSEM_LEASES"])
    assert [(one["lease_id"], one["slot"]) for one in leases] == [
        (found["ETCDSEM_LEASE_ID"], int(slots[0]))
    ]
    assert keys(etcd, name) == ["max_leases"]
    alone = ran(etcd, "run", name, "--", "sh", "-c", "echo $ETCDSEM_SLOTS $ETCDSEM_WEIGHT")
    assert alone.stdout.split()[1] == "1"


def test_all_slots_are_held_by_one_lease(etcd: EtcdServer, name: str, start: Start) -> None:
    """`status` shows them so; with them all is full; they are free together."""
    held = start(etcd, "run", name, "-l", "3", "--weight", "3", "--", *HOLD, stdin=subprocess.PIPE)
    slots = held.expect(r"held (\S+)").group(1)
    assert sorted(slots.split(",")) == ["0", "1", "2"]
    seen = json.loads(ran(etcd, "status", name, "--json").stdout)
    assert seen["held"] == 3
    assert {one["weight"] for one in seen["holders"]} == {3}
    assert len({one["lease"] for one in seen["holders"]}) == 1
    assert ran(etcd, "run", name, "-n", "--", "true").returncode == 75
    let_go(held)
    assert keys(etcd, name) == ["max_leases"]


def test_more_than_the_limit_is_refused_at_once(etcd: EtcdServer, name: str) -> None:
    """64 without waiting, though --wait would allow it; nothing stands in line."""
    done = ran(etcd, "run", name, "-l", "2", "--weight", "3", "-w", "1h", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("etcdsem:")
    assert "weight 3" in done.stderr
    assert "exceeds the limit of 2" in done.stderr
    assert f"etcdsem limit {name}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert keys(etcd, name) == ["max_leases"]


def test_a_limit_that_is_lowered_refuses_who_waits(
    etcd: EtcdServer, name: str, start: Start
) -> None:
    """64 as well; who holds goes on."""
    held = start(etcd, "run", name, "-l", "3", "--", *HOLD, stdin=subprocess.PIPE)
    held.expect("held")
    big = start(etcd, "run", name, "--weight", "3", "--", "echo", "ran")
    big.expect("place 1 of 1 in the queue", err=True)
    assert ran(etcd, "limit", name, "2").returncode == 0
    big.expect("weight 3 exceeds the limit of 2", err=True)
    assert big.end() == 64
    assert big.rest(err=False) == ""
    assert held.process.poll() is None
    let_go(held)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weight", "0"], "weight must be a whole number from 1 to 32"),
        (["--weight", "33"], "weight must be a whole number from 1 to 32"),
        (["--weight", "two"], "two"),
        (["--priority", "101"], "priority must be a whole number from -100 to 100"),
        (["--priority", "high"], "high"),
    ],
)
def test_what_cannot_be(arguments: list[str], said: str) -> None:
    """64, before anything is asked of etcd."""
    options = ("--endpoints", "127.0.0.1:1", "-l", "40", *arguments)
    done = ran_here(None, "run", "n", *options, "--", "true")
    assert done.returncode == 64
    assert said in done.stderr


def test_the_highest_priority_runs_first(etcd: EtcdServer, name: str, start: Start) -> None:
    """Real processes: by priority, and of the same in the order in which they came."""
    held = start(etcd, "run", name, "-l", "1", "--", *HOLD, stdin=subprocess.PIPE)
    held.expect("held")
    wanted = {"low": -5, "first": 0, "high": 10, "second": 0, "also": 10}
    waiters: dict[str, Cli] = {}
    for number, (who, priority) in enumerate(wanted.items(), start=1):
        one = start(etcd, "run", name, "--priority", str(priority), "--", *HOLD,
                    stdin=subprocess.PIPE, env={"ETCDSEM_OWNER": who})  # fmt: skip
        one.expect(rf"place \d of {number} in the queue", err=True)
        waiters[who] = one
    order = ["high", "also", "first", "second", "low"]
    seen = json.loads(ran(etcd, "status", name, "--json").stdout)["waiters"]
    assert [one["owner"] for one in seen] == order
    assert [one["priority"] for one in seen] == [10, 10, 0, 0, -5]
    for place, who in enumerate(order):
        let_go(held)
        held = waiters[who]
        held.expect("held")
        # Who comes later in line has printed nothing: it would hold the only slot.
        assert all(waiters[later].out.empty() for later in order[place + 1 :])
    let_go(held)
    assert keys(etcd, name) == ["max_leases"]


@pytest.mark.parametrize("option", sample(["--backfill", "--eager"]))
def test_a_backfill_request_passes_a_big_one(
    etcd: EtcdServer, name: str, start: Start, option: str
) -> None:
    """Other small requests wait behind the big one, though a slot is free. --eager warns."""
    held = start(etcd, "run", name, "-l", "2", "--", *HOLD, stdin=subprocess.PIPE)
    held.expect("held")
    big = start(etcd, "run", name, "--weight", "2", "--", *HOLD, stdin=subprocess.PIPE)
    big.expect("place 1 of 1 in the queue", err=True)
    small = start(etcd, "run", name, "--", *HOLD, stdin=subprocess.PIPE)
    small.expect("place 2 of 2 in the queue", err=True)
    passing = ran(etcd, "run", name, option, "-w", "20", "--", "echo", "ran")
    assert (passing.returncode, passing.stdout) == (0, "ran\n"), passing.stderr
    warned = passing.stderr.count(DEPRECATED)
    assert warned == (option == "--eager"), passing.stderr
    assert ran(etcd, "run", name, option, "-n", "--", "true").returncode == 75
    assert big.out.empty()
    assert small.out.empty()
    let_go(held)
    assert sorted(big.expect(r"held (\S+)").group(1).split(",")) == ["0", "1"]
    let_go(big)
    small.expect("held")
    let_go(small)
    assert keys(etcd, name) == ["max_leases"]


@pytest.mark.parametrize(
    "options", sample([["--eager"] * 2, ["--eager"], ["--backfill", "--eager"]])
)
@pytest.mark.parametrize("command", ["run", "hold"])
def test_eager_is_the_old_name_of_backfill(command: str, options: list[str]) -> None:
    """It prints one warning, then does what --backfill does; help does not list it."""
    work = ["--", "true"] if command == "run" else []
    at = [command, "--endpoints", "127.0.0.1:1", "-w", "0.1"]
    done = ran(None, *at, "n", *options, *work)
    assert done.returncode == 69
    assert done.stderr.splitlines().count(DEPRECATED) == 1, done.stderr
    text = ran_here(None, command, "--help").stdout
    assert "--backfill" in text
    assert "--eager" not in text


def test_eager_is_refused_where_backfill_is() -> None:
    """With several names, and with a rate alone: 64, with the new name in the error."""
    several = ran_here(None, "run", "a=1", "b=1", "--eager", "--", "true")
    assert several.returncode == 64
    assert "--backfill works with one NAME only" in several.stderr
    rate = ran_here(None, "run", "a", "--rate", "9/1s", "--eager", "--", "true")
    assert rate.returncode == 64
    assert "--backfill and --max-hold apply to leases" in rate.stderr
