"""What the two clients share: settings, and the operator's calls as procedures."""

from __future__ import annotations

import getpass
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial

from etcdsem import interpreter
from etcdsem.core import admin, declare, forecast, inspection, pruning
from etcdsem.core.commands import Procedure
from etcdsem.core.keys import Limit
from etcdsem.core.limits import check_kind, learn_limit
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.drivers.base import ConnectionSettings
from etcdsem.errors import EtcdSemError, InvalidSetting
from etcdsem.model import (
    Duration,
    Holder,
    Junk,
    LimitChange,
    LimitInfo,
    Pruned,
    Rate,
    Status,
    Waiter,
)
from etcdsem.validation import (
    DEFAULT_PREFIX,
    check_limit,
    check_name,
    check_prefix,
    check_text,
    environment,
    expires_seconds,
    make_rate,
    pause_seconds,
    seconds,
    timeout_seconds,
)

KEEPER_LIMIT = 600.0
"""Seconds for which a keeper refreshes the leases of a program that gives no sign of life."""


def brief(error: EtcdSemError) -> EtcdSemError:
    """The error without causes and frames from inside the library, unless ``ETCDSEM_DEBUG`` is set:
    its message says what a caller needs.
    """
    if environment("ETCDSEM_DEBUG") is not None:
        return error
    error.__cause__, error.__suppress_context__ = None, True
    return error.with_traceback(None)


class BaseClient:
    """A client's settings, and what the operator's calls do."""

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
        """Seconds for which a keeper refreshes the leases of a program that gives no sign of life;
        None: no keeper."""
        self.prefix = check_prefix(prefix or environment("ETCDSEM_PREFIX") or DEFAULT_PREFIX)

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.settings.endpoints))
        return f"<{self._package}.Client of {where}>"

    @property
    def _session(self) -> Session:
        raise NotImplementedError

    def _state(self, name: str, prefix: str | None = None) -> SemaphoreState:
        return self._session.semaphore(prefix or self.prefix, check_name(name))

    def _reading_limit(self, name: str) -> Procedure[int | None]:
        state = self._state(name)
        limit = yield from learn_limit(state)
        check_kind(state, rate=False)
        return limit.number

    def known_limit(self, name: str) -> LimitInfo | None:
        """The limit as this client last saw it, without asking etcd. None if it never saw one, or
        the semaphore was not registered then.
        """
        limit = self._state(name).limit
        return None if limit is None else _limit_info(limit)

    def _reading_info(self, name: str) -> Procedure[LimitInfo]:
        return _limit_info((yield from learn_limit(self._state(name))))

    @staticmethod
    def next_free(seen: Status) -> float:
        """Seconds until a rate limit may have a permit for a new caller; infinite while it is
        paused until somebody resumes it. An estimate from the times stored in etcd and this
        machine's clock.
        """
        endless = seen.pause is not None and seen.pause.until is None
        return math.inf if endless else forecast.next_free(seen, time.time())

    def _resizing(
        self, name: str, wanted: int | Rate
    ) -> Procedure[tuple[int | Rate | None, int | Rate]]:
        if isinstance(wanted, Rate):
            wanted = make_rate(*wanted)
            change = yield from admin.resize(self._state(name), wanted)
            return change.before.rate, wanted
        number = check_limit(wanted, least=0)
        change = yield from admin.resize(self._state(name), number)
        return change.before.number, number

    def _resizing_by(self, name: str, difference: int) -> Procedure[tuple[int, int]]:
        change = yield from admin.change_by(self._state(name), difference)
        before, after = change.before.number, change.after.number
        if before is None or after is None:
            raise AssertionError("a limit that is not a number was changed by a difference")
        return before, after

    def _planning(
        self, limits: Mapping[str, int | Rate], *, prune: bool
    ) -> Procedure[list[LimitChange]]:
        wanted = {
            check_name(name): make_rate(*one)
            if isinstance(one, Rate)
            else check_limit(one, least=0)
            for name, one in limits.items()
        }
        return declare.plan(self._session, self.prefix, wanted, prune=prune)

    def _pruning(self, idle: Duration, pattern: str, *, dry_run: bool) -> Procedure[Pruned]:
        after = expires_seconds(idle, what="idle")
        if not after:
            raise InvalidSetting("idle must be a duration: after an infinite one no name expires")
        matches = partial(fnmatchcase, pat=pattern)
        return pruning.prune(self._session, self.prefix, after, matches, dry_run=dry_run)

    def _pausing(self, name: str, reason: str | None) -> Procedure[bool]:
        return pausing(self._state(name), operator(), reason)

    def _penalizing(self, name: str, duration: Duration, reason: str | None) -> Procedure[bool]:
        return penalizing(self._state(name), operator(), duration, reason)

    def _resuming(self, name: str) -> Procedure[bool]:
        return resuming(self._state(name))

    def _draining(
        self,
        name: str,
        timeout: Duration | None,
        reason: str | None,
        on_wait: Callable[[], object] | None,
    ) -> Procedure[bool]:
        return draining(self._state(name), operator(), timeout, reason, on_wait)

    def _evicting(
        self, name: str, slot: int | None, lease: str | None
    ) -> Procedure[Holder | Waiter | Junk]:
        if (slot is None) == (lease is None):
            raise InvalidSetting("evict: give either slot= or lease=")
        return (yield from inspection.evict(self._state(name), operator(), slot=slot, lease=lease))


def _limit_info(limit: Limit) -> LimitInfo:
    return LimitInfo(limit.number, limit.rate, limit.pause, limit.text)


def pausing(
    state: SemaphoreState, by: str, reason: str | None, *, rate: bool | None = None
) -> Procedure[bool]:
    """Pause a semaphore or a rate limit (`rate`: None means either). False if it was already
    paused.
    """
    return (yield from admin.pause(state, by, _reason(reason), rate=rate)).changed


def penalizing(
    state: SemaphoreState,
    by: str,
    duration: Duration,
    reason: str | None,
    *,
    rate: bool | None = None,
) -> Procedure[bool]:
    """Pause it for a time. False if it is paused for at least as long already."""
    wanted, why = pause_seconds(duration), _reason(reason)
    return (yield from admin.penalize(state, by, wanted, why, rate=rate)).changed


def resuming(state: SemaphoreState, *, rate: bool | None = None) -> Procedure[bool]:
    """Resume it. False if it was not paused."""
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
    """Pause a semaphore and wait until it has no holder. False if it has one at the timeout."""
    limit = timeout_seconds(timeout)
    why = _reason(reason)
    until = math.inf if limit is None else state.session.env.now() + limit
    return (yield from admin.drain(state, by, why, until, on_wait, rate=rate))


def _reason(given: str | None) -> str | None:
    return check_text(given, what="reason").strip() if given is not None else None


def operator() -> str:
    """The name recorded for an operator's change: ``ETCDSEM_OWNER``, else user@host."""
    owner = environment("ETCDSEM_OWNER")
    if owner is not None:
        return check_text(owner, what="ETCDSEM_OWNER")
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # KeyError: Python before 3.13
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def read_keeper(keeper: bool | Duration | None) -> float | None:
    """Seconds for which a keeper continues without a sign of life; None: no keeper.

    The argument None means ``ETCDSEM_KEEPER``: a duration, or yes/no, on/off, true/false, 1/0.
    """
    if keeper is None:
        word = environment("ETCDSEM_KEEPER") or "no"
        keeper = _WORDS.get(word.lower(), word)
    if keeper is False:
        return None
    limit = KEEPER_LIMIT if keeper is True else seconds(keeper, what="keeper")
    if not limit > 0:
        raise InvalidSetting(
            f"keeper: {keeper!r} must be True, or a duration longer than 0 for which it "
            "refreshes the leases of a program that gives no sign of life"
        )
    if reason := interpreter.why_not():
        raise InvalidSetting(
            f"keeper: its process cannot be started, because {reason}. Use keeper=False (and unset "
            "ETCDSEM_KEEPER) with a lease_timeout longer than this program is ever busy"
        )
    return limit


_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False}
