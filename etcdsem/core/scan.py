"""Reads what is under a prefix, for many names at a time."""

from __future__ import annotations

from etcdsem.core import transactions
from etcdsem.core.commands import KeyValue, Procedure, Range, Txn
from etcdsem.core.retry import read
from etcdsem.core.session import Session
from etcdsem.errors import InvalidName
from etcdsem.validation import check_name

READ_TOGETHER = 60
"""Names of which two keys each are read in one transaction: etcd allows 128 operations."""


def keys_by_name(session: Session, prefix: str) -> Procedure[dict[str, list[KeyValue]]]:
    """All keys under a prefix, without their values, by the name that they belong to, in the order
    of etcd. Keys that belong to no valid name are left out.
    """
    start = f"{prefix}/".encode()
    scan = Range(start, start[:-1] + b"0", keys_only=True)
    reply = yield from read(session, Txn((), (scan,)))
    found: dict[str, list[KeyValue]] = {}
    for kv in transactions.as_range(reply.replies[0]).kvs:
        name = kv.key[len(start) :].split(b"/")[0].decode("utf-8", "replace")
        found.setdefault(name, []).append(kv)
    return {name: kvs for name, kvs in found.items() if _is_valid(name)}


def _is_valid(name: str) -> bool:
    try:
        check_name(name)
    except InvalidName:
        return False
    return True
