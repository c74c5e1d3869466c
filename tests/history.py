"""What really happened to a semaphore: its keys' whole history, read back from etcd itself.

etcd keeps every revision until it is compacted, so the truth is read after the fact, through
etcdctl (not through the code under test), and judged revision by revision.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


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
    """What a history shows."""

    revisions: int = 0
    grants: int = 0
    handed_over: int = 0
    most_held: int = 0
    wrong: list[str] = field(default_factory=list)
    left: dict[str, Change] = field(default_factory=dict)


def read_history(etcd: EtcdServer, name: str) -> list[Change]:
    """All changes below a semaphore's prefix, from its first revision to now."""
    base = f"/etcdsem/{name}/"
    end = f"{base}~end-of-history"
    etcd.etcdctl("put", end, "1")
    command = [etcd.etcdctl_binary, "watch", "--rev=1", "--prefix", base, "-w", "json"]
    environment = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": etcd.endpoint}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment
    )
    changes: list[Change] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            for change in _changes(json.loads(line)):
                if change.key == end:
                    etcd.etcdctl("del", end)
                    return changes
                changes.append(change)
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
            limit = int(keys[f"{base}max_leases"].value)
        held_before = sum(key.startswith(f"{base}leases/") for key in before)
        held = sum(key.startswith(f"{base}leases/") for key in keys)
        verdict.most_held = max(verdict.most_held, held)
        if held > max(limit, held_before):
            verdict.wrong.append(f"revision {revision}: {held} held, the limit is {limit}")
        for change in batch:
            if change.kind == "put" and change.key.startswith(f"{base}leases/"):
                _judge_grant(change, before, keys, base, last_token, verdict)
    verdict.left = keys
    return verdict


def _judge_grant(
    change: Change,
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
    served = [key for key in waiting if int(key.rsplit("/", 1)[1], 16) == change.lease]
    if not served:
        if waiting:
            verdict.wrong.append(f"revision {change.revision}: {change.key} overtook the line")
        if change.key in before:
            verdict.wrong.append(f"revision {change.revision}: {change.key} was held already")
        return
    verdict.handed_over += 1
    first = min(waiting.values(), key=lambda waiter: waiter.created)
    if first.key != served[0]:
        verdict.wrong.append(f"revision {change.revision}: {served[0]} came before {first.key}")
    if served[0] in after:
        verdict.wrong.append(f"revision {change.revision}: {served[0]} holds and still waits")


def assert_clean(etcd: EtcdServer, name: str) -> Verdict:
    """Read and judge the history; nothing may be wrong, and nothing left but the limit."""
    verdict = judge(read_history(etcd, name), name)
    assert not verdict.wrong, verdict.wrong[:10]
    assert set(verdict.left) <= {f"/etcdsem/{name}/max_leases"}, sorted(verdict.left)
    return verdict
