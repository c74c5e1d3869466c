"""What the parts of a hand-over cost etcd: ``python -m tests.benchmarks.parts``.

A hand-over is two transactions: PASS gives the slot to the next in line, JOIN enters the line
again. Here bare transactions of the same shape are sent one after the other, without a watch, each
kind with one thing more than the one before, and etcd's CPU time is read from its own counter.
What etcd does for each is its own business, so this is the part of the cost that no client of this
protocol can save. The kinds take turns, on one etcd; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from etcdsem.core import transactions
from etcdsem.core.commands import Compare, Delete, Put, Range, Txn
from etcdsem.core.keys import Identity, Keys, Limit, Queued, lease_hex
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.settings import read_settings
from etcdsem.server import EtcdServer
from tests.benchmarks.book import Book
from tests.benchmarks.measure import fresh_etcd, machine, metrics

TIMEOUT = 10.0
VALUE = b"x" * 150
"""As long as a holder's record."""


class Cycle(NamedTuple):
    """The two transactions of a hand-over; called for each anew."""

    give: Callable[[], Txn]
    enter: Callable[[], Txn]


class Bench:
    """One kind of hand-over after the other, on one etcd."""

    def __init__(self, etcd: EtcdServer) -> None:
        self.etcd = etcd
        self.connection = Connection(read_settings(etcd.endpoint))
        self.keys = Keys("/etcdsem", "parts", "host.1.parts")
        self.leases = [0x1000 + n for n in range(2)]
        for lease in self.leases:
            self.connection.grant(lease, 3600, TIMEOUT)
        put = self.send(Txn((), (Put(self.keys.max_leases, b"1"),), ()))
        self.limit = Limit(1, put, True, "1")
        self.identity = Identity("host.1.parts", b"")

    def send(self, txn: Txn) -> int:
        """Its revision; it must hold."""
        reply = self.connection.transact(txn, TIMEOUT)
        if not reply.succeeded:
            raise AssertionError(f"{txn} did not hold")
        return reply.revision

    def who(self, turn: int) -> bytes:
        return f"host.1.parts/{lease_hex(self.leases[turn % 2])}".encode()

    # -- the kinds

    def puts(self) -> Cycle:
        """Each transaction puts one key."""
        return Cycle(
            lambda: Txn((), (Put(self.keys.slot(1), VALUE),), ()),
            lambda: Txn((), (Put(self.keys.waiter(b"floor"), VALUE),), ()),
        )

    def writes(self, lease: int = 0, listed: int = 0) -> Cycle:
        """Our writes: slot, message, and the deletes of a message and a waiter; waiter, mark."""
        here, there = b"a", b"b"
        message = b"0\n" + b"x" * 75 * listed

        def give() -> Txn:
            return Txn(
                (),
                (
                    Put(self.keys.slot(2), VALUE, lease),
                    Delete(self.keys.waiter(here)),
                    Put(self.keys.message(here), message, lease),
                    Delete(self.keys.message(there)),
                ),
                (),
            )

        def enter() -> Txn:
            nonlocal here, there
            here, there = there, here
            waiter = Put(self.keys.waiter(here), VALUE, lease)
            return Txn((), (waiter, Put(self.keys.contended, b"1")), ())

        return Cycle(give, enter)

    def conditions(self, listed: int = 0) -> Cycle:
        """The same with our number of conditions, all of which hold, in a row; and JOIN's reads."""
        cycle = self.writes(self.leases[0], listed)
        limit = Compare(self.keys.max_leases, "mod", "=", self.limit.revision)
        surplus = Compare(self.keys.slot(3), "create", "=", 0, end=self.keys.leases_end)
        absent = Compare(self.keys.priorities, "mod", "=", 0)
        there = Compare(self.keys.max_leases, "create", ">", 0)

        def give() -> Txn:
            return cycle.give()._replace(compare=(there, limit, surplus, absent, there))

        def enter() -> Txn:
            txn = cycle.enter()
            reads = (
                Range(self.keys.max_leases),
                Range(self.keys.leases, self.keys.leases_end, limit=128, keys_only=True),
            )
            return txn._replace(
                compare=(limit, surplus, there, there), success=(*txn.success, *reads)
            )

        return Cycle(give, enter)

    def ours(self, listed: int = 0) -> Cycle:
        """PASS and JOIN as they are: two clients that give one slot to each other."""
        turn = 0
        self.send(
            Txn(
                (),
                (
                    Delete(self.keys.waiters, self.keys.waiters_end),
                    Delete(self.keys.leases, self.keys.leases_end),
                    Delete(self.keys.contended),
                ),
                (),
            )
        )
        token = self.send(Txn((), (Put(self.keys.slot(0), VALUE, self.leases[0]),), ()))
        self.send(Txn((), (Put(self.keys.contended, b"1"),), ()))
        created = self._enters(1)
        others = tuple(
            Queued(f"host.1.parts/{lease_hex(0x2000 + n)}".encode(), 0x2000 + n, 1, b"")
            for n in range(listed)
        )

        def give() -> Txn:
            mine = transactions.HeldSlots(0, token, self.who(turn), True)
            lease = self.leases[(turn + 1) % 2]
            first = Queued(self.who(turn + 1), lease, created, b"")
            line = (first, *others)
            return transactions.pass_on(self.keys, mine, self.limit, line, 1, time.time())

        def enter() -> Txn:
            nonlocal turn, token, created
            token = self.revision
            turn += 1
            created = token + 1  # that of the JOIN which is built here: nobody else writes
            return self._join(turn + 1)

        return Cycle(give, enter)

    def _join(self, turn: int) -> Txn:
        return transactions.join(
            self.keys,
            self.limit,
            (),
            self.leases[turn % 2],
            self.who(turn),
            self.identity,
            time.time(),
            queue_up=True,
        )

    def _enters(self, turn: int) -> int:
        reply = self.connection.transact(self._join(turn), TIMEOUT)
        return reply.revision

    def cost(self, cycle: Cycle, count: int) -> float:
        """Milliseconds of etcd's CPU for each hand-over."""
        before = metrics(self.etcd)["process_cpu_seconds_total"]
        for _ in range(count):
            self.revision = self.send(cycle.give())
            self.connection.transact(cycle.enter(), TIMEOUT)
        after = metrics(self.etcd)["process_cpu_seconds_total"]
        return (after - before) / count * 1000


KINDS: dict[str, Callable[[Bench], Cycle]] = {
    "two transactions of one put: the floor": lambda bench: bench.puts(),
    "our six writes (two are deletes)": lambda bench: bench.writes(),
    "... attached to leases": lambda bench: bench.writes(bench.leases[0]),
    "... with a list of 32 who wait in the grant message": lambda b: b.writes(b.leases[0], 32),
    "... with our nine conditions, and JOIN's two reads": lambda bench: bench.conditions(32),
    "PASS and JOIN as they are: conditions nested, records": lambda bench: bench.ours(32),
    "PASS and JOIN of two clients: no list in the grant message": lambda bench: bench.ours(),
}


def measure(etcd: EtcdServer, rounds: int, count: int) -> dict[str, list[float]]:
    """Each kind's milliseconds for a hand-over, one for each round."""
    bench = Bench(etcd)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    try:
        for _ in range(rounds):
            for kind, make in KINDS.items():
                found[kind].append(bench.cost(make(bench), count))
    finally:
        bench.connection.close()
    return found


def table(found: dict[str, list[float]]) -> list[list[str]]:
    """For people: the medians, and of the first."""
    first = next(iter(found.values()))
    lines = [["a hand-over's two transactions", "etcd's CPU, ms", "of the floor"]]
    for kind, values in found.items():
        ratio = statistics.median(one / floor for one, floor in zip(values, first, strict=True))
        lines.append([kind, f"{statistics.median(values):.2f}", f"{ratio:.2f}"])
    return lines


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--count",
        type=int,
        default=1000,
        help="hand-overs of a kind in a round, at least 200: "
        "etcd counts its CPU time in steps of 10 ms",
    )
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    options = parser.parse_args()
    book = Book(options.json)
    with fresh_etcd() as etcd:
        found = measure(etcd, options.rounds, options.count)
    lines = table(found)
    book.put("parts", {"machine": machine(), "rounds": found, "table": lines})
    for title, cost, ratio in lines:
        print(f"{title:55} {cost:>15} {ratio:>13}")


if __name__ == "__main__":
    main()
