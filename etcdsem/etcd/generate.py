"""``python -m etcdsem.etcd.generate`` creates ``rpc.binpb`` and ``rpc.pyi`` from ``rpc.proto``.

We ship a descriptor instead of generated code: generated code rejects every protobuf runtime that
is older than its compiler, while a descriptor works with all of them. Requires grpcio-tools.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent


def generate() -> dict[str, bytes]:
    """The contents of the generated files, by name."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        arguments = [
            "protoc",
            f"--proto_path={_HERE}",
            f"--descriptor_set_out={made / 'rpc.binpb'}",
            f"--pyi_out={made}",
            "rpc.proto",
        ]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc failed; its message is above")
        (file,) = FileDescriptorSet.FromString((made / "rpc.binpb").read_bytes()).file
        return {
            "rpc.binpb": file.SerializeToString(deterministic=True),
            "rpc.pyi": (made / "rpc_pb2.pyi").read_bytes(),
        }


if __name__ == "__main__":
    for name, content in generate().items():
        (_HERE / name).write_bytes(content)
        sys.stdout.write(f"{name}: {len(content)} bytes\n")
