"""The core's transactions as etcd's messages, and etcd's answers as the core's data."""

from __future__ import annotations

from typing import Any

from etcdsem.core.commands import (
    Compare,
    Delete,
    DeleteReply,
    Event,
    KeyValue,
    Operation,
    Put,
    PutReply,
    Range,
    RangeReply,
    Reply,
    Txn,
    TxnReply,
)
from etcdsem.etcd import rpc

_RESULT = {
    "=": rpc.Compare.EQUAL,
    "!=": rpc.Compare.NOT_EQUAL,
    ">": rpc.Compare.GREATER,
    "<": rpc.Compare.LESS,
}
_TARGET = {
    "create": (rpc.Compare.CREATE, "create_revision"),
    "mod": (rpc.Compare.MOD, "mod_revision"),
    "version": (rpc.Compare.VERSION, "version"),
    "lease": (rpc.Compare.LEASE, "lease"),
}


def encode(txn: Txn) -> rpc.TxnRequest:
    """A transaction as a message."""
    request = rpc.TxnRequest()
    _fill(request, txn)
    return request


def _fill(request: rpc.TxnRequest, txn: Txn) -> None:
    for compare in txn.compare:
        _compare(request.compare.add(), compare)
    for operation in txn.success:
        _operation(request.success.add(), operation)
    for operation in txn.failure:
        _operation(request.failure.add(), operation)


def _compare(message: rpc.Compare, compare: Compare) -> None:
    target, field = _TARGET[compare.target]
    message.result = _RESULT[compare.op]
    message.target = target
    message.key = compare.key
    if compare.end:
        message.range_end = compare.end
    setattr(message, field, compare.number)  # also when 0: etcd looks at which field is set


def _operation(message: rpc.RequestOp, operation: Operation) -> None:
    if isinstance(operation, Put):
        put = message.request_put
        put.key, put.value = operation.key, operation.value
        if operation.lease:
            put.lease = operation.lease
    elif isinstance(operation, Txn):
        message.request_txn.SetInParent()
        _fill(message.request_txn, operation)
    elif isinstance(operation, Delete):
        message.request_delete_range.key = operation.key
        if operation.end:
            message.request_delete_range.range_end = operation.end
    else:
        _range(message.request_range, operation)


def _range(message: rpc.RangeRequest, scan: Range) -> None:
    message.key = scan.key
    if scan.end:
        message.range_end = scan.end
    if scan.limit:
        message.limit = scan.limit
    if scan.oldest_first:
        message.sort_order = rpc.RangeRequest.ASCEND
        message.sort_target = rpc.RangeRequest.CREATE
    if scan.keys_only:
        message.keys_only = True
    if scan.count_only:
        message.count_only = True


def encode_range(operation: Operation, revision: int) -> rpc.RangeRequest:
    """A read as a request of its own; `revision` 0 reads the present."""
    if not isinstance(operation, Range):
        raise AssertionError(f"only reads go without a transaction: {operation}")
    request = rpc.RangeRequest(revision=revision)
    _range(request, operation)
    return request


def decode_range(found: rpc.RangeResponse) -> RangeReply:
    """Etcd's answer to a read."""
    return RangeReply(tuple([key_value(kv) for kv in found.kvs]), found.count)


def decode(response: rpc.TxnResponse) -> TxnReply:
    """Etcd's answer to a transaction."""
    return TxnReply(
        response.succeeded,
        response.header.revision,
        tuple([_reply(one) for one in response.responses]),
    )


def _reply(message: rpc.ResponseOp) -> Reply:
    kind = message.WhichOneof("response")
    if kind == "response_put":
        return PutReply()
    if kind == "response_txn":
        return decode(message.response_txn)
    if kind == "response_delete_range":
        return DeleteReply(message.response_delete_range.deleted)
    return decode_range(message.response_range)


def key_value(kv: Any) -> KeyValue:
    """A key as etcd tells it."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def event(message: rpc.Event) -> Event:
    """What a watch tells."""
    kind = message.type == rpc.Event.DELETE
    return Event("delete" if kind else "put", key_value(message.kv))
