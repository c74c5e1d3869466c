"""Stale leaders, and only those, are found in the members' logs."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime

import pytest

from tests.chaos.clusters import on_this_machine
from tests.chaos.elections import StaleLeader, stale_leaders
from tests.helpers.waiting import eventually

AHEAD = 1_000_000.0


def log(*events: tuple[float, str]) -> str:
    """Log lines as written by etcd."""
    lines = [
        {
            "level": "info",
            "ts": datetime.fromtimestamp(AHEAD + at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "caller": "raft/raft.go:771",
            "msg": message,
        }
        for at, message in events
    ]
    return "\n".join(json.dumps(line, separators=(",", ":")) for line in lines)


NEXT = log((0.0, "b became follower at term 2"), (4.0, "b became leader at term 3"))


def found(*events: tuple[float, str]) -> list[StaleLeader]:
    """The stale leaders if one member has led since 1.0, and another one leads from 4.0 on."""
    own = log((0.0, "starting an etcd server"), (1.0, "a became leader at term 2"), *events)
    return stale_leaders({"m1": own, "m2": NEXT}, AHEAD)


def test_who_heard_of_it_late() -> None:
    """It is stale from the election of the next leader until it hears of it."""
    assert found((6.5, "a became follower at term 3")) == [StaleLeader("m1", 4.0, 6.5)]
    assert found() == [StaleLeader("m1", 4.0, math.inf)]


def test_who_had_stepped_down_before() -> None:
    """It did no harm."""
    assert found((3.5, "a became follower at term 2"), (4.1, "a became follower at term 3")) == []


def test_who_goes_on_revoking() -> None:
    """A leader is stale until it has tried to revoke the last of the leases that it saw expire; its
    revocations after it leads again are right.
    """
    failed = [(at, "failed to revoke lease") for at in (2.0, 5.0, 13.5, 13.6, 30.0)]
    heard = (6.5, "a became follower at term 3")
    again = (20.0, "a became leader at term 4")
    stale = found(*failed[:2], heard, *failed[2:4], again, *failed[4:])
    assert [one.member for one in stale] == ["m1", "m2"]  # m2 has not heard of term 4
    assert stale[0].end == pytest.approx(13.6, abs=1e-6)


def test_who_was_killed() -> None:
    """A dead leader is not stale, however late it comes back."""
    restarted = (9.0, "starting an etcd server"), (9.1, "a became follower at term 3")
    assert found(*restarted) == []


def test_a_leader_that_stands_still(each_binary: str) -> None:
    """On a real cluster: it is stale until it resumes, also by our clock."""
    with on_this_machine(each_binary) as cluster:
        number = cluster.leader()
        old = cluster.members[number]
        others = [member for member in cluster.members if member is not old]
        before = {member.name: member.log().count("became leader") for member in others}
        old.pause()
        eventually(
            lambda: any(one.log().count("became leader") > before[one.name] for one in others)
        )
        resumed = time.time()
        old.resume()
        eventually(lambda: old.log().rfind("became follower") > old.log().rfind("became leader"))
        heard = time.time()
        logs = {member.name: member.log() for member in cluster.members}
    grain = 0.002  # etcd's log has whole milliseconds
    [stale] = [one for one in stale_leaders(logs, 0.0) if one.end > resumed - grain]
    assert stale.member == old.name
    assert stale.begin < resumed + grain
    assert stale.end < heard + grain
