"""What `doctor` makes of the semaphores that it saw. Plain functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from etcdsem.cli.doctor.finding import Finding
from etcdsem.cli.doctor.probes import ProbeResults
from etcdsem.model import Status

_MANY_JUNK: Final = 5


def check_semaphores(results: ProbeResults) -> Iterator[Finding]:
    """Each semaphore as it was seen."""
    for name in results.bare:
        known = name != results.name
        yield Finding(
            "semaphore",
            "problem" if known else "info",
            f"{name}: leases without a limit: nothing more is granted"
            if known
            else f"{name} is not registered",
            f"etcdsem run {name} --limit N -- COMMAND registers it",
        )
    sound = 0
    for one in results.semaphores:
        found = list(_semaphore(results, one))
        sound += not found
        yield from found
    if sound:
        yield Finding("semaphore", "ok", f"{sound} in order")


def _semaphore(results: ProbeResults, one: Status) -> Iterator[Finding]:
    yield from _limit(one)
    yield from _unrecognized_keys(one)
    yield from _owners(one)
    if one.name in results.stuck:
        yield Finding(
            "stuck",
            "problem",
            f"{one.name}: {one.held} of {one.max_leases} held, and {len(one.waiters)} wait all "
            "the same",
            f"is the first in line alive? etcdsem status {one.name}; if not, "
            f"etcdsem evict {one.name} --lease {one.waiters[0].lease_id}",
        )


def _limit(one: Status) -> Iterator[Finding]:
    if one.max_leases is None:
        yield Finding(
            "limit",
            "problem",
            f"{one.name}: the limit is no number from 0 to 99999: nothing is granted",
            f"etcdsem limit {one.name} N",
        )
    elif one.held > one.max_leases:
        yield Finding(
            "overbooked",
            "warning",
            f"{one.name}: {one.held} held, limit {one.max_leases}; nothing is granted until "
            "enough have left",
            f"wait, if the limit was lowered; else etcdsem status {one.name}, and "
            f"etcdsem evict {one.name} --slot N",
        )


def _unrecognized_keys(one: Status) -> Iterator[Finding]:
    for junk in [one for one in one.junk if not one.key.endswith("/max_leases")][:_MANY_JUNK]:
        yield Finding("junk", "problem", f"{junk.key} {junk.reason}", f"etcdctl del {junk.key!r}")
    if len(one.junk) > _MANY_JUNK:
        yield Finding(
            "junk", "problem", f"{one.name}: {len(one.junk)} such keys in all",
            f"etcdsem status {one.name}",
        )  # fmt: skip


def _owners(one: Status) -> Iterator[Finding]:
    for holder in one.holders:
        if not holder.owner:
            yield Finding(
                "owner",
                "warning",
                f"{one.name}: slot {holder.slot} is held by nobody who says so (lease "
                f"{holder.lease_id}): the key was made or overwritten by hand",
                f"etcdsem evict {one.name} --slot {holder.slot}",
            )
