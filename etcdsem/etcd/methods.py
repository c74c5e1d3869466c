"""etcd's methods, one call of such a method, and the endpoint that it goes to."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import DecodeError

from etcdsem.etcd import rpc
from etcdsem.etcd.grpc_protocol import RpcError
from etcdsem.etcd.settings import Endpoint

METHODS: dict[str, tuple[str, type[Any]]] = {
    "txn": ("/etcdserverpb.KV/Txn", rpc.TxnResponse),
    "read": ("/etcdserverpb.KV/Txn", rpc.TxnResponse),  # counted separately
    "range": ("/etcdserverpb.KV/Range", rpc.RangeResponse),
    "compact": ("/etcdserverpb.KV/Compact", rpc.CompactionResponse),
    "grant": ("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantResponse),
    "revoke": ("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeResponse),
    "time_to_live": ("/etcdserverpb.Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveResponse),
    "leases": ("/etcdserverpb.Lease/LeaseLeases", rpc.LeaseLeasesResponse),
    "status": ("/etcdserverpb.Maintenance/Status", rpc.StatusResponse),
    "alarm": ("/etcdserverpb.Maintenance/Alarm", rpc.AlarmResponse),
    "members": ("/etcdserverpb.Cluster/MemberList", rpc.MemberListResponse),
    "login": ("/etcdserverpb.Auth/Authenticate", rpc.AuthenticateResponse),
}
"""The gRPC method and the type of its response."""

R = TypeVar("R")
T = TypeVar("T")


class Link(Generic[T]):
    """One endpoint. `trusted` from its first answer until it fails."""

    def __init__(self, endpoint: Endpoint, transport: T) -> None:
        self.endpoint = endpoint
        self.transport = transport
        self.trusted = False


class Rpc(NamedTuple):
    """A call to make."""

    link: Link[Any]
    name: str
    request: Any
    """A message, or its bytes."""
    timeout: float
    token: str | None = None
    same: str = ""
    """Concurrent calls with the same text ask for the same; one of them suffices."""

    @property
    def path(self) -> str:
        """The method in gRPC's notation."""
        return METHODS[self.name][0]

    @property
    def whole(self) -> bool:
        """It must not be cancelled in progress. etcd 3.5 before 3.5.5 crashes when a read-only
        transaction is cancelled (#14110), and before 3.5.7 if it was slow as well (#14891).
        """
        return self.name == "read"

    def encoded(self) -> bytes:
        """The request as bytes."""
        request = self.request
        data: bytes = request if isinstance(request, bytes) else request.SerializeToString()
        return data

    def decoded(self, data: bytes) -> Any:
        """The response as a message. Raises RpcError."""
        try:
            return METHODS[self.name][1].FromString(data)
        except DecodeError as error:
            raise RpcError("INTERNAL", f"Exception deserializing response: {error}") from None


Calling: TypeAlias = Generator[Rpc, Any, R]
"""Yields the calls to make; the answer is sent in, an RpcError thrown in."""
