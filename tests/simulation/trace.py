"""Events of a run in short form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from etcdsem.core.commands import (
    Compare,
    Delete,
    Event,
    GrantLease,
    KeyValue,
    Operation,
    Put,
    Range,
    RangeReply,
    RevokeLease,
    Transact,
    Txn,
    TxnReply,
)


def brief(thing: Any) -> str:
    """The short form of anything that a trace may contain."""
    match thing:
        case str():
            return thing
        case float():
            return f"{thing:.4f}"
        case Transact():
            return _txn(thing.txn)
        case Txn():
            return _txn(thing)
        case GrantLease():
            return f"GRANT {thing.lease_id:x} {thing.ttl}"
        case RevokeLease():
            return f"REVOKE {thing.lease_id:x}"
        case TxnReply():
            return f"@{thing.revision} {_reply(thing)}"
        case Event():
            return f"{thing.kind} {_kv(thing.kv)}"
        case list() | tuple() if thing and isinstance(thing[0], Event):
            return "; ".join(map(brief, thing))
        case BaseException():
            return repr(thing)
    return repr(thing)


def _key(key: bytes) -> str:
    parts = key.decode("utf-8", "replace").split("/")[2:]
    return "/".join(part[-6:] if len(part) > 12 else part for part in parts)


def _kv(kv: KeyValue) -> str:
    return f"{_key(kv.key)}(c{kv.create_revision} m{kv.mod_revision} l{kv.lease & 0xFFFFFF:06x})"


def _compare(compare: Compare) -> str:
    end = f"..{_key(compare.end)}" if compare.end else ""
    return f"{compare.target}({_key(compare.key)}{end}){compare.op}{compare.number}"


def _operation(operation: Operation) -> str:
    match operation:
        case Put():
            return f"put {_key(operation.key)} l{operation.lease & 0xFFFFFF:06x}"
        case Delete():
            return f"del {_key(operation.key)}"
        case Range():
            return f"get {_key(operation.key)}"
        case Txn():
            return _txn(operation)
    raise AssertionError(f"no such operation: {operation}")


def _operations(operations: Iterable[Operation]) -> str:
    return ", ".join(map(_operation, operations))


def _txn(txn: Txn) -> str:
    when = " & ".join(map(_compare, txn.compare))
    otherwise = f" ELSE {_operations(txn.failure)}" if txn.failure else ""
    return f"[IF {when} THEN {_operations(txn.success)}{otherwise}]"


def _reply(reply: Any) -> str:
    match reply:
        case TxnReply():
            inner = ", ".join(map(_reply, reply.replies))
            return f"{'yes' if reply.succeeded else 'no'}({inner})"
        case RangeReply():
            return f"{reply.count}:" + " ".join(map(_kv, reply.kvs))
    return "ok"
