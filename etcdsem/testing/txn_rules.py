"""Which transactions etcd rejects, regardless of the stored keys."""

from __future__ import annotations

from collections.abc import Iterable

from etcdsem.core.commands import Delete, Operation, Put, Refused, Txn

MAX_OPERATIONS = 128
"""etcd's --max-txn-ops: for each level the longest of its three lists, minus those above it."""

DUPLICATE_KEY = "etcdserver: duplicate key given in txn request"
TOO_MANY_OPERATIONS = "etcdserver: too many operations in txn request"
EMPTY_KEY = "etcdserver: key is not provided"


def check_operations(txn: Txn, allowed: int = MAX_OPERATIONS) -> None:
    """Reject too many operations, and empty keys."""
    count = max(len(txn.compare), len(txn.success), len(txn.failure))
    if count > allowed:
        raise Refused(TOO_MANY_OPERATIONS)
    for compare in txn.compare:
        if not compare.key:
            raise Refused(EMPTY_KEY)
    for branch in (txn.success, txn.failure):
        for operation in branch:
            if isinstance(operation, Txn):
                check_operations(operation, allowed - count)
            elif not operation.key:
                raise Refused(EMPTY_KEY)


_Interval = tuple[bytes, bytes]


def check_intervals(operations: Iterable[Operation]) -> tuple[set[bytes], list[_Interval]]:
    """The keys that are put and the ranges that are deleted; no key may be written twice.

    A copy of etcd's `checkIntervals` (v3rpc/key.go), including its gaps: the deletes of a nested
    transaction are checked against the puts that follow it, but not against those before it.
    """
    deleted: list[_Interval] = []
    puts: set[bytes] = set()
    direct: list[bytes] = []
    nested: list[Txn] = []
    for operation in operations:
        if isinstance(operation, Put):
            direct.append(operation.key)
        elif isinstance(operation, Txn):
            nested.append(operation)
        elif isinstance(operation, Delete):
            deleted.append((operation.key, operation.end or operation.key + b"\0"))
    for txn in nested:
        then_puts, then_deleted = check_intervals(txn.success)
        else_puts, else_deleted = check_intervals(txn.failure)
        if not puts.isdisjoint(then_puts) or not puts.isdisjoint(else_puts - then_puts):
            raise Refused(DUPLICATE_KEY)
        both = then_puts | else_puts
        if deleted and any(_hits(deleted, key) for key in both):
            raise Refused(DUPLICATE_KEY)
        puts |= both
        deleted += then_deleted
        deleted += else_deleted
    for key in direct:
        if key in puts or (deleted and _hits(deleted, key)):
            raise Refused(DUPLICATE_KEY)
        puts.add(key)
    return puts, deleted


def _hits(intervals: list[_Interval], key: bytes) -> bool:
    # An end of "\0" has no special meaning here: etcd overlooks that it means "to the last key".
    return any(start <= key < end for start, end in intervals)
