"""Which member led when, according to the logs of etcd's members.

A member that was suspended or cut off believes that it is the leader until it hears of another one.
It does harm (#15247), on every version:

1. It answers renewals that the new leader does not know of.
2. When it resumes, it revokes leases that the new leader has renewed. It revokes 16 at a time, and
   does not stop when it has heard of the new leader: if it cannot reach it yet, each of them takes
   until its request times out, 7 s, and only then come the next 16.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, NamedTuple

_LINE = re.compile(r'"ts":"([^"]+)".*"msg":"([^"]*)"')
_ROLE = re.compile(r"[0-9a-f]+ became (\S+) at term (\d+)")


class StaleLeader(NamedTuple):
    """A member gave orders that it had no right to give: another one had been elected."""

    member: str
    begin: float
    """When the other one was elected."""
    end: float
    """When it heard of that, or, if later, reported the last failed revocation."""


class _Event(NamedTuple):
    at: float
    what: Literal["leads", "follows", "revokes", "starts"]
    term: int


def stale_leaders(logs: Mapping[str, str], ahead: float) -> list[StaleLeader]:
    """All stale leaders, in the order in which they begin.

    Args:
        logs: of each member, as lines of JSON (``--logger=zap``).
        ahead: seconds by which the logs' clock is ahead of the clock to use.
    """
    events = {name: _events(log, ahead) for name, log in logs.items()}
    elected = [one for all_ in events.values() for one in all_ if one.what == "leads"]
    found = []
    for name, own in events.items():
        for place, one in enumerate(own):
            if one.what == "leads":
                begin = min((at for at, _, term in elected if term > one.term), default=math.inf)
                end = _last_order(own[place + 1 :])
                if begin < end:
                    found.append(StaleLeader(name, begin, end))
    return sorted(found, key=lambda stale: stale.begin)


def _last_order(events: list[_Event]) -> float:
    """When a leader gave its last order, judged by its later events; -inf if it was killed."""
    last = math.inf
    for at, what, _ in events:
        if what == "starts":  # it was dead, and gave no orders
            return last if last < math.inf else -math.inf
        if what == "leads":
            return last
        if what == "follows":
            last = min(last, at)
        elif last < math.inf:
            last = at
    return last


def _events(log: str, ahead: float) -> list[_Event]:
    found = []
    for line in log.splitlines():
        said = _LINE.search(line)
        if said is None:
            continue
        at = datetime.fromisoformat(said[1]).timestamp() - ahead
        role = _ROLE.fullmatch(said[2])
        if role is not None:
            leads = role[1] == "leader"
            found.append(_Event(at, "leads" if leads else "follows", int(role[2])))
        elif said[2] == "failed to revoke lease":
            found.append(_Event(at, "revokes", 0))
        elif said[2] == "starting an etcd server":
            found.append(_Event(at, "starts", 0))
    return found
