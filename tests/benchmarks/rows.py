"""What is measured: rows, and who takes part in each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.benchmarks import peers

FLOORS = {
    "floor two": "tests.benchmarks.floors:two",
    "floor two asyncio": "tests.benchmarks.floors:two_async",
    "floor baton": "tests.benchmarks.floors:baton",
    "floor queue": "tests.benchmarks.floors:queue_",
    "floor queue asyncio": "tests.benchmarks.floors:queue_async",
}
WIRE = {
    "wire two": "tests.benchmarks.wire_floors:two",
    "wire two asyncio": "tests.benchmarks.wire_floors:two_async",
    "wire queue": "tests.benchmarks.wire_floors:queue_",
    "wire queue asyncio": "tests.benchmarks.wire_floors:queue_async",
}
OURS = {
    "etcdsem": "tests.benchmarks.ours:threads",
    "etcdsem asyncio": "tests.benchmarks.ours:tasks",
}
LINGERING = {
    "etcdsem linger": "tests.benchmarks.ours:lingering_threads",
    "etcdsem linger asyncio": "tests.benchmarks.ours:lingering_tasks",
}
TARGETS = {**FLOORS, **WIRE, **OURS, **LINGERING, **peers.TARGETS}

TURNS = 5
"""Turns that a client should have on average: with fewer, a fair share of 1 or 2 looks unfair."""
_SLOWEST = 900
"""Hand-overs a second that are reckoned with for that."""

_UNCONTENDED = {1: ("dask", "etcd3 Lock", "kazoo"), 16: (), 64: ("dask",)}
_LIMIT_1 = {
    2: ("dask",),
    10: ("dask", "etcd3 Lock", "kazoo"),
    50: ("dask", "etcd3 Lock", "kazoo"),
    200: ("dask", "etcd3 Lock", "kazoo"),
    500: ("dask", "etcd3 Lock", "kazoo"),
    1000: (),
}
_LIMIT_5 = {10: ("dask", "kazoo"), 50: (), 200: (), 500: ("dask",), 1000: ()}
_BLOCKING_ONLY = {(5, 50), (5, 200)}
"""Rows (limit, clients) in which asyncio does not take part, to save time."""


class Row(NamedTuple):
    """One row of the table: how many clients contend for how many slots."""

    title: str
    clients: int
    limit: int
    processes: int
    contestants: tuple[str, ...]

    def seconds(self, contestant: str, seconds: float) -> float:
        """How long a contestant is measured: longer where each client must have some turns."""
        if contestant in peers.TARGETS or self.processes == 1:
            return seconds
        return max(seconds, TURNS * self.clients / _SLOWEST)


def uncontended(clients: int) -> str:
    """The title of a row without contention."""
    return f"uncontended, {clients}"


def contended(limit: int, clients: int) -> str:
    """The title of a row with contention."""
    return f"limit {limit}, {clients} clients"


def rows() -> Iterator[Row]:
    """All of them."""
    blocking = ("floor two", "etcdsem", "wire two")
    two = (*blocking, *(f"{name} asyncio" for name in blocking))
    for clients, others in _UNCONTENDED.items():
        room = 2 * clients  # for all, also while some are on their way
        lingering = LINGERING if clients == 1 else ()
        yield Row(uncontended(clients), clients, room, 1, (*two, *lingering, *others))
    for limit, table in ((1, _LIMIT_1), (5, _LIMIT_5)):
        for clients, others in table.items():
            names = ["floor queue", "etcdsem", "wire queue"]
            if (limit, clients) not in _BLOCKING_ONLY:
                names += ["floor queue asyncio", "etcdsem asyncio", "wire queue asyncio"]
            if limit == 1:
                names.insert(0, "floor baton")
            yield Row(contended(limit, clients), clients, limit, 2, (*names, *others))


QUICK = (uncontended(1), uncontended(16), contended(1, 10), contended(1, 50), contended(5, 10))
"""The rows of `--quick`."""


def chosen(series: str, only: str, quick: bool) -> list[Row]:
    """The rows and contestants that were asked for; floors take part always."""
    found = []
    for row in rows():
        if series not in row.title or (quick and row.title not in QUICK):
            continue
        names = [
            name
            for name in row.contestants
            if (only in name or name in FLOORS or name in WIRE) and not peers.missing(name)
        ]
        found.append(row._replace(contestants=tuple(names)))
    return found


def floor_of(contestant: str, row: str) -> str:
    """The floor that a contestant is held against."""
    base = "floor two" if row.startswith("uncontended") else "floor queue"
    return f"{base} asyncio" if "asyncio" in contestant else base
