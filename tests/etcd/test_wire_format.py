"""What is written by hand in protobuf's wire format is what protobuf's own messages write."""

from __future__ import annotations

import random
from typing import Literal

import pytest

from etcdsem.core.commands import Compare, Delete, Operation, Put, Range, Txn
from etcdsem.etcd import rpc
from etcdsem.etcd.encode import encode, encode_range

RESULTS = {
    "=": rpc.Compare.EQUAL,
    "!=": rpc.Compare.NOT_EQUAL,
    ">": rpc.Compare.GREATER,
    "<": rpc.Compare.LESS,
}
TARGETS: tuple[Literal["create", "mod", "version", "lease", "value"], ...]
TARGETS = ("create", "mod", "version", "lease", "value")
OPS: tuple[Literal["=", "!=", "<", ">"], ...] = ("=", "!=", "<", ">")
NUMBERS = (0, 1, 127, 128, 300, 16383, 16384, 2**31, 2**53, 2**62 + 5)


def as_message(txn: Txn) -> rpc.TxnRequest:
    """The same, built of messages."""
    request = rpc.TxnRequest()
    fill(request, txn)
    return request


def fill(request: rpc.TxnRequest, txn: Txn) -> None:
    """Field by field."""
    for one in txn.compare:
        compare = request.compare.add()
        compare.result = RESULTS[one.op]
        compare.target = getattr(rpc.Compare, one.target.upper())
        compare.key = one.key
        if one.end:
            compare.range_end = one.end
        suffix = "_revision" if one.target in ("create", "mod") else ""
        to = one.value if one.target == "value" else one.number
        setattr(compare, one.target + suffix, to)
    for operation in txn.success:
        add(request.success.add(), operation)
    for operation in txn.failure:
        add(request.failure.add(), operation)


def add(message: rpc.RequestOp, operation: Operation) -> None:
    """One operation."""
    match operation:
        case Put(key, value, lease):
            message.request_put.key = key
            message.request_put.value = value
            message.request_put.lease = lease
        case Delete(key, end):
            message.request_delete_range.key = key
            message.request_delete_range.range_end = end
        case Range():
            message.request_range.CopyFrom(encode_range(operation, 0))
        case Txn():
            message.request_txn.SetInParent()
            fill(message.request_txn, operation)


def drawn(rng: random.Random, depth: int) -> Txn:
    """Some transaction."""

    def key() -> bytes:
        return rng.randbytes(rng.choice((1, 5, 40, 127, 128, 200)))

    def compare() -> Compare:
        end = rng.choice((b"", key()))
        target, op, number = rng.choice(TARGETS), rng.choice(OPS), rng.choice(NUMBERS)
        value = rng.randbytes(rng.choice((0, 1, 127, 128)))
        return Compare(key(), target, op, number, end=end, value=value)

    def operation() -> Operation:
        kinds = ["put", "delete", "range", "txn", "txn"] if depth else ["put", "delete", "range"]
        match rng.choice(kinds):
            case "put":
                size = rng.choice((0, 3, 300, 20_000))
                return Put(key(), rng.randbytes(size), rng.choice(NUMBERS))
            case "delete":
                return Delete(key(), rng.choice((b"", key())))
            case "range":
                flags = [rng.random() < 0.5 for _ in range(3)]
                limit = rng.choice((0, 1, 32, 500))
                return Range(key(), rng.choice((b"", key())), limit, *flags)
        return drawn(rng, depth - 1)

    return Txn(
        tuple(compare() for _ in range(rng.randrange(4))),
        tuple(operation() for _ in range(rng.randrange(4))),
        tuple(operation() for _ in range(rng.randrange(3))),
    )


@pytest.mark.parametrize("seed", range(100))
def test_bytes_are_those_of_messages(seed: int) -> None:
    """Any transaction, to the byte."""
    txn = drawn(random.Random(seed), 4)
    assert encode(txn) == as_message(txn).SerializeToString(deterministic=True)


def test_an_empty_one() -> None:
    """Nothing is nothing."""
    assert encode(Txn((), ())) == b""
