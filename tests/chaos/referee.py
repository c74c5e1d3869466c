"""The referee: a server outside of any semaphore. It hears who is at work, and keeps a store.

1. Clients report to it over a separate TCP connection that no fault touches: one line of JSON per
   message, one line back. Times are CLOCK_BOOTTIME, which all processes of a machine share.
2. A *belief* is the time for which a client was certain of its grant: from the moment when acquire
   returned to the last moment at which it found the lease valid. Beliefs in one slot must never
   overlap, except after a manual eviction, which is reported with `evicted`.
3. The *store* checks fencing tokens for each slot: a write with a token lower than the highest seen
   for that slot is refused. A second store does not check; the stale writes that it accepts are
   counted, and show that the faults have an effect.
4. *Starts* of rate limits are judged in starts.py.
"""

from __future__ import annotations

import json
import math
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

from etcdsem.model import Rate
from tests.chaos import starts
from tests.chaos.elections import StaleLeader
from tests.chaos.starts import Start

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds on the clock that all processes of this machine share."""
    return time.clock_gettime(_CLOCK)


@dataclass
class Belief:
    """One grant, as seen by its client."""

    semaphore: str
    slot: int
    token: int
    lease: str
    who: str
    pid: int
    start: float
    last: float  # the last time at which it was certain; -inf if it never was
    ended: bool = False


@dataclass
class Eviction:
    """A client was evicted by hand, not before the time `start`."""

    semaphore: str
    slot: int | None  # either the slot is given
    lease: str | None  # or the lease
    start: float
    revision: float = math.inf  # etcd's revision when it was done; infinite if unknown

    def concerns(self, belief: Belief) -> bool:
        """May it have ended this grant, perhaps before its client had begun to work?"""
        if belief.token > self.revision:
            return False
        if self.lease is not None:
            return belief.lease == self.lease
        return (belief.semaphore, belief.slot) == (self.semaphore, self.slot)


ECHO = 5.0
"""Seconds after the last order of a stale leader in which it may have an effect: it is in transit,
and a lease that it has renewed ends at most a TTL later."""


@dataclass
class Store:
    """A store of writes to slots; if `checked`, it refuses stale ones."""

    checked: bool
    highest: dict[tuple[str, int], int] = field(default_factory=dict)
    last: dict[tuple[str, int], int] = field(default_factory=dict)
    accepted: int = 0
    refused: int = 0
    stale: int = 0  # accepted although a higher token had written before

    def write(self, semaphore: str, slot: int, token: int) -> bool:
        """Write with a token; False if that is refused."""
        place = (semaphore, slot)
        highest = self.highest.get(place, 0)
        if token < highest and self.checked:
            self.refused += 1
            return False
        self.accepted += 1
        self.stale += token < highest
        self.highest[place] = max(highest, token)
        self.last[place] = token
        return True


class Referee:
    """The server; clients connect to `port`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.beliefs: dict[tuple[str, int, int], Belief] = {}
        self.doubles: list[str] = []  # two clients with one token
        self.evictions: list[Eviction] = []
        self.stale_leaders: list[StaleLeader] = []
        self.fenced = Store(checked=True)
        self.unfenced = Store(checked=False)
        self.counters: Counter[str] = Counter()
        self.vitals: dict[str, list[dict[str, Any]]] = {}
        self.most_at_work: Counter[str] = Counter()
        self.starts: dict[str, list[Start]] = {}  # by the name of their rate limit
        self._at_work: dict[str, set[int]] = {}
        referee = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    answer = referee.hear(json.loads(line))
                    self.wfile.write((json.dumps(answer) + "\n").encode())

            def finish(self) -> None:
                try:
                    super().finish()
                except OSError:
                    pass  # the client was killed

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                referee.counters["connections cut"] += 1  # clients are killed while sending

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- messages of clients

    def hear(self, said: dict[str, Any]) -> dict[str, Any]:
        """Process one message, and return the answer."""
        with self.lock:
            match said["op"]:
                case "begin":
                    self._begin(said)
                    return {}
                case "step":
                    return self._step(said)
                case "end":
                    self._end(said)
                    return {}
                case "start":
                    told = boottime()
                    who, client = said["who"], said["client"]
                    start = Start(said["name"], who, client, said["low"], told)
                    self.starts.setdefault(start.name, []).append(start)
                    return {}
                case "count":
                    self.counters[said["what"]] += 1
                    return {}
                case "vitals":
                    self.vitals.setdefault(said["who"], []).append(said)
                    return {}
        raise AssertionError(f"no such message: {said}")

    def _begin(self, said: dict[str, Any]) -> None:
        key = (said["semaphore"], said["slot"], said["token"])
        if key in self.beliefs:
            self.doubles.append(f"{key}: {self.beliefs[key].who} and {said['who']}")
        self.beliefs[key] = Belief(
            said["semaphore"],
            said["slot"],
            said["token"],
            said["lease"],
            said["who"],
            said["pid"],
            said["t"],
            said["t"] if said.get("valid", True) else -math.inf,
        )
        self.counters["begun"] += 1
        working = self._at_work.setdefault(said["semaphore"], set())
        working.add(said["token"])
        self.most_at_work[said["semaphore"]] = max(
            self.most_at_work[said["semaphore"]], len(working)
        )

    def _step(self, said: dict[str, Any]) -> dict[str, Any]:
        self._believe(said)
        self.unfenced.write(said["semaphore"], said["slot"], said["token"])
        return {"written": self.fenced.write(said["semaphore"], said["slot"], said["token"])}

    def _believe(self, said: dict[str, Any]) -> Belief:
        belief = self.beliefs[said["semaphore"], said["slot"], said["token"]]
        if said["valid"]:
            belief.last = max(belief.last, said["t"])
        return belief

    def _end(self, said: dict[str, Any]) -> None:
        self._believe(said).ended = True
        self._at_work[said["semaphore"]].discard(said["token"])

    # -- called by the conductor

    def at_work(self, accept: Callable[[Belief], bool] = lambda belief: True) -> list[Belief]:
        """The beliefs of clients that are at work, as far as was reported."""
        with self.lock:
            return [b for b in self.beliefs.values() if not b.ended and accept(b)]

    def gone(self, pid: int) -> None:
        """Record that a process was killed and no longer works."""
        with self.lock:
            for belief in self.beliefs.values():
                if belief.pid == pid and not belief.ended:
                    belief.ended = True
                    self._at_work[belief.semaphore].discard(belief.token)

    def evicted(self, eviction: Eviction) -> None:
        """Record a manual eviction."""
        with self.lock:
            self.evictions.append(eviction)

    def judge(self) -> list[str]:
        """Everything that is wrong with the beliefs and writes."""
        with self.lock:
            wrong = [f"granted twice: {double}" for double in self.doubles]
            if self.fenced.stale:
                wrong.append(f"{self.fenced.stale} stale writes went past the fence")
            slots: dict[tuple[str, int], list[Belief]] = {}
            for belief in self.beliefs.values():
                slots.setdefault((belief.semaphore, belief.slot), []).append(belief)
            for place, beliefs in slots.items():
                beliefs.sort(key=lambda belief: belief.token)
                for earlier, later in pairwise(beliefs):
                    if self._certain_until(earlier) > later.start:
                        if self._etcd_revoked_early(later.start):
                            self.counters["slots given away early by etcd (#15247)"] += 1
                            continue
                        evicted = [one for one in self.evictions if one.slot == place[1]]
                        wrong.append(
                            f"two believed in slot {place}: {earlier} and {later}; {evicted}"
                        )
            return wrong

    def judge_starts(self, name: str, rate: Rate) -> list[str]:
        """Everything that is wrong with the starts of a rate limit."""
        with self.lock:
            told = self.starts.get(name, [])
            wrong = []
            for within in starts.too_many(told, rate):
                some = ", ".join(map(str, within))
                wrong.append(f"{name}: {len(within)} starts within {rate}: {some}")
            wrong += [
                f"{name}: {one} was told of before it was handed out"
                for one in told
                if one.low > one.told
            ]
            return wrong

    def _etcd_revoked_early(self, moment: float) -> bool:
        """A leader that was suspended revokes, when it resumes, leases that were renewed meanwhile;
        and one that is cut off answers renewals for a while that the next leader does not know of.
        No client can prevent that; rate limits do not depend on it.
        """
        return any(one.begin <= moment <= one.end + ECHO for one in self.stale_leaders)

    def _certain_until(self, belief: Belief) -> float:
        cuts = [one.start for one in self.evictions if one.concerns(belief)]
        return min([belief.last, *cuts])
