"""Calls to etcd from threads: `EndpointCalls` decides, `Transport` carries them out.

1. Interruptions pass through, and take the connection of their call out of use (`transport`).
2. Streams have their own connection, so that a blocked stream holds up no call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from etcdsem.clock import boot_time
from etcdsem.core.commands import Txn, TxnReply
from etcdsem.etcd import rpc
from etcdsem.etcd.calls import AT_ONCE, EndpointCalls
from etcdsem.etcd.dialing import Dialer
from etcdsem.etcd.methods import METHODS, Calling, Link
from etcdsem.etcd.settings import Endpoint
from etcdsem.etcd.transport import Transport

R = TypeVar("R")


class MemberStatus(NamedTuple):
    """The connected member's own status."""

    endpoint: str
    version: str
    db_size: int
    leader: int
    member: int
    cluster: int
    revision: int
    errors: tuple[str, ...]
    learner: bool


class Connection(EndpointCalls[Transport]):
    """Blocking calls to etcd, for any number of threads."""

    # -- requests of the core

    def transact(self, txn: Txn, timeout: float) -> TxnReply:
        """Perform a transaction."""
        return _make(self.transacting(txn, timeout))

    def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        """Create an etcd lease; returns the TTL that etcd granted."""
        return _make(self.granting(lease_id, ttl, timeout))

    def revoke(self, lease_id: int, timeout: float) -> None:
        """Revoke an etcd lease, and delete its keys."""
        _make(self.revoking(lease_id, timeout))

    def time_to_live(self, lease_id: int, timeout: float) -> float:
        """The seconds that a lease has left; -1 if it does not exist."""
        return _make(self.asking_time_to_live(lease_id, timeout))

    def times_to_live(self, lease_ids: Sequence[int], timeout: float) -> tuple[float | None, ...]:
        """The same for many leases, `AT_ONCE` at a time; None if no answer came in time.

        Raises the failure of the first request, which also chooses the endpoint and logs in.
        """
        until = boot_time() + timeout
        answers: list[float | None] = [self.time_to_live(lease_ids[0], timeout)]
        link, token = self._link(), self._login.token
        path, kind = METHODS["time_to_live"]
        for start in range(1, len(lease_ids), AT_ONCE):
            requests = [
                rpc.LeaseTimeToLiveRequest(ID=lease_id).SerializeToString()
                for lease_id in lease_ids[start : start + AT_ONCE]
            ]
            left = max(0.001, until - boot_time())
            found = link.transport.call_many(path, requests, left, token)
            answers += [None if one is None else float(kind.FromString(one).TTL) for one in found]
        return tuple(answers)

    def call(self, name: str, request: Any, timeout: float) -> Any:
        """Make one unary call. Raises a Failure."""
        return _make(self.calling(name, request, timeout))

    # -- requests of tests and of `etcdsem doctor`

    def leases(self, timeout: float) -> list[int]:
        """All lease IDs of the cluster."""
        return [one.ID for one in self.call("leases", rpc.LeaseLeasesRequest(), timeout).leases]

    def compact(self, revision: int, timeout: float) -> None:
        """Compact the history before a revision."""
        self.call("compact", rpc.CompactionRequest(revision=revision, physical=True), timeout)

    def status(self, timeout: float) -> MemberStatus:
        """The status of the connected member."""
        answer = self.call("status", rpc.StatusRequest(), timeout)
        return MemberStatus(
            endpoint=str(self.settings.endpoints[self._at]),
            version=answer.version,
            db_size=answer.dbSize,
            leader=answer.leader,
            member=answer.header.member_id,
            cluster=answer.header.cluster_id,
            revision=answer.header.revision,
            errors=tuple(answer.errors),
            learner=answer.isLearner,
        )

    def alarms(self, timeout: float) -> list[str]:
        """The raised alarms: NOSPACE, CORRUPT."""
        names = {1: "NOSPACE", 2: "CORRUPT"}
        answer = self.call("alarm", rpc.AlarmRequest(), timeout)
        return [names.get(one.alarm, str(one.alarm)) for one in answer.alarms]

    # -- connections

    def _connect(self, endpoint: Endpoint) -> Transport:
        external = self.settings.external
        return (
            Transport(Dialer(self.settings, endpoint))
            if external is None
            else external.transport(endpoint)
        )

    def open_streams(self, timeout: float) -> tuple[Link[Transport], str | None]:
        """Prepare opening streams: returns the link and the token to use. Raises a Failure."""
        return _make(self.opening(timeout))

    def sweep(self) -> None:
        """Close connections that have been idle for a while. Never blocks."""
        for link in self._links:
            if link is not None:
                link.transport.sweep()

    def close(self) -> None:
        """Close all connections; calls in progress fail."""
        for link in self._shut():
            link.transport.close()


def _make(calling: Calling[R]) -> R:
    """Make the calls in this thread."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            one = calling.send(answer) if error is None else calling.throw(error)
        except StopIteration as stop:
            result: R = stop.value
            return result
        finally:
            answer = error = None  # an error's traceback refers to this frame
        try:
            data = one.link.transport.call(
                one.path, one.encoded(), one.timeout, one.token, whole=one.whole
            )
            answer = one.decoded(data)
        except BaseException as raised:  # includes interruptions; `throw` raises them
            error = raised
