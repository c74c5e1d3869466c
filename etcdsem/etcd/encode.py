"""Converts the core's transactions and watches to etcd's messages, and etcd's answers back."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from etcdsem.core.commands import (
    Compare,
    Delete,
    DeleteReply,
    Event,
    Fixed,
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
from etcdsem.core.watchbook import CreateWatch, WatchRequest, WatchResponse
from etcdsem.etcd import rpc

# A transaction is written directly in protobuf's wire format. That takes two thirds of the time of
# filling messages, which was the largest part of ours (`python -m tests.benchmarks.own`). Each
# field is a tag (its number and kind), followed by a number, or by a length and that many bytes.

_RESULT = {"=": 0, ">": 1, "<": 2, "!=": 3}
_TARGET = {"version": 0, "create": 1, "mod": 2, "value": 3, "lease": 4}
_NUMBER = {
    "version": b"\x20",
    "create": b"\x28",
    "mod": b"\x30",
    "value": b"\x3a",
    "lease": b"\x40",
}


def _varint(number: int) -> bytes:
    """A number in groups of seven bits, the lowest first."""
    if number < 0x80:
        return _SMALL[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return _long_varint(number)


@lru_cache(4096)
def _long_varint(number: int) -> bytes:
    """Cached: numbers of leases and revisions recur."""
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


_SMALL = [bytes((number,)) for number in range(0x80)]


def _enum(tag: bytes, number: int) -> bytes:
    return tag + _SMALL[number] if number else b""  # 0 is the default and omitted


_COMPARED = {
    (target, op): (
        _enum(b"\x08", result) + _enum(b"\x10", number) + b"\x1a",
        _NUMBER[target],
    )
    for target, number in _TARGET.items()
    for op, result in _RESULT.items()
}
"""The bytes before the key of a comparison, and before its number or value."""


def encode(txn: Txn) -> bytes:
    """A transaction as a TxnRequest."""
    compare, success, failure = txn
    written = [_compare(one) for one in compare]
    for tag, operations in ((b"\x12", success), (b"\x1a", failure)):
        if not isinstance(operations, Fixed):
            written += [_operation(tag, one) for one in operations]
            continue
        if tag not in operations.encoded:
            operations.encoded[tag] = b"".join([_operation(tag, one) for one in operations])
        written.append(operations.encoded[tag])
    return b"".join(written)


@lru_cache(4096)
def _compare(compare: Compare) -> bytes:
    """A Compare in a TxnRequest."""
    key, target, op, number, end, value = compare
    before_key, before_number = _COMPARED[target, op]
    body = before_key + _varint(len(key)) + key + before_number
    body += _varint(len(value)) + value if target == "value" else _varint(number)
    if end:
        body += b"\x82\x04" + _varint(len(end)) + end
    return b"\x0a" + _varint(len(body)) + body


def _operation(tag: bytes, operation: Operation) -> bytes:
    """A RequestOp in a TxnRequest, in the field with this tag."""
    if isinstance(operation, Put):
        key, value, lease = operation
        body = b"\x0a" + _varint(len(key)) + key
        if value:
            body += b"\x12" + _varint(len(value)) + value
        if lease:
            body += b"\x18" + _varint(lease)
        body = b"\x12" + _varint(len(body)) + body
    elif isinstance(operation, Txn):
        body = encode(operation)
        body = b"\x22" + _varint(len(body)) + body
    else:
        return _same_again(tag, operation)
    return tag + _varint(len(body)) + body


@lru_cache(4096)
def _same_again(tag: bytes, operation: Range | Delete) -> bytes:
    """Operations that are repeated: the reads of a semaphore, and the deletes of its few keys."""
    body = b"\x0a" + _varint(len(operation.key)) + operation.key
    if operation.end:
        body += b"\x12" + _varint(len(operation.end)) + operation.end
    if isinstance(operation, Delete):
        body = b"\x1a" + _varint(len(body)) + body
        return tag + _varint(len(body)) + body
    if operation.limit:
        body += b"\x18" + _varint(operation.limit)
    if operation.oldest_first:
        body += b"\x28\x01\x30\x02"  # ASCEND by CREATE
    if operation.keys_only:
        body += b"\x40\x01"
    if operation.count_only:
        body += b"\x48\x01"
    body = b"\x0a" + _varint(len(body)) + body
    return tag + _varint(len(body)) + body


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
    """A read as a separate request; `revision` 0 reads the present."""
    if not isinstance(operation, Range):
        raise AssertionError(f"only reads can be sent without a transaction: {operation}")
    request = rpc.RangeRequest(revision=revision)
    _range(request, operation)
    return request


def decode_range(found: rpc.RangeResponse) -> RangeReply:
    """Decode the answer to a read."""
    return RangeReply(tuple([key_value(kv) for kv in found.kvs]), found.count)


def decode(response: rpc.TxnResponse) -> TxnReply:
    """Decode the answer to a transaction."""
    return TxnReply(
        response.succeeded,
        response.header.revision,
        tuple([_reply(one) for one in response.responses]),
    )


_PUT = PutReply()


def _reply(message: rpc.ResponseOp) -> Reply:
    kind = message.WhichOneof("response")
    if kind == "response_put":
        return _PUT
    if kind == "response_txn":
        return decode(message.response_txn)
    if kind == "response_delete_range":
        return DeleteReply(message.response_delete_range.deleted)
    return decode_range(message.response_range)


def key_value(kv: Any) -> KeyValue:
    """Decode a key and its value."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def event(message: rpc.Event) -> Event:
    """Decode a watch event."""
    kind = message.type == rpc.Event.DELETE
    return Event("delete" if kind else "put", key_value(message.kv))


_FILTER = {"delete": rpc.WatchCreateRequest.NOPUT, "put": rpc.WatchCreateRequest.NODELETE}


def watch_request(request: WatchRequest) -> rpc.WatchRequest:
    """Encode a request on a watch stream."""
    if not isinstance(request, CreateWatch):
        cancel = rpc.WatchCancelRequest(watch_id=request.id)
        return rpc.WatchRequest(cancel_request=cancel)
    create = rpc.WatchCreateRequest(
        key=request.key,
        range_end=request.end,
        start_revision=request.start,
        watch_id=request.id,
    )
    if request.only is not None:
        create.filters.append(_FILTER[request.only])
    return rpc.WatchRequest(create_request=create)


def watch_response(message: rpc.WatchResponse) -> WatchResponse:
    """Decode a response on a watch stream."""
    return WatchResponse(
        message.watch_id,
        message.header.revision,
        message.created,
        message.canceled,
        message.compact_revision,
        message.cancel_reason,
        [event(one) for one in message.events],
    )
