"""What really happened to a semaphore: the whole history of its keys, read back from etcd itself.

etcd keeps every revision until it is compacted, so the truth is read after the fact, with etcdctl
(not with the code under test), and judged revision by revision.
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from etcdsem.core.commands import KeyValue
from etcdsem.core.keys import read_limit


class Etcd(Protocol):
    """An etcd member, in a process or in a container."""

    @property
    def endpoint(self) -> str: ...

    @property
    def etcdctl_binary(self) -> str: ...

    def etcdctl(self, *arguments: str) -> str: ...


@dataclass(frozen=True)
class Change:
    """A key was put or deleted at a revision."""

    revision: int
    kind: str
    key: str
    value: bytes
    created: int
    lease: int


@dataclass
class Verdict:
    """The result of judging a history."""

    revisions: int = 0
    grants: int = 0
    handed_over: int = 0
    most_held: int = 0
    wrong: list[str] = field(default_factory=list)
    left: dict[str, Change] = field(default_factory=dict)


def read_history(etcd: Etcd, name: str) -> list[Change]:
    """All changes below a semaphore's prefix, from its first revision to now."""
    return read_history_since(etcd, name, 1)[0]


def read_history_since(etcd: Etcd, name: str, since: int) -> tuple[list[Change], int]:
    """The changes from a revision on, and the revision up to which they are complete."""
    base = f"/etcdsem/{name}/"
    end = f"{base}~end-of-history"
    mark = f"{time.time_ns()}"  # distinguishes this end from that of an earlier reading
    etcd.etcdctl("put", end, mark)
    command = [etcd.etcdctl_binary, "watch", f"--rev={since}", "--prefix", base, "-w", "json"]
    environment = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": etcd.endpoint}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment
    )
    changes: list[Change] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            for change in _changes(json.loads(line)):
                if change.key != end:
                    changes.append(change)
                elif change.value == mark.encode():
                    etcd.etcdctl("del", end)
                    return changes, change.revision
    finally:
        process.kill()
        process.wait()
    raise AssertionError("etcdctl watch ended before the end of the history")


def _changes(answer: dict[str, Any]) -> Iterator[Change]:
    if answer.get("CompactRevision"):
        raise AssertionError("the history was compacted away")
    for event in answer.get("Events") or ():
        kv = event["kv"]
        yield Change(
            revision=int(kv["mod_revision"]),
            kind="delete" if event.get("type") in (1, "DELETE") else "put",
            key=base64.b64decode(kv["key"]).decode(),
            value=base64.b64decode(kv.get("value", "")),
            created=int(kv.get("create_revision", 0)),
            lease=int(kv.get("lease", 0)),
        )


def _room(change: Change) -> int:
    """Number of slots that the stored limit allows."""
    return read_limit(KeyValue(b"", change.value, 1, 1)).room


def judge(changes: list[Change], name: str) -> Verdict:
    """Check the limit, the tokens and the order at every revision."""
    base = f"/etcdsem/{name}/"
    verdict = Verdict()
    keys: dict[str, Change] = {}
    limit = 0
    last_token: dict[str, int] = {}
    for revision, together in groupby(changes, key=lambda change: change.revision):
        verdict.revisions += 1
        before = dict(keys)
        batch = list(together)
        for change in batch:
            if change.kind == "delete":
                keys.pop(change.key, None)
            else:
                keys[change.key] = change
        if f"{base}max_leases" in keys:
            limit = _room(keys[f"{base}max_leases"])
        held_before = sum(key.startswith(f"{base}leases/") for key in before)
        held = sum(key.startswith(f"{base}leases/") for key in keys)
        verdict.most_held = max(verdict.most_held, held)
        if held > max(limit, held_before):
            verdict.wrong.append(f"revision {revision}: {held} held, the limit is {limit}")
        grants = [
            change
            for change in batch
            if change.kind == "put" and change.key.startswith(f"{base}leases/")
        ]
        together_granted = {change.lease for change in grants}
        for change in grants:
            _judge_grant(change, together_granted, before, keys, base, last_token, verdict)
    verdict.left = keys
    return verdict


def _judge_grant(
    change: Change,
    together: set[int],
    before: dict[str, Change],
    after: dict[str, Change],
    base: str,
    last_token: dict[str, int],
    verdict: Verdict,
) -> None:
    verdict.grants += 1
    if change.lease == 0:
        verdict.wrong.append(f"revision {change.revision}: {change.key} has no lease")
    if change.revision <= last_token.get(change.key, 0):
        verdict.wrong.append(f"revision {change.revision}: {change.key}: the token did not grow")
    last_token[change.key] = change.revision
    waiting = {key: waiter for key, waiter in before.items() if key.startswith(f"{base}waiters/")}
    served = [key for key in waiting if _lease(key) == change.lease]
    if not served:
        if waiting:
            verdict.wrong.append(f"revision {change.revision}: {change.key} overtook the line")
        if change.key in before:
            verdict.wrong.append(f"revision {change.revision}: {change.key} was held already")
        return
    verdict.handed_over += 1
    # One transaction may serve several waiters, and several may have joined in one revision.
    for waiter in sorted(waiting.values(), key=_place):
        if _place(waiter) < _place(waiting[served[0]]) and _lease(waiter.key) not in together:
            if _record(waiting[served[0]]).get("eager") and _record(waiter).get("weight", 1) > 1:
                break  # the others are behind that one
            verdict.wrong.append(
                f"revision {change.revision}: {served[0]} came before {waiter.key}; "
                f"line {sorted((w.created, w.key) for w in waiting.values())}, served {together}"
            )
    if served[0] in after:
        verdict.wrong.append(f"revision {change.revision}: {served[0]} holds and still waits")


def _record(waiter: Change) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(waiter.value)
    return fields


def _place(waiter: Change) -> tuple[int, int]:
    """The sort key of the queue: by priority, then in order of arrival."""
    return -_record(waiter).get("priority", 0), waiter.created


def _lease(waiter: str) -> int:
    return int(waiter.rsplit("/", 1)[1], 16)


def assert_clean(etcd: Etcd, name: str) -> Verdict:
    """Read and judge the history; nothing may be wrong, and nothing left except the limit."""
    verdict = judge(read_history(etcd, name), name)
    assert not verdict.wrong, verdict.wrong[:10]
    assert set(verdict.left) <= {f"/etcdsem/{name}/max_leases"}, sorted(verdict.left)
    return verdict
