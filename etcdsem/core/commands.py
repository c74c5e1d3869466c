"""The contract between the core and its drivers (threads, asyncio, simulator).

1. A procedure is a generator. It yields a *command*, the driver performs it and sends the result
   in, or throws the failure in. Only `perform()` below holds a bare ``yield``.
2. Between two yields a procedure is atomic: a driver runs every step of every procedure, and
   every callback of a listener, under one lock for each client. I/O happens outside of it, and so
   does whatever is foreign: callbacks, log handlers, the start of threads.
3. What takes no time is no command but a method of `Env`: clocks, randomness, identity, opening a
   watch, asking for a renewal, starting another procedure, logging.
4. A failure that comes from etcd or the network is a `Failure`; the driver's transport sorts it
   (`etcd/outcomes.py`). The core alone decides whether to try again.
5. An interruption (KeyboardInterrupt, asyncio's CancelledError, a thread's exception) is thrown
   into the procedure like a failure; the driver then goes on performing what the procedure
   yields (its clean-up) until it ends, and the interruption comes out at its end.
6. Times are seconds on `Env.now()`, a clock that counts suspension and never goes back.
   Deadlines are absolute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

log = logging.getLogger("etcdsem")

# ---------------------------------------------------------------- what etcd is asked


class Compare(NamedTuple):
    """One condition of a transaction. With `end`, it must hold for every key in [key, end).

    etcd evaluates a condition over an empty range as over one absent key: all numbers 0.
    """

    key: bytes
    target: Literal["create", "mod", "version", "lease"]
    op: Literal["=", "!=", "<", ">"]
    number: int
    end: bytes = b""


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
    """Read a key, or with `end` all keys in [key, end); linearizable. `limit` 0: no limit.

    `oldest_first` sorts by create revision, else keys come in their own order.
    """

    key: bytes
    end: bytes = b""
    limit: int = 0
    oldest_first: bool = False
    keys_only: bool = False
    count_only: bool = False


class Txn(NamedTuple):
    """If all of `compare` hold, `success`, else `failure`. May be nested as an operation.

    All comparisons, also the nested ones, see the state before the transaction; a Range sees
    what the operations before it wrote.
    """

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...] = ()


Operation: TypeAlias = Put | Delete | Range | Txn


class KeyValue(NamedTuple):
    """A key as it stands in etcd."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


class PutReply(NamedTuple):
    """The answer to a Put."""


class DeleteReply(NamedTuple):
    """The answer to a Delete: how many keys there were."""

    deleted: int


class RangeReply(NamedTuple):
    """The answer to a Range. `count` is the number of keys in the range, whatever the limit."""

    kvs: tuple[KeyValue, ...]
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


class TxnReply(NamedTuple):
    """The answer to a Txn: which branch ran, at which revision, and the answers to its operations.

    `revision` is the store's revision after the transaction: that of its writes if it wrote.
    It is 0 in the reply to a nested transaction: look at the outermost.
    """

    succeeded: bool
    revision: int
    replies: tuple[Reply, ...]


Reply: TypeAlias = PutReply | DeleteReply | RangeReply | TxnReply


class Event(NamedTuple):
    """What a watch reports: a key was put, or deleted (then only key and mod_revision count)."""

    kind: Literal["put", "delete"]
    kv: KeyValue


# ---------------------------------------------------------------- what a procedure yields

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Command(Generic[T_co]):
    """What a procedure yields; T_co is the type of the result that is sent in."""

    __slots__ = ()


class Transact(Command[TxnReply]):
    """Perform a transaction, with a deadline of `timeout` seconds from now."""

    __slots__ = ("timeout", "txn")

    def __init__(self, txn: Txn, timeout: float) -> None:
        self.txn = txn
        self.timeout = timeout


class GrantLease(Command[float]):
    """Create the etcd lease `lease_id` with a TTL in whole seconds; gives the TTL etcd granted."""

    __slots__ = ("lease_id", "timeout", "ttl")

    def __init__(self, lease_id: int, ttl: int, timeout: float) -> None:
        self.lease_id = lease_id
        self.ttl = ttl
        self.timeout = timeout


class RevokeLease(Command[None]):
    """End an etcd lease, and with it all its keys."""

    __slots__ = ("lease_id", "timeout")

    def __init__(self, lease_id: int, timeout: float) -> None:
        self.lease_id = lease_id
        self.timeout = timeout


class LeasesTimeToLive(Command[tuple[float | None, ...]]):
    """The seconds that each of some etcd leases has left by etcd's clock: -1 where there is no
    such lease, None where etcd did not tell within `timeout` seconds for all of them together.

    There may be thousands: a driver has many requests under way at once. It raises the failure
    of the first request, and gives None for those that fail later.
    """

    __slots__ = ("lease_ids", "timeout")

    def __init__(self, lease_ids: tuple[int, ...], timeout: float) -> None:
        self.lease_ids = lease_ids
        self.timeout = timeout


class Mailbox(Protocol):
    """Where notes for one procedure arrive. `put` never blocks and may be called from anywhere."""

    def put(self, note: Any, /) -> None: ...


class Wait(Command[Any]):
    """Wait for the next note in `box`; None when the time `until` comes first.

    `until` may be ``math.inf``, or in the past: then only a note that is already there is given.
    """

    __slots__ = ("box", "until")

    def __init__(self, box: Mailbox, until: float) -> None:
        self.box = box
        self.until = until


Procedure: TypeAlias = Generator[Command[Any], Any, T]


def perform(command: Command[T]) -> Generator[Command[T], T, T]:
    """Yield one command and give its result, typed. The only bare yield of the core."""
    return (yield command)


# ---------------------------------------------------------------- what takes no time


class Watch(Protocol):
    """A watch that was asked for. After `cancel` its listener hears nothing more."""

    def cancel(self) -> None: ...


class Listener(Protocol):
    """Whom a watch tells. Called under the client's lock; must neither block nor raise."""

    def created(self, revision: int) -> None:
        """The watch is set up: every event after `revision` will be told. Called once."""

    def events(self, events: Sequence[Event]) -> None:
        """Events in the order of their revisions; none twice, none out of order."""

    def gap(self, reason: str) -> None:
        """Events may have been missed (compaction). The watch goes on at the present revision."""

    def refused(self, error: Failure) -> None:
        """The watch cannot be had (permission); it is over."""


class Env(Protocol):
    """What a driver lends to the core. No method suspends."""

    def now(self) -> float:
        """Seconds on a clock that counts suspension and never goes back."""

    def wall(self) -> float:
        """Seconds since 1970, for people to read; never compared."""

    def random(self) -> float:
        """A random number in [0, 1)."""

    def random_id(self) -> int:
        """A random number of 63 bits, never 0: an id for an etcd lease."""

    def mailbox(self) -> Mailbox:
        """A new mailbox."""

    def spawn(self, procedure: Procedure[Any], name: str) -> None:
        """Run a procedure beside this one. What it raises is logged."""

    def starved(self) -> str:
        """Why a procedure that was spawned cannot run (no thread can be started); empty if none
        waits.
        """
        return ""

    def call(self, function: Callable[[], object], name: str) -> None:
        """Call a user's function where it may block. What it raises is logged."""

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
        """Watch a key or a range. `start` 0: from now on. `only` tells one kind of event.

        After a broken connection the watch is resumed where it was, by the driver.
        """

    def renew(self, lease_id: int) -> None:
        """Send a keepalive. The answer comes to the heartbeat's `renewed(lease_id, ttl)`."""

    def restart_renewals(self) -> None:
        """Renewals go unanswered: take another connection. Answers still under way are dropped."""


# ---------------------------------------------------------------- failures


class Failure(Exception):
    """etcd, or the way to it, failed. `detail` says what was seen, `endpoint` where."""

    def __init__(self, detail: str = "", endpoint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.endpoint = endpoint


class OutcomeUnknown(Failure):
    """The request may have been applied, or may yet be. Only a revoked lease settles it."""


class NoSpace(OutcomeUnknown):
    """etcd is out of space. It may have applied the request all the same."""


class NotApplied(Failure):
    """The request was definitely not applied; the same request may work in a moment."""


class NotConnected(NotApplied):
    """No connection existed, so nothing was sent."""


class Misconfigured(NotConnected):
    """No connection can come about with these settings (TLS, a port that is not etcd's)."""


class Refused(Failure):
    """Definitely not applied, and trying again will not help."""


class LeaseNotFound(Refused):
    """There is no such etcd lease (any more)."""


class LeaseExists(Refused):
    """There is an etcd lease of that id already: perhaps from our own earlier attempt."""


class AccessDenied(Refused):
    """etcd refuses the user, the password, or the key."""


class Corrupt(Refused):
    """etcd has raised its CORRUPT alarm and takes no writes."""
