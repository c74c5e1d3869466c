"""etcd's messages, made from ``rpc.binpb`` in a descriptor pool of our own.

A pool of our own cannot collide with another library's ``rpc.proto`` or ``etcdserverpb`` in the
same process. ``rpc.pyi`` has the types.
"""

import pkgutil
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from etcdsem.errors import EtcdSemError

_pool = descriptor_pool.DescriptorPool()


def _read() -> bytes:
    # Not by path: the package may be in a zip file. Not by importlib.resources: importing that
    # takes 15 ms, and grpc has loaded pkgutil already.
    try:
        data = pkgutil.get_data("etcdsem.etcd", "rpc.binpb")
    except OSError:
        data = None
    if data is None:
        raise EtcdSemError(
            "etcdsem is incomplete: its data file etcd/rpc.binpb is missing. A program that "
            "bundles etcdsem must include its data files (PyInstaller: --collect-data etcdsem)"
        )
    return data


def _load() -> dict[str, Any]:
    files = descriptor_pb2.FileDescriptorSet()
    files.ParseFromString(_read())
    classes: dict[str, Any] = {}
    for file in files.file:
        _pool.AddSerializedFile(file.SerializeToString())
        for message in file.message_type:
            descriptor = _pool.FindMessageTypeByName(f"{file.package}.{message.name}")
            if hasattr(message_factory, "GetMessageClass"):
                classes[message.name] = message_factory.GetMessageClass(descriptor)
            else:  # protobuf below 4.22, which python-etcd3 needs
                factory = message_factory.MessageFactory(_pool)
                classes[message.name] = factory.GetPrototype(descriptor)
    return classes


globals().update(_load())
