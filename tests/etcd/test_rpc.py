"""The messages: made again the same, colliding with nobody's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import etcdsem.etcd
from etcdsem.etcd import rpc

HERE = Path(etcdsem.etcd.__file__).parent

COLLIDING = """
from google.protobuf import descriptor_pb2, descriptor_pool
pool = descriptor_pool.Default()
for name, package in (("rpc.proto", "etcdserverpb"), ("kv.proto", "mvccpb"),
                      ("etcdsem/etcd/rpc.proto", "etcdsem.wire")):
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    for message in ("TxnRequest", "RangeRequest", "KeyValue", "Compare"):
        field = file.message_type.add(name=message).field.add(name="other", number=1)
        field.type, field.label = field.TYPE_STRING, field.LABEL_OPTIONAL
    pool.AddSerializedFile(file.SerializeToString())
    pool.FindMessageTypeByName(package + ".TxnRequest")
import sys, etcdsem
with etcdsem.connect(sys.argv[1]) as client, etcdsem.Semaphore(1, sys.argv[2], client=client):
    print("held")
"""


def test_committed_files_are_fresh() -> None:
    """rpc.binpb and rpc.pyi are what rpc.proto gives."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    from etcdsem.etcd.generate import generate

    made = generate()
    assert (HERE / "rpc.binpb").read_bytes() == made["rpc.binpb"]
    assert (HERE / "rpc.pyi").read_bytes() == made["rpc.pyi"]


def test_other_definitions_loaded_first_do_not_matter(etcd: object, name: str) -> None:
    """A process that has others' rpc.proto and etcdserverpb can use us all the same."""
    endpoint = etcd.endpoint  # type: ignore[attr-defined]
    done = subprocess.run(
        [sys.executable, "-c", COLLIDING, endpoint, name],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "held\n", done.stderr


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        ("KeyValue", {"key": 1, "create_revision": 2, "mod_revision": 3, "value": 5, "lease": 6}),
        ("Compare", {"result": 1, "target": 2, "key": 3, "lease": 8, "range_end": 64}),
        ("RequestOp", {"request_range": 1, "request_put": 2, "request_txn": 4}),
        ("RangeRequest", {"limit": 3, "sort_order": 5, "keys_only": 8, "count_only": 9}),
        ("WatchResponse", {"watch_id": 2, "canceled": 4, "compact_revision": 5, "events": 11}),
        ("WatchCreateRequest", {"start_revision": 3, "filters": 5, "watch_id": 7}),
        ("LeaseGrantResponse", {"ID": 2, "TTL": 3, "error": 4}),
    ],
)
def test_field_numbers_are_the_wire_protocols(message: str, numbers: dict[str, int]) -> None:
    """Numbers as in etcd's own definition (api/etcdserverpb/rpc.proto)."""
    fields = getattr(rpc, message).DESCRIPTOR.fields_by_name
    assert {name: fields[name].number for name in numbers} == numbers
