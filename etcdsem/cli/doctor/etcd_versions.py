"""Bugs of etcd that a semaphore meets, by version: data, for `doctor`.

Numbers are those of etcd's issue tracker (etcd-io/etcd) or of its security advisories; the
versions are from its changelogs. A line (3.4, 3.5, ...) that is not named in `fixed` has the bug
if it is older than all that are, and does not have it if it is newer.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

Version = tuple[int, int, int]


class Bug(NamedTuple):
    """One bug, and the first version of each line without it."""

    source: str
    what: str
    fixed: tuple[Version, ...]
    since: tuple[Version, ...] = ()
    """The first version of a line that has it, where that is not the line's first."""
    grave: bool = False
    """It can lose or corrupt data."""
    login_only: bool = False
    """It matters where users log in."""


BUGS: Final[tuple[Bug, ...]] = (
    Bug(
        "#13766",
        "data of members differ after a crash",
        ((3, 5, 3),),
        since=((3, 5, 0),),
        grave=True,
    ),
    Bug(
        "#14110, #14891",
        "a member can crash when a client gives up a transaction that only reads",
        ((3, 4, 23), (3, 5, 7)),
    ),
    Bug(
        "#15247",
        "a leader that was stalled revokes leases that are alive, also some seconds later",
        ((3, 4, 31), (3, 5, 13)),
    ),
    Bug(
        "#20418, #21375",
        "reads can be stale after a process was paused, and at a change of leaders",
        ((3, 4, 42), (3, 5, 28), (3, 6, 9)),
        since=((3, 4, 20), (3, 5, 0)),
    ),
    Bug(
        "changelog of 3.5.23",
        "a keepalive can succeed for a lease that was just revoked",
        ((3, 4, 38), (3, 5, 23), (3, 6, 5)),
    ),
    Bug(
        "changelog of 3.5.8",
        "a watch can go back in time after a snapshot, or lose its progress",
        ((3, 4, 25), (3, 5, 8)),
    ),
    Bug("#17529", "a watch can lose events after a compaction", ((3, 4, 31), (3, 5, 13))),
    Bug("#18089", "a compaction on a deleted key can lose its event", ((3, 4, 34), (3, 5, 16))),
    Bug("#19179", "a delete at the compacted revision can be lost", ((3, 4, 36), (3, 5, 18))),
    Bug(
        "#20221",
        "a watch from a later revision can get earlier events",
        ((3, 4, 38), (3, 5, 22), (3, 6, 2)),
    ),
    Bug("#15402", "watches starve under TLS and heavy reads", ((3, 4, 25), (3, 5, 8))),
    Bug(
        "changelog of 3.5.7",
        "out of space, it refuses transactions that only read or delete",
        ((3, 4, 20), (3, 5, 7)),
    ),
    Bug(
        "CVE-2026-33343",
        "nested transactions pass by a role's limits",
        ((3, 4, 42), (3, 5, 28), (3, 6, 9)),
        login_only=True,
    ),
    Bug(
        "CVE-2026-33413",
        "some requests need no login",
        ((3, 4, 42), (3, 5, 28), (3, 6, 9)),
        login_only=True,
    ),
    Bug(
        "CVE-2026-44283",
        "puts in transactions pass by a role's limits",
        ((3, 4, 44), (3, 5, 30), (3, 6, 11)),
        login_only=True,
    ),
    Bug(
        "GHSA-xg4h-6gfc-h4m8",
        "watches over a range pass by a role's limits",
        ((3, 5, 33), (3, 6, 14), (3, 7, 1)),
        login_only=True,
    ),
)

OLDEST: Final = (3, 4)
"""The oldest line that etcdsem is tested with."""

RECOMMENDED: Final[dict[tuple[int, int], Version]] = {
    (3, 4): (3, 4, 44),
    (3, 5): (3, 5, 30),
    (3, 6): (3, 6, 11),
    (3, 7): (3, 7, 0),
}
RECOMMENDED_WITH_LOGIN: Final[dict[tuple[int, int], Version]] = {
    (3, 5): (3, 5, 33),
    (3, 6): (3, 6, 14),
    (3, 7): (3, 7, 1),
}


def parse(text: str) -> Version | None:
    """``3.5.1`` and ``3.6.0-rc.1`` as numbers; None if it is something else."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def known_bugs(version: Version, *, login: bool) -> list[Bug]:
    """The bugs that this version has and that matter here."""
    return [bug for bug in BUGS if _has(bug, version) and (login or not bug.login_only)]


def recommended(version: Version, *, login: bool) -> Version:
    """The least version of the same line to be recommended, else of the next line that has one."""
    table = RECOMMENDED_WITH_LOGIN if login else RECOMMENDED
    lines = [line for line in sorted(table) if line >= version[:2]]
    return table[lines[0]] if lines else version


def shown(version: Version) -> str:
    """As etcd writes it."""
    return ".".join(map(str, version))


def _has(bug: Bug, version: Version) -> bool:
    line = version[:2]
    begun = [since for since in bug.since if since[:2] == line]
    if bug.since and not begun:
        # it came with a later line, or into each line that is named
        return False if line < min(bug.since)[:2] else _unfixed(bug, version)
    return (not begun or version >= begun[0]) and _unfixed(bug, version)


def _unfixed(bug: Bug, version: Version) -> bool:
    line = version[:2]
    fixed = [one for one in bug.fixed if one[:2] == line]
    if fixed:
        return version < fixed[0]
    return line < min(bug.fixed)[:2]
