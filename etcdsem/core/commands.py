"""The contract between the core and its drivers (threads, asyncio, simulator).

1. A procedure is a generator. It yields a *command*; the driver performs it and sends the result
   in, or throws the failure in. Only `perform()` below contains a bare ``yield``.
2. Between two yields a procedure is atomic: a driver runs every step of every procedure, and
   every callback of a listener, under one lock per client. I/O happens outside of the lock, and so
   does all foreign code: callbacks, log handlers, the start of threads.
3. An operation that takes no time is not a command but a method of `Env`: clocks, randomness,
   identity, opening a watch, requesting a renewal, starting another procedure, logging.
4. A failure that comes from etcd or the network is a `Failure`; the driver's transport classifies
   it (`etcd/outcomes.py`). The core alone decides whether to try again.
5. An interruption (KeyboardInterrupt, asyncio's CancelledError, a thread's exception) is thrown
   into the procedure like a failure. The driver continues to perform what the procedure yields (its
   clean-up) until it ends, and then raises the interruption.
6. Times are seconds on `Env.now()`, a clock that counts suspension and never goes back.
   Deadlines are absolute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

log = logging.getLogger("etcdsem")

# ---------------------------------------------------------------- requests to etcd


class Compare(NamedTuple):
    """One condition of a transaction. With `end`, it must hold for every key in [key, end).

    etcd evaluates a condition over an empty range as over one absent key: all numbers 0. A
    condition on the value of an absent key does not hold.
    """

    key: bytes
    target: Literal["create", "mod", "version", "lease", "value"]
    op: Literal["=", "!=", "<", ">"]
    number: int
    end: bytes = b""
    value: bytes = b""
    """What the key's value is compared with, byte by byte."""


class Put(NamedTuple):
    """Write a key. `lease` 0 attaches none (and detaches any)."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """Delete a key, or with `end` all keys in [key, end)."""

    key: bytes
    end: bytes = b""


class Range(NamedTuple):
    """Read a key, or with `end` all keys in [key, end); linearizable. `limit` 0 means no limit.

    `oldest_first` sorts by create revision; otherwise keys come in key order.
    """

    key: bytes
    end: bytes = b""
    limit: int = 0
    oldest_first: bool = False
    keys_only: bool = False
    count_only: bool = False


class Txn(NamedTuple):
    """If all of `compare` hold, do `success`, else `failure`. It may be nested as an operation.

    All comparisons, nested ones included, see the state before the transaction; a Range sees what
    the operations before it wrote.
    """

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...] = ()


Operation: TypeAlias = Put | Delete | Range | Txn


class Fixed(tuple[Operation, ...]):
    """Operations that are built once and sent often."""

    encoded: dict[bytes, bytes]
    """For the driver, which may keep their encoding here."""

    def __init__(self, _operations: Iterable[Operation]) -> None:
        self.encoded = {}


class KeyValue(NamedTuple):
    """A key and its stored value."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


class PutReply(NamedTuple):
    """The answer to a Put; it contains nothing."""


class DeleteReply(NamedTuple):
    """The answer to a Delete: the number of deleted keys."""

    deleted: int


class RangeReply(NamedTuple):
    """The answer to a Range. `count` is the number of keys in the range, regardless of `limit`."""

    kvs: tuple[KeyValue, ...]
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not needed here


class TxnReply(NamedTuple):
    """The answer to a Txn: which branch ran, at which revision, and the answers to its operations.

    `revision` is the store's revision after the transaction: that of its writes if it wrote.
    In the reply to a nested transaction it is 0; use the outermost one.
    """

    succeeded: bool
    revision: int
    replies: tuple[Reply, ...]


Reply: TypeAlias = PutReply | DeleteReply | RangeReply | TxnReply


class Event(NamedTuple):
    """A watch event: a key was put, or deleted (then only key and mod_revision are meaningful)."""

    kind: Literal["put", "delete"]
    kv: KeyValue


# ---------------------------------------------------------------- what a procedure yields

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Command(Generic[T_co]):
    """What a procedure yields. T_co is the type of the result that is sent in."""

    __slots__ = ()


class Transact(Command[TxnReply]):
    """Perform a transaction, with a timeout in seconds."""

    __slots__ = ("timeout", "txn")

    def __init__(self, txn: Txn, timeout: float) -> None:
        self.txn = txn
        self.timeout = timeout


class GrantLease(Command[float]):
    """Create the etcd lease `lease_id` with a TTL in whole seconds. Returns the TTL that etcd
    granted.
    """

    __slots__ = ("lease_id", "timeout", "ttl")

    def __init__(self, lease_id: int, ttl: int, timeout: float) -> None:
        self.lease_id = lease_id
        self.ttl = ttl
        self.timeout = timeout


class RevokeLease(Command[None]):
    """Revoke an etcd lease, and delete all its keys with it."""

    __slots__ = ("lease_id", "timeout")

    def __init__(self, lease_id: int, timeout: float) -> None:
        self.lease_id = lease_id
        self.timeout = timeout


class LeasesTimeToLive(Command[tuple[float | None, ...]]):
    """The seconds that each of the leases has left by etcd's clock: -1 if the lease does not exist,
    None if etcd did not answer within `timeout` seconds for all of them together.

    There may be thousands, so a driver has many requests in progress at once. It raises the failure
    of the first request, and returns None for those that fail later.
    """

    __slots__ = ("lease_ids", "timeout")

    def __init__(self, lease_ids: tuple[int, ...], timeout: float) -> None:
        self.lease_ids = lease_ids
        self.timeout = timeout


class Mailbox(Protocol):
    """Where a procedure receives notes. `put` never blocks and may be called from anywhere."""

    def put(self, note: Any, /) -> None: ...


class Wait(Command[Any]):
    """Wait for the next note in `box`; None if the time `until` comes first.

    `until` may be ``math.inf``, or in the past: then only a note that is already there is returned.
    """

    __slots__ = ("box", "until")

    def __init__(self, box: Mailbox, until: float) -> None:
        self.box = box
        self.until = until


Procedure: TypeAlias = Generator[Command[Any], Any, T]


def perform(command: Command[T]) -> Generator[Command[T], T, T]:
    """Yield one command and return its typed result. The only bare yield of the core."""
    return (yield command)


# ---------------------------------------------------------------- the environment


class Watch(Protocol):
    """A requested watch. After `cancel` its listener is not called any more."""

    def cancel(self) -> None: ...


class Listener(Protocol):
    """Receives a watch's events. Called under the client's lock; must not block or raise."""

    def created(self, revision: int) -> None:
        """The watch is set up: every event after `revision` will be reported. Called once."""

    def events(self, events: Sequence[Event]) -> None:
        """Events in revision order, without duplicates."""

    def gap(self, reason: str) -> None:
        """Events may have been missed (compaction). The watch continues at the present revision."""

    def refused(self, error: Failure) -> None:
        """The watch was refused (permission) and has ended."""


class Env(Protocol):
    """The services that a driver provides to the core. No method suspends."""

    def now(self) -> float:
        """Seconds on a clock that counts suspension and never goes back."""

    def wall(self) -> float:
        """Seconds since 1970, for people to read; never compared."""

    def random(self) -> float:
        """A random number in [0, 1)."""

    def random_id(self) -> int:
        """A random number of 63 bits, never 0: an ID for an etcd lease."""

    def mailbox(self) -> Mailbox:
        """A new mailbox."""

    def spawn(self, procedure: Procedure[Any], name: str) -> None:
        """Run a procedure concurrently. Exceptions are logged."""

    def starved(self) -> str:
        """Why a spawned procedure cannot run (no thread can be started); empty if none is waiting
        to run.
        """
        return ""

    def call(self, function: Callable[[], object], name: str) -> None:
        """Call a user's function where it may block. Exceptions are logged."""

    def log(
        self, level: int, message: str, *args: object, error: BaseException | None = None
    ) -> None:
        """Log a record once the client's lock is free: a handler may block, or use the client."""
        log.log(level, message, *args, exc_info=error)

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> Watch:
        """Watch a key or a range. `start` 0 means from now on. `only` reports one kind of event.

        After a broken connection the driver resumes the watch where it was.
        """

    def renew(self, lease_id: int) -> None:
        """Send a keepalive. The answer arrives at the heartbeat's `renewed(lease_id, ttl)`."""

    def restart_renewals(self) -> None:
        """Renewals go unanswered: switch to another connection. Late answers are dropped."""


# ---------------------------------------------------------------- failures


class Failure(Exception):
    """etcd, or the connection to it, failed. `detail` says what was observed, `endpoint` where."""

    def __init__(self, detail: str = "", endpoint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.endpoint = endpoint


class OutcomeUnknown(Failure):
    """The request may have been applied, or may still be. Only revoking the lease settles it."""


class NoSpace(OutcomeUnknown):
    """etcd is out of space. The request may have been applied nevertheless."""


class NotApplied(Failure):
    """The request was definitely not applied; the same request may succeed soon."""


class NotConnected(NotApplied):
    """There was no connection, so nothing was sent."""


class Misconfigured(NotConnected):
    """These settings cannot lead to a connection (TLS, a port that is not etcd's)."""


class Refused(Failure):
    """Definitely not applied, and trying again will not help."""


class LeaseNotFound(Refused):
    """The etcd lease does not exist (any more)."""


class LeaseExists(Refused):
    """An etcd lease with that ID exists already, perhaps from our own earlier attempt."""


class AccessDenied(Refused):
    """etcd rejects the user, the password, or the access to the key."""


class Corrupt(Refused):
    """etcd has raised its CORRUPT alarm and rejects writes."""
