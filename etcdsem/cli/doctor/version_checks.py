"""The checks of `doctor` on etcd's version. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from etcdsem.cli.doctor import etcd_versions
from etcdsem.cli.doctor.finding import Level, Verdict
from etcdsem.cli.doctor.probes import ProbeResults


def versions(results: ProbeResults) -> list[str]:
    """Return the versions of the members that answer."""
    return sorted({member.version for member in results.reached} - {""})


def supported(results: ProbeResults) -> Iterator[Verdict]:
    """Report versions that are too old, and those that have no known bugs."""
    for text in versions(results):
        version = etcd_versions.parse(text)
        if version is None:
            yield Verdict("info", f"cannot parse etcd's version {text!r}")
            continue
        if version[:2] < etcd_versions.OLDEST:
            oldest = ".".join(map(str, etcd_versions.OLDEST))
            what = f"etcd {text}: etcdsem supports {oldest} and later"
            yield Verdict("problem", what, _upgrade(results, version))
        if not _known_bugs(results, version):
            yield Verdict("ok", f"etcd {text}: no known bugs that affect semaphores")


def bugs(results: ProbeResults) -> Iterator[Verdict]:
    """Report each known bug."""
    for text in versions(results):
        version = etcd_versions.parse(text)
        for bug in _known_bugs(results, version):
            what = f"etcd {text}: {bug.what} ({bug.source})"
            yield Verdict(_gravity([bug]), what, _upgrade(results, version))


def bugs_in_short(results: ProbeResults) -> Iterator[Verdict]:
    """Report the known bugs of each version in one line."""
    for text in versions(results):
        version = etcd_versions.parse(text)
        known = _known_bugs(results, version)
        if known:
            what = f"etcd {text}: known bugs that affect semaphores: {len(known)}"
            grave = "".join(f"; {bug.what}" for bug in known if bug.grave)
            do = f"{_upgrade(results, version)} (to list the bugs: etcdsem doctor --verbose)"
            yield Verdict(_gravity(known), what + grave, do)


def _known_bugs(
    results: ProbeResults, version: etcd_versions.Version | None
) -> list[etcd_versions.Bug]:
    if version is None:
        return []
    return etcd_versions.known_bugs(version, login=results.user is not None)


def _gravity(found: list[etcd_versions.Bug]) -> Level:
    return "problem" if any(bug.grave for bug in found) else "warning"


def _upgrade(results: ProbeResults, version: etcd_versions.Version | None) -> str:
    if version is None:
        return ""
    best = etcd_versions.recommended(version, login=results.user is not None)
    upgrade = f"upgrade to {etcd_versions.shown(best)} or later"
    if version != etcd_versions.BUNDLED:
        return upgrade
    return f"{upgrade}; the etcd that 'etcdsem[server]' installs is only for trying out"
