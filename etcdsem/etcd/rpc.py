"""etcd's messages, created from ``rpc.binpb`` in a separate descriptor pool.

A separate pool cannot collide with another library's ``rpc.proto`` or ``etcdserverpb`` in the same
process. ``rpc.pyi`` contains the types.
"""

import os
from typing import Any

from google.protobuf import descriptor_pool, message_factory

from etcdsem.errors import EtcdSemError

_pool = descriptor_pool.DescriptorPool()


def _read() -> bytes:
    # Use the module's loader, since the package may be in a zip file. pkgutil and
    # importlib.resources do the same, but importing them takes 10 ms.
    try:
        data: bytes = __loader__.get_data(os.path.join(os.path.dirname(__file__), "rpc.binpb"))
    except OSError:
        raise EtcdSemError(
            "etcdsem is incomplete: its data file etcd/rpc.binpb is missing. A program that "
            "bundles etcdsem must include its data files (PyInstaller: --collect-data etcdsem)"
        ) from None
    return data


def _load() -> dict[str, Any]:
    # Without google.protobuf.descriptor_pb2, whose import takes 15 ms.
    _pool.AddSerializedFile(_read())
    classes: dict[str, Any] = {}
    for name, descriptor in _pool.FindFileByName("rpc.proto").message_types_by_name.items():
        if hasattr(message_factory, "GetMessageClass"):
            classes[name] = message_factory.GetMessageClass(descriptor)
        else:  # protobuf below 4.22, which python-etcd3 needs
            classes[name] = message_factory.MessageFactory(_pool).GetPrototype(descriptor)
    return classes


globals().update(_load())
