"""What the blocking and the asyncio library share: all that needs neither a thread nor a loop.

1. What a method does is a procedure here (``_registering``, ``_releasing``, ...); a shell's
   method only runs it. A shell gives an engine, that is, the driver, and its kind of event.
2. A lease and its semaphore are usable in the process (and event loop) that acquired it, and
   nowhere else: `BaseEngine.here` says whether that is where we are.
"""

from __future__ import annotations

import getpass
import inspect
import logging
import math
import os
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from etcdsem import interpreter
from etcdsem.core import admin, inspection, lifecycle, rates
from etcdsem.core.acquire import acquire
from etcdsem.core.commands import Env, Listener, Procedure, Watch
from etcdsem.core.grants import Grant
from etcdsem.core.keys import ORDINARY, Limit, Wants, client_id, lease_hex
from etcdsem.core.leases import TICK, TtlLease
from etcdsem.core.limits import check_kind, learn_limit, wrong_kind
from etcdsem.core.release import ReleaseResult, release
from etcdsem.core.request import AcquireRequest
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.errors import (
    AcquireTimeout,
    InconsistentLimit,
    InvalidSetting,
    LeaseLost,
    ReleasedTooOften,
)
from etcdsem.intervals import read_intervals
from etcdsem.model import (
    DEFAULT_PREFIX,
    Duration,
    Holder,
    Junk,
    LimitInfo,
    Rate,
    Status,
    Waiter,
    check_limit,
    check_name,
    check_prefix,
    check_priority,
    check_text,
    check_weight,
    dask_setting,
    environment,
    make_rate,
    max_hold_seconds,
    read_labels,
    read_rate,
    seconds,
    timeout_seconds,
)
from etcdsem.process_stats import follow

if TYPE_CHECKING:
    from etcdsem.etcd.settings import ConnectionSettings

EXIT_GRACE = 2.0
"""Seconds for giving everything back when the interpreter, or the event loop, ends."""

KEEPER_LIMIT = 600.0
"""Seconds for which a keeper process refreshes leases of a program that gives no sign of life."""

MIN_VALIDATION_INTERVAL = 0.1
"""Seconds; each read costs etcd a transaction, for each client that waits or holds."""

LONGEST_NAP = 5.0
"""Who waits looks at the clock at least this often: threads and event loops wait on a clock that
stands still while the machine is suspended, deadlines do not."""


class Watches(Protocol):
    """The watch stream. Never blocks; tells listeners later, in the engine's turn."""

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> Watch: ...
    def close(self) -> None: ...


class Renewals(Protocol):
    """The keepalive stream. Never blocks; answers come later, in the engine's turn."""

    def renew(self, lease_id: int) -> None: ...
    def restart(self) -> None: ...
    def close(self) -> None: ...


class LeaseKeeper(Protocol):
    """A process that refreshes leases beside us; see `etcdsem.keeper`."""

    @property
    def pid(self) -> int: ...
    def hand_over(self, lease: TtlLease) -> None: ...
    def take_back(self, lease: TtlLease) -> None: ...
    def tend(self, lease: TtlLease) -> None: ...
    def beat(self) -> None: ...
    def close(self) -> None: ...


class BaseEngine(Env):
    """A driver of procedures, but for what waits."""

    helper: LeaseKeeper | None = None
    _start_beside: Callable[[Callable[[], object], str], object] | None = None
    """Starts a function that may block in a thread; None: as ever."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.session = Session(self, client_id(socket.gethostname(), self.pid, os.urandom(4).hex()))
        follow(self.session)
        every = read_validation_interval()
        if every is not None:
            self.session.reread = (every / 2, every * 3 / 2)

    @property
    def here(self) -> bool:
        """Is this where its leases can be used?"""
        return self.pid == os.getpid()

    def start_keeper(self, settings: ConnectionSettings, limit: float | None) -> None:
        """From now on a keeper process refreshes what is held; `limit` None: none does."""
        if limit is None:
            return
        from etcdsem.keeper import KeeperProcess

        self.helper = KeeperProcess(settings, limit, start=self._start_beside, write_log=self.log)
        self.session.leases.chores.append(self._tend)

    def _tend(self, now: float) -> float:
        if self.helper is None:
            return math.inf
        self.helper.beat()
        grants = self.session.grants()
        for grant in grants:
            self.helper.tend(grant.lease)
        return now + TICK if grants else math.inf

    def stop_keeper(self) -> None:
        """The client is being closed."""
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.close()

    def after(self, action: Callable[[], object]) -> None:
        """Do something quick of ours once the client's lock is free."""
        action()

    def random(self) -> float:
        return random.random()

    def random_id(self) -> int:
        return (int.from_bytes(os.urandom(8), "big") >> 2) + 1


def closed_generator(procedure: Procedure[Any]) -> bool:
    """Has a procedure ended?"""
    return inspect.getgeneratorstate(procedure) == inspect.GEN_CLOSED


class BaseClient:
    """A client's settings, and what an operator asks of it."""

    _package = "etcdsem"

    def __init__(
        self,
        settings: ConnectionSettings,
        *,
        prefix: str | None = None,
        keeper: bool | Duration | None = False,
    ) -> None:
        self.settings = settings
        self.keeper = read_keeper(keeper)
        """Seconds for which a keeper process refreshes leases of a program that gives no sign of
        life; None: there is no keeper."""
        self.prefix = check_prefix(prefix or environment("ETCDSEM_PREFIX") or DEFAULT_PREFIX)

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.settings.endpoints))
        return f"<{self._package}.Client of {where}>"

    @property
    def _session(self) -> Session:
        raise NotImplementedError

    def station(self, name: str, prefix: str | None = None) -> SemaphoreState:
        """The core's state for a semaphore."""
        return self._session.semaphore(prefix or self.prefix, check_name(name))

    def _reading_limit(self, name: str) -> Procedure[int | None]:
        state = self.station(name)
        limit = yield from learn_limit(state)
        check_kind(state, rate=False)
        return limit.number

    def known_limit(self, name: str) -> LimitInfo | None:
        """The limit as this client saw it last, without asking etcd. None if it never did, or if
        the semaphore was not registered then.
        """
        limit = self.station(name).limit
        return None if limit is None else _limit_info(limit)

    def _reading_info(self, name: str) -> Procedure[LimitInfo]:
        return _limit_info((yield from learn_limit(self.station(name))))

    @staticmethod
    def next_free(seen: Status) -> float:
        """Seconds until a rate limit may have a start for who comes now; infinite while nothing
        starts. An estimate, by the times noted in etcd and this machine's clock.
        """
        return rates.next_free(seen, time.time()) if seen.pause is None else math.inf

    def _resizing(
        self, name: str, wanted: int | Rate
    ) -> Procedure[tuple[int | Rate | None, int | Rate]]:
        if isinstance(wanted, Rate):
            wanted = make_rate(*wanted)
            change = yield from admin.resize(self.station(name), wanted)
            return change.before.rate, wanted
        number = check_limit(wanted, least=0)
        change = yield from admin.resize(self.station(name), number)
        return change.before.number, number

    def _resizing_by(self, name: str, difference: int) -> Procedure[tuple[int, int]]:
        change = yield from admin.change_by(self.station(name), difference)
        before, after = change.before.number, change.after.number
        if before is None or after is None:
            raise AssertionError("a limit that is no number was changed by a difference")
        return before, after

    def _pausing(self, name: str, reason: str | None) -> Procedure[bool]:
        return pausing(self.station(name), operator(), reason)

    def _resuming(self, name: str) -> Procedure[bool]:
        return resuming(self.station(name))

    def _draining(
        self,
        name: str,
        timeout: Duration | None,
        reason: str | None,
        on_wait: Callable[[], object] | None,
    ) -> Procedure[bool]:
        return draining(self.station(name), operator(), timeout, reason, on_wait)

    def _evicting(
        self, name: str, slot: int | None, lease: str | None
    ) -> Procedure[Holder | Waiter | Junk]:
        if (slot is None) == (lease is None):
            raise InvalidSetting("evict: give either the slot or the lease")
        return (yield from inspection.evict(self.station(name), operator(), slot=slot, lease=lease))


def _limit_info(limit: Limit) -> LimitInfo:
    return LimitInfo(limit.number, limit.rate, limit.pause, limit.text)


def pausing(
    state: SemaphoreState, by: str, reason: str | None, *, rate: bool | None = None
) -> Procedure[bool]:
    """Pause a semaphore or a rate limit (`rate`: None either, else which); False if it was paused
    before.
    """
    return (yield from admin.pause(state, by, _reason(reason), rate=rate)).changed


def resuming(state: SemaphoreState, *, rate: bool | None = None) -> Procedure[bool]:
    """Resume one; False if it was not paused."""
    return (yield from admin.resume(state, rate=rate)).changed


def draining(
    state: SemaphoreState,
    by: str,
    timeout: Duration | None,
    reason: str | None,
    on_wait: Callable[[], object] | None,
    *,
    rate: bool | None = None,
) -> Procedure[bool]:
    """Pause a semaphore and wait until nobody holds; False if somebody does when time is up."""
    limit = timeout_seconds(timeout)
    why = _reason(reason)
    until = math.inf if limit is None else state.session.env.now() + limit
    return (yield from admin.drain(state, by, why, until, on_wait, rate=rate))


def _reason(given: str | None) -> str | None:
    return check_text(given, what="reason").strip() if given is not None else None


def operator() -> str:
    """Who changes something by hand: ``ETCDSEM_OWNER``, else user and host."""
    owner = environment("ETCDSEM_OWNER")
    if owner is not None:
        return check_text(owner, what="ETCDSEM_OWNER")
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # KeyError: Python before 3.13
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def read_keeper(keeper: bool | Duration | None) -> float | None:
    """For how long a keeper process goes on without a sign of life; None: no keeper.

    None takes ``ETCDSEM_KEEPER``: yes or no in the usual words, or a duration.
    """
    if keeper is None:
        word = environment("ETCDSEM_KEEPER") or "no"
        keeper = _WORDS.get(word.lower(), word)
    if keeper is False:
        return None
    limit = KEEPER_LIMIT if keeper is True else seconds(keeper, what="keeper")
    if not limit > 0:
        raise InvalidSetting(
            f"keeper: {keeper!r} must be True, or a duration longer than 0: for how long it "
            "refreshes the leases of a program that gives no sign of life"
        )
    if reason := interpreter.why_not():
        raise InvalidSetting(
            f"keeper: its process cannot be started, because {reason}. Use keeper=False (and unset "
            "ETCDSEM_KEEPER), with a lease_timeout longer than this program is ever busy"
        )
    return limit


_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False}


def connect_settings(
    endpoints: str | Sequence[str] | None, dial_timeout: Duration | None, **given: str | None
) -> ConnectionSettings:
    """The settings for the arguments of `connect`; raises InvalidSetting for what cannot be."""
    from etcdsem.etcd.settings import read_settings

    options: dict[str, Any] = dict(given)
    if dial_timeout is not None:
        options["dial_timeout"] = seconds(dial_timeout, what="dial_timeout")
    return read_settings(endpoints, **options)


# ---------------------------------------------------------------- lease


class Event(Protocol):
    """The event of a thread or of an event loop."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...


Owner = Literal["nobody", "caller", "block"]
OWNERS: tuple[Owner, ...] = ("nobody", "caller", "block")
"""`acquire` gives a lease to nobody, `acquire_lease` to its caller, ``with`` to a block."""


class BaseLease:
    """What can be said of a lease without asking etcd."""

    lost: Event
    owner: Owner = "nobody"
    """Who gives it back. `Semaphore.release` takes those of nobody first: the others have somebody
    who will, and a lease that was taken from them would be missed."""
    _package = "etcdsem"

    def __init__(self, semaphore: BaseSemaphore[Any], engine: BaseEngine, grant: Grant) -> None:
        self._semaphore = semaphore
        self._base = engine
        self._grant = grant
        self._max_hold = grant.lease.max_hold  # the etcd lease forgets it when it is given back
        grant.on_lost = self._on_lost
        if engine.helper is not None:
            engine.helper.hand_over(grant.lease)

    def __repr__(self) -> str:
        state = self._grant.state if self._here else "of the parent process"
        return f"<{self._package}.Lease of {self.name!r}, {self._slots_shown()}, {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(
            "a lease cannot be copied or sent elsewhere: it belongs to the process that acquired "
            "it. Send the semaphore instead, and its fencing token to whoever checks it."
        )

    @property
    def _here(self) -> bool:
        return self._base.here

    @property
    def _held(self) -> bool:
        """Is it still to be given back here?"""
        return self._grant.state == "held" and self._here

    @property
    def name(self) -> str:
        """The semaphore's name."""
        return self._grant.semaphore.name

    @property
    def slot(self) -> int:
        """Which of the N: 0 to limit-1. No two valid leases have the same."""
        return self._grant.slot

    @property
    def slots(self) -> tuple[int, ...]:
        """All slots that this lease holds, as many as its weight; `slot` is the first."""
        return self._grant.slots

    @property
    def weight(self) -> int:
        """How many slots it holds."""
        return len(self._grant.slots)

    def _slots_shown(self) -> str:
        if self.weight == 1:
            return f"slot {self.slot}"
        return f"slots {', '.join(map(str, self.slots))}"

    @property
    def fencing_token(self) -> int:
        """A number that is larger for every later grant of this semaphore (etcd's revision)."""
        return self._grant.token

    @property
    def id(self) -> str:
        """The etcd lease, in hex as ``etcdctl lease list`` prints it."""
        return lease_hex(self._grant.lease.id)

    @property
    def limit(self) -> int:
        """The limit as it was known when this lease was granted."""
        return self._grant.limit

    @property
    def ttl(self) -> float:
        """Seconds after its last refresh when etcd gives the slot away."""
        return self._grant.lease.ttl

    @property
    def acquired_at(self) -> datetime:
        """When it was granted, by this machine's wall clock."""
        return datetime.fromtimestamp(self._grant.acquired_wall, UTC)

    @property
    def remaining(self) -> float:
        """Seconds until it must be taken for lost if nothing refreshes it; 0 if it is not held."""
        if not self.valid:
            return 0.0
        return max(0.0, self._grant.lease.deadline - self._base.now())

    @property
    def max_hold(self) -> float | None:
        """Seconds after which it ends, counted from the grant; None: without a bound."""
        max_hold = self._max_hold
        return None if max_hold == math.inf else max_hold

    @property
    def hold_remaining(self) -> float | None:
        """Seconds until its `max_hold` ends it, if nothing else does before; None: without."""
        if self.max_hold is None:
            return None
        grant = self._grant
        return max(0.0, grant.since + self._max_hold - self._base.now()) if self._here else 0.0

    @property
    def valid(self) -> bool:
        """Is it held, and surely still ours by the local clock? Needs no network."""
        return self._here and self._grant.valid(self._base.now())

    @property
    def lost_reason(self) -> str:
        """Why it was lost; empty if it was not."""
        grant = self._grant
        if grant.state == "held" and self._here:
            return grant.lease.overrun(self._base.now())
        return grant.lost_reason

    def check(self) -> None:
        """Raise LeaseLost unless the lease is valid."""
        if not self.valid:
            raise LeaseLost(self._describe_loss())

    def _take_back(self) -> None:
        if self._base.helper is not None:
            self._base.helper.take_back(self._grant.lease)

    def _releasing(self) -> Procedure[bool]:
        self._semaphore._forget(self)
        grant = self._grant
        self._take_back()
        known = grant.state == "lost"
        outcome = yield from release(grant)
        if grant.state != "lost":
            return outcome is ReleaseResult.RELEASED
        if not known:  # it is found out only now
            self._on_lost(grant)
        self._base.log(
            logging.WARNING,
            "semaphore %s: %s not released, since its lease was lost before: %s",
            self.name,
            f"{self._slots_shown()} {'was' if self.weight == 1 else 'were'}",
            grant.lost_reason,
        )
        return False

    def _ending(self) -> Procedure[None]:
        """The end of a block that raised nothing."""
        lost = self._grant.state != "released" and not self.valid
        yield from self._releasing()
        lost = lost or self._grant.state == "lost" or self.lost.is_set()
        if lost and self._semaphore.raise_on_loss:
            raise LeaseLost(self._describe_loss())

    def _on_lost(self, grant: Grant) -> None:
        self._take_back()
        self._base.after(self.lost.set)  # before `on_lost`, which may look
        on_lost = self._semaphore.on_lost
        if on_lost is not None:
            self._base.call(lambda: on_lost(self), "on-lost")
        self._base.log(
            logging.CRITICAL,
            "%s Another may hold the slot now: the limit may be exceeded by this process.",
            self._describe_loss(),
        )

    def _describe_loss(self) -> str:
        grant = self._grant
        if not self._here:
            return f"semaphore {self.name!r}: the lease belongs to the parent process."
        if grant.state in ("released", "releasing"):
            return f"semaphore {self.name!r}: the lease of {self._slots_shown()} was released."
        reason = self.lost_reason or "its deadline has passed by the local clock"
        return (
            f"semaphore {self.name!r}: {self._semaphore._owner_shown()} lost the lease of "
            f"{self._slots_shown()} (fencing token {self.fencing_token}): {reason}."
        )


def read_wants(weight: int, priority: int, eager: bool) -> Wants:
    """What an acquire wants; raises InvalidSetting for what cannot be."""
    return Wants(check_weight(weight), check_priority(priority), bool(eager))


L = TypeVar("L", bound=BaseLease)
B = TypeVar("B")


class Block(Generic[B]):
    """A ``with`` block that was entered, and by whom."""

    __slots__ = ("frame", "held", "module", "owner")

    def __init__(self, held: B, frame: FrameType, owner: object) -> None:
        self.held = held
        self.frame = id(frame)
        self.module = id(frame.f_globals)
        self.owner = id(owner)

    def likeness(self, frame: FrameType, owner: object) -> tuple[bool, bool, bool]:
        """How likely is it the block that is left there? A ``with`` statement leaves in the frame
        in which it entered, which lives until then, in whatever thread or task. Others (an
        `ExitStack`) enter and leave in frames of the same module.
        """
        return (
            self.frame == id(frame),
            self.module == id(frame.f_globals),
            self.owner == id(owner),
        )


class Blocks(Generic[B]):
    """The blocks of one object that were entered and not left. Any thread may do either."""

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered: list[Block[B]] = []

    def enter(self, held: B, frame: FrameType, owner: object) -> None:
        """A block was entered from that frame, by that thread or task."""
        self._entered.append(Block(held, frame, owner))

    def leave(self, frame: FrameType, owner: object) -> B:
        """The block that is left there; where that cannot be told apart, the one most like it, and
        of several the last. What interrupts comes out once the block is not listed any more: one
        that nobody refers to gives its lease back.
        """
        interruption: BaseException | None = None
        block: Block[B] | None = None
        while True:
            try:
                block = self._most_like(frame, owner)
                if block is not None:
                    self._entered.remove(block)
                break
            except ValueError:
                block = None  # another thread was faster
            except BaseException as error:
                interruption = error
                if block is not None and block not in self._entered:
                    break
        if interruption is not None:
            try:
                raise interruption
            finally:
                del interruption, block  # else they refer to each other by the traceback
        if block is None:
            raise RuntimeError("a with block was left that was not entered")
        return block.held

    def _most_like(self, frame: FrameType, owner: object) -> Block[B] | None:
        entered = list(self._entered)
        entered.reverse()  # max() takes the first of those that are alike
        return max(entered, key=lambda one: one.likeness(frame, owner), default=None)


# ---------------------------------------------------------------- semaphore


class Named:
    """What a semaphore and a rate limit have in common: how they are called, and whose they are."""

    _package = "etcdsem"
    _fleeting: tuple[str, ...] = ()
    """What is not pickled; `_start_empty` makes it."""
    _is_rate = False

    def __init__(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None,
        prefix: str | None,
        owner: str | None,
    ) -> None:
        self.name = check_name(name)
        self._prefix = None if prefix is None else check_prefix(prefix)
        self.labels = read_labels(labels)
        self.owner = owner or environment("ETCDSEM_OWNER")
        if self.owner is not None:
            check_text(self.owner, what="owner")
        self._start_empty()

    def _start_empty(self) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return {key: it for key, it in self.__dict__.items() if key not in self._fleeting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    def _registering(self, state: SemaphoreState) -> Procedure[None]:
        raise NotImplementedError

    def _pausing(self, state: SemaphoreState, reason: str | None) -> Procedure[bool]:
        return pausing(state, self.owner or operator(), reason, rate=self._is_rate)

    def _resuming(self, state: SemaphoreState) -> Procedure[bool]:
        return resuming(state, rate=self._is_rate)


class BaseSemaphore(Named, Generic[L]):
    """A semaphore's settings, and the leases that it holds here."""

    _fleeting: tuple[str, ...] = ("_blocks", "_leases")

    def __init__(
        self,
        max_leases: int | None,
        name: str | None,
        *,
        lease_timeout: Duration | None,
        refresh_interval: Duration | None,
        on_lost: Callable[[L], object] | None,
        labels: Mapping[str, str] | None,
        prefix: str | None,
        owner: str | None,
        raise_on_loss: bool,
        max_hold: Duration | None,
        rate: str | None,
    ) -> None:
        self.max_leases = None if max_leases is None else check_limit(max_leases)
        super().__init__(
            name if name is not None else f"semaphore-{os.urandom(16).hex()}",
            labels=labels,
            prefix=prefix,
            owner=owner,
        )
        self.lease_timeout, self.refresh_interval = read_intervals(lease_timeout, refresh_interval)
        self.on_lost = on_lost
        self.raise_on_loss = raise_on_loss
        self.max_hold = max_hold_seconds(max_hold)
        self.rate = None if rate is None else read_rate(rate)
        self._any_block = rate is None or rate.count("/") == 1
        if self.rate is not None:
            check_name(self._rate_name)
        self._refresh_leases = True

    def _start_empty(self) -> None:
        self._leases: list[L] = []
        self._blocks: Blocks[Any] = Blocks()  # of ``with semaphore:``

    def __repr__(self) -> str:
        return f"<{self._package}.Semaphore {self.name!r}, {len(self.leases)} held here>"

    @property
    def _rate_name(self) -> str:
        return f"{self.name}.rate"

    def _rate_state(self, state: SemaphoreState) -> SemaphoreState:
        """Of the rate limit beside this semaphore."""
        prefix = state.keys.base.decode().removesuffix(f"/{self.name}/")
        return state.session.semaphore(prefix, self._rate_name)

    def _owner_shown(self) -> str:
        return self.owner or f"{socket.gethostname()}:{os.getpid()}"

    # -- what the methods do

    def _acquiring(
        self,
        state: SemaphoreState,
        limit: float | None,
        on_wait: Callable[[], object] | None,
        lease_of: Callable[[Grant], L],
        *,
        wants: Wants,
    ) -> Procedure[L | None]:
        # Making the lease is part of the procedure, so that no interruption comes between the
        # grant and its listing.
        until = math.inf if limit is None else state.session.env.now() + limit
        request = self._request(state, on_wait, wants)
        while True:
            grant = yield from acquire(state, request, until, once=limit == 0)
            if grant is None:
                return None
            try:  # whatever interrupts: Ctrl-C may strike at any byte code
                if self.rate is not None:
                    paced = yield from self._paced(state, grant, until, on_wait, once=limit == 0)
                    if not paced:
                        return None
                    if not grant.valid(state.session.env.now()):
                        grant.let_go()  # lost while it waited for the start: from the beginning
                        continue
                return self._list(grant, lease_of)
            except BaseException:
                yield from self._unlist(grant)
                raise

    def _paced(
        self,
        state: SemaphoreState,
        grant: Grant,
        until: float,
        on_wait: Callable[[], object] | None,
        *,
        once: bool,
    ) -> Procedure[bool]:
        """A start of the rate limit for one who holds a slot; without one it is given back."""
        identity = state.session.identity(self.owner, self.labels)
        request = rates.permit_request(identity, on_wait)
        grant.lease.paused = not self._refresh_leases
        started = yield from rates.start(self._rate_state(state), request, until, once=once)
        if started is None:
            yield from release(grant)
        return started is not None

    def _request(
        self, state: SemaphoreState, on_wait: Callable[[], object] | None, wants: Wants = ORDINARY
    ) -> AcquireRequest:
        return AcquireRequest(
            self.lease_timeout,
            self.refresh_interval,
            state.session.identity(self.owner, self.labels, self.max_hold),
            on_wait,
            self.max_leases,
            wants,
            self.max_hold,
        )

    def _list(self, grant: Grant, lease_of: Callable[[Grant], L]) -> L:
        lease = lease_of(grant)
        self._leases.append(lease)
        grant.lease.paused = not self._refresh_leases
        return lease

    def _unlist(self, grant: Grant) -> Procedure[None]:
        """Give back what nobody has got, since something struck after the grant."""
        for lease in list(self._leases):
            if lease._grant is grant:
                self._forget(lease)
        yield from release(grant)

    def _oldest(self) -> L:
        """The lease that `release` gives back. One that is lost comes first: whoever had it will
        release too, and must not give back that of somebody who is at work.
        """
        leases = self._releasable()
        lease = min(leases, key=lambda one: (OWNERS.index(one.owner), one.valid), default=None)
        if lease is None:
            raise ReleasedTooOften("Released too often")
        return lease

    def _releasable(self) -> tuple[L, ...]:
        return self.leases

    def _releasing(self, engine: BaseEngine) -> Procedure[bool | None]:
        """Give back the oldest lease. It is chosen here, in one step with the beginning of its
        release, so no two calls take the same. None: another engine has it now.
        """
        lease = self._oldest()
        if lease._base is not engine:
            return None
        return (yield from lease._releasing())

    def _no_lease(self, timeout: Duration | None) -> AcquireTimeout:
        return AcquireTimeout(
            f"semaphore {self.name!r}: no lease was free within {timeout!r}; who holds it: "
            f"etcdsem status {self.name}"
        )

    def _forget(self, lease: BaseLease) -> bool:
        """List it no more; False if it was not listed."""
        try:
            self._leases.remove(lease)  # type: ignore[arg-type]  # it is one of ours
        except ValueError:
            return False
        return True

    @property
    def leases(self) -> tuple[L, ...]:
        """The leases that this object holds in this process, oldest first."""
        return tuple(lease for lease in list(self._leases) if lease._here)

    def _registering(self, state: SemaphoreState) -> Procedure[None]:
        yield from self._registering_limit(state)
        if self.rate is not None:
            there = self._rate_state(state)
            yield from register_rate(there, self.rate, any_block=self._any_block)

    def _registering_limit(self, state: SemaphoreState) -> Procedure[None]:
        if self.max_leases is None:
            limit = yield from learn_limit(state)
        else:
            limit = yield from lifecycle.register(state, self.max_leases)
        wrong = wrong_kind(state, limit, rate=False)
        if wrong is not None:
            raise wrong
        if self.max_leases is None:
            return
        if limit.registered and limit.number is not None and limit.number != self.max_leases:
            raise InconsistentLimit(
                f"Inconsistent max leases: {self.max_leases}, expected: {limit.number} "
                f"(semaphore {self.name!r}: {limit.number} is registered; give that, or change it "
                f"for everybody: etcdsem limit {self.name} {self.max_leases})",
                given=self.max_leases,
                registered=limit.number,
            )

    def _resizing(self, state: SemaphoreState, max_leases: int) -> Procedure[None]:
        number = check_limit(max_leases, least=0)
        yield from admin.resize(state, number)
        if number:
            self.max_leases = number

    def _draining(
        self, state: SemaphoreState, timeout: Duration | None, reason: str | None
    ) -> Procedure[bool]:
        by = self.owner or operator()
        return draining(state, by, timeout, reason, None, rate=self._is_rate)

    def _status(self, state: SemaphoreState, *, ttl: bool) -> Procedure[Status]:
        seen = yield from inspection.status(state, ttl=ttl)
        check_kind(state, rate=self._is_rate)
        return seen

    def _counting(self, state: SemaphoreState) -> Procedure[int]:
        held = yield from inspection.held(state)
        check_kind(state, rate=self._is_rate)
        return held

    def _closing(self, state: SemaphoreState) -> Procedure[None]:
        closing = yield from lifecycle.close(state, force=True, rate=self._is_rate)
        if closing.holders or closing.waiters:
            state.session.env.log(
                logging.WARNING,
                "semaphore %s was closed while in use: %d held (%s), %d waiting",
                self.name,
                len(closing.holders),
                ", ".join(closing.holders) or "-",
                len(closing.waiters),
            )

    @property
    def refresh_leases(self) -> bool:
        """False pauses the refresh of this object's leases, for tests."""
        return self._refresh_leases

    @refresh_leases.setter
    def refresh_leases(self, on: bool) -> None:
        self._refresh_leases = bool(on)
        for lease in self.leases:
            lease._grant.lease.paused = not on


def register_rate(state: SemaphoreState, wanted: Rate, *, any_block: bool) -> Procedure[None]:
    """Write the rate if it is new, else check that it is the same."""
    limit = yield from lifecycle.register(state, wanted)
    rate = rates.rate_of(state, limit)
    same = rate == wanted or (any_block and rate[:2] == wanted[:2])
    if limit.registered and not same:
        raise InconsistentLimit(
            f"Inconsistent rate: {wanted}, expected: {rate} (rate limit {state.name!r}: {rate} "
            f"is registered; give that, or change it for everybody: etcdsem rate {state.name} "
            f"{wanted})",
            given=wanted.starts,
            registered=rate.starts,
        )


def check_dask_arguments(register: bool, scheduler_rpc: None) -> None:
    """Refuse what Dask's semaphore takes, and what would be ignored here."""
    if scheduler_rpc is not None:
        raise TypeError(
            "scheduler_rpc is a connection to Dask's scheduler, which etcdsem does not use: "
            "client= says which etcd to use, for example client=etcdsem.connect('host:2379')"
        )
    if not isinstance(register, bool):  # newer Dask has scheduler_rpc in this place
        raise TypeError(
            f"register must be True or False, not {type(register).__name__}; client= says which "
            "etcd to use"
        )


def read_validation_interval() -> float | None:
    """Seconds between two reads of what watches should have told, on average; None: the default."""
    what, given = "ETCDSEM_VALIDATION_INTERVAL", environment("ETCDSEM_VALIDATION_INTERVAL")
    if given is None:
        given = dask_setting("lease-validation-interval")
        what = (
            "Dask's distributed.scheduler.locks.lease-validation-interval (used without "
            "ETCDSEM_VALIDATION_INTERVAL)"
        )
    if given is None:
        return None
    every = seconds(given, what=what)
    if not MIN_VALIDATION_INTERVAL <= every < math.inf:
        raise InvalidSetting(f"{what} must be at least {MIN_VALIDATION_INTERVAL}s, not {given!r}")
    return every
