"""Which of the targets are met: ``python -m tests.benchmarks.verdicts found.json``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.book import Book
from tests.benchmarks.rows import contended, floor_of, uncontended

CLIENTS = (2, 10, 50, 200, 500, 1000)
DURABLE = ("etcd3 Lock", "kazoo")
KINDS = ("etcdsem", "etcdsem asyncio")


class Verdict(NamedTuple):
    """A target, and what was measured. `met` is None where nothing was."""

    target: str
    wanted: str
    found: str
    met: bool | None

    def __str__(self) -> str:
        word = {True: "met", False: "MISSED", None: "-"}[self.met]
        return f"{word:7} {self.target}: {self.found or 'not measured'} (wanted: {self.wanted})"


def verdicts(book: Book) -> list[Verdict]:
    """All of them, in the order of the targets."""
    return [verdict for look in _LOOKS for verdict in look(book)]


def report(book: Book) -> str:
    """For people to read."""
    found = verdicts(book)
    counts = [sum(one.met is kind for one in found) for kind in (True, False, None)]
    lines = [*map(str, found), ""]
    lines.append(f"met: {counts[0]}   missed: {counts[1]}   not measured: {counts[2]}")
    return "\n".join(lines)


def _at_least(target: str, wanted: float, found: float | None, unit: str = "") -> Verdict:
    met = None if found is None else found >= wanted
    shown = "" if found is None else f"{found:.2f}{unit}"
    return Verdict(target, f"at least {wanted:g}{unit}", shown, met)


def _at_most(target: str, wanted: float, found: float | None, unit: str = "") -> Verdict:
    met = None if found is None else found <= wanted
    shown = "" if found is None else f"{found:.2f}{unit}"
    return Verdict(target, f"at most {wanted:g}{unit}", shown, met)


def _each(
    target: str, wanted: str, found: dict[int, float], fits: Callable[[float], bool]
) -> Verdict:
    """One figure for each number of clients: all must fit."""
    shown = ", ".join(f"{clients}: {value:.3g}" for clients, value in found.items())
    return Verdict(target, wanted, shown, all(map(fits, found.values())) if found else None)


def _known(pairs: Iterable[tuple[int, float | None]]) -> dict[int, float]:
    return {clients: value for clients, value in pairs if value is not None}


def _one_thread(book: Book) -> Iterator[Verdict]:
    row = uncontended(1)
    for name in KINDS:
        who = "one task" if "asyncio" in name else "one thread"
        against = ((row, name), (row, floor_of(name, row)))
        yield _at_least(f"{who}, of the floor of two transactions", 1.3, book.ratio(*against))
        yield _at_most(f"{who}: etcd's CPU, of that floor's", 1.0, book.ratio(*against, "etcd_ms"))
        yield _at_least(f"{who}, of Dask", 1.0, book.ratio((row, name), (row, "dask")))
        lingering = (row, name.replace("etcdsem", "etcdsem linger"))
        yield _at_least(f"{who} with linger, of without", 20.0, book.ratio(lingering, (row, name)))


def _many(book: Book) -> Iterator[Verdict]:
    for clients in (16, 64):
        row = uncontended(clients)
        for name in KINDS:
            who = f"{clients} {'tasks' if 'asyncio' in name else 'threads'}"
            ratio = book.ratio((row, name), (row, floor_of(name, row)))
            yield _at_least(f"{who}, of the floor without batching", 1.3, ratio)
            if clients == 64:
                yield _at_least(f"{who}, of Dask", 4.0, book.ratio((row, name), (row, "dask")))


def _hand_over(book: Book) -> Iterator[Verdict]:
    for limit in (1, 5):
        for name in KINDS:
            titles = {n: contended(limit, n) for n in CLIENTS if n > limit}
            where = f"{kind(name)}, limit {limit}"
            ratios = {n: book.ratio((t, name), (t, floor_of(name, t))) for n, t in titles.items()}
            yield _each(
                f"{where}: hand-overs, of the queue floor",
                "at least 0.8 each",
                _known(ratios.items()),
                lambda ratio: ratio >= 0.8,
            )
            flat = book.ratio((titles.get(1000, ""), name), (titles.get(10, ""), name))
            yield _at_least(f"{where}: 1,000 clients, of 10 clients", 0.8, flat)
            jains = _known((n, _fairness(book, t, name, "jain")) for n, t in titles.items())
            yield _each(
                f"{where}: Jain's index", "at least 0.99 each", jains, lambda jain: jain >= 0.99
            )
            starved = _known((n, _fairness(book, t, name, "starved")) for n, t in titles.items())
            yield _each(f"{where}: starved clients", "none", starved, lambda count: count == 0)
            cpus = {
                n: book.ratio((t, name), (t, floor_of(name, t)), "etcd_ms")
                for n, t in titles.items()
            }
            yield _each(
                f"{where}: etcd's CPU for each hand-over, of the queue floor's",
                "at most 1.2 each",
                _known(cpus.items()),
                lambda ratio: ratio <= 1.2,
            )


def _fairness(book: Book, row: str, name: str, field: str) -> float | None:
    """From the run that is long enough for it, where there is one."""
    for one in book.parts.get("fairness", {}).get("rows", ()):
        if (one["row"], one["contestant"]) == (row, name):
            return float(one[field])
    return book.median(row, name, field)


def kind(name: str) -> str:
    """Ours, in a word."""
    return "asyncio" if "asyncio" in name else "threads"


def _peers(book: Book) -> Iterator[Verdict]:
    for peer in ("dask", *DURABLE):
        found = _known(
            (n, book.ratio((contended(1, n), "etcdsem"), (contended(1, n), peer)))
            for n in CLIENTS[1:]
        )
        lasting = "durable" if peer in DURABLE else "not durable"
        yield _each(
            f"limit 1, of {peer} ({lasting})", "more than 1 each", found, lambda ratio: ratio > 1
        )


def _cost(book: Book) -> Iterator[Verdict]:
    for name in KINDS:
        for field, least, most in (("commits", 2.0, 2.1), ("events", 1.0, 1.1)):
            found = _known((n, book.median(contended(1, n), name, field)) for n in (10, 500))
            yield _each(
                f"{kind(name)}, limit 1: {field} for each contended cycle",
                f"{least} to {most}",
                found,
                lambda value, least=least, most=most: least <= round(value, 2) <= most,  # type: ignore[misc]
            )


def _asyncio(book: Book) -> Iterator[Verdict]:
    for clients, wanted in ((1, 1 / 1.3), (16, 1.0), (64, 1.0)):
        row = uncontended(clients)
        ratio = book.ratio((row, "etcdsem asyncio"), (row, "etcdsem"))
        yield _at_least(f"asyncio with {clients}, of threads", round(wanted, 2), ratio)


def _part(book: Book, part: str, key: str) -> Any:
    return book.parts.get(part, {}).get(key)


def _memory(book: Book) -> Iterator[Verdict]:
    yield _at_most("a waiting task", 10, _part(book, "memory", "task_kb"), " kB")
    yield _at_most("an idle client", 2, _part(book, "memory", "client_mb"), " MB")
    process = _part(book, "memory", "process_mb")
    yield _at_most("a process with one client", 24, process, " MB")
    seconds, grows = _part(book, "churn", "seconds"), _part(book, "churn", "grows")
    found = "" if grows is None else (f"{', '.join(grows) or 'nothing'} grew in {seconds:.0f} s")
    met = None if grows is None else not grows and seconds >= 3500
    yield Verdict("an hour of churn", "nothing grows", found, met)


def _start(book: Book) -> Iterator[Verdict]:
    run, bare = _part(book, "start", "run"), _part(book, "start", "python")
    wanted = 0.30 if bare is None else round(0.30 * max(1.0, bare / 0.02), 2)
    yield _at_most(
        "etcdsem run x -- true (0.30 s where python -c pass takes 0.02 s)", wanted, run, " s"
    )
    before = _part(book, "start", "before")
    ratio = None if run is None or not before else run / before
    yield _at_most("the same, of the time of the last release with grpcio", 0.75, ratio)


def _crash(book: Book) -> Iterator[Verdict]:
    ttl, worst = _part(book, "crash", "ttl"), _part(book, "crash", "worst")
    yield _at_most("a killed holder's slot is granted again, worst", (ttl or 5) + 1, worst, " s")


_LOOKS: tuple[Callable[[Book], Iterator[Verdict]], ...] = (
    _one_thread,
    _many,
    _hand_over,
    _peers,
    _cost,
    _asyncio,
    _memory,
    _start,
    _crash,
)

if __name__ == "__main__":
    print(report(Book(Path(sys.argv[1]))))
