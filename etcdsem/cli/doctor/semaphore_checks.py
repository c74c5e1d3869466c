"""The checks of `doctor` on the semaphores. Pure functions.

To add a check, write a function that yields verdicts, and add a row to `CHECKS`.
"""

from __future__ import annotations

import shlex
import string
from collections.abc import Iterator
from typing import Final

from etcdsem.cli.doctor.finding import Check, Finding, Verdict, run_table
from etcdsem.cli.doctor.probes import ProbeResults
from etcdsem.model import Status

_MANY_KEYS: Final = 5
"""Unrecognized keys to list one by one."""

_LITERAL: Final = frozenset(f"{string.ascii_letters}{string.digits}/._-:=@,+")
"""Characters of keys that no shell changes."""


def semaphore_findings(results: ProbeResults) -> Iterator[Finding]:
    """Check each semaphore, and those that have no limit."""
    for name in results.bare:
        yield _bare(name, asked_for=name == results.name)
    sound = 0
    for one in results.semaphores:
        found = run_table(CHECKS, one)
        if one.name in results.stuck:
            found.append(_stuck(one))
        sound += not found
        yield from found
    if sound:
        yield Finding("semaphore", "ok", f"{sound} checked without findings")


def _bare(name: str, *, asked_for: bool) -> Finding:
    do = f"register it: etcdsem run {name} --limit N -- COMMAND"
    if asked_for:
        return Finding("semaphore", "info", f"{name} is not registered", do)
    what = f"{name}: leases without a limit: no more leases are granted"
    return Finding("semaphore", "problem", what, do)


def _stuck(one: Status) -> Finding:
    return Finding(
        "stuck",
        "problem",
        f"{one.name}: {one.held} of {one.max_leases} held, yet {len(one.waiters)} waiting",
        f"check whether the first waiter is alive: etcdsem status {one.name}; if not, "
        f"etcdsem evict {one.name} --lease {one.waiters[0].lease_id}",
    )


def _limit(one: Status) -> Iterator[Verdict]:
    if one.max_leases is None:
        yield Verdict(
            "problem",
            f"{one.name}: the limit is not a number from 0 to 99999: no lease is granted",
            f"etcdsem limit {one.name} N",
        )


def _overbooked(one: Status) -> Iterator[Verdict]:
    if one.max_leases is not None and one.held > one.max_leases:
        yield Verdict(
            "warning",
            f"{one.name}: {one.held} held, limit {one.max_leases}; no lease is granted until "
            "enough are released",
            f"if the limit was lowered, wait; otherwise etcdsem status {one.name}, then "
            f"etcdsem evict {one.name} --slot N",
        )


def _unrecognized_keys(one: Status) -> Iterator[Verdict]:
    keys = [key for key in one.junk if not key.key.endswith("/max_leases")]
    for key in keys[:_MANY_KEYS]:
        what = f"unrecognized key {key.key}: {key.reason}"
        yield Verdict("problem", what, delete_command(key.raw))
    if len(one.junk) > _MANY_KEYS:
        what = f"{one.name}: {len(one.junk)} unrecognized keys in total"
        yield Verdict("problem", what, f"etcdsem status {one.name}")


def delete_command(key: bytes) -> str:
    """Return the command that deletes a key, to be pasted into a shell, whatever the key is."""
    if key.isascii() and key.decode().isprintable():
        return f"etcdctl del {shlex.quote(key.decode())}"
    escaped = "".join(chr(byte) if chr(byte) in _LITERAL else f"\\x{byte:02x}" for byte in key)
    if b"\0" not in key:
        return f"etcdctl del $'{escaped}'"
    # No argument of a program can contain a NUL.
    return f"""printf '\\n%s\\n\\n\\n' 'del "{escaped}"' | etcdctl txn"""


def _owner(one: Status) -> Iterator[Verdict]:
    for holder in one.holders:
        if not holder.owner:
            yield Verdict(
                "warning",
                f"{one.name}: the holder of slot {holder.slot} has no owner (lease "
                f"{holder.lease_id}): the key was created or overwritten by hand",
                f"etcdsem evict {one.name} --slot {holder.slot}",
            )


CHECKS: Final = (
    Check("limit", _limit),
    Check("overbooked", _overbooked),
    Check("junk", _unrecognized_keys),
    Check("owner", _owner),
)
