"""What the two `acquire_all` and `hold_all` share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from etcdsem.core import multi
from etcdsem.core.commands import Procedure
from etcdsem.core.grants import Grant
from etcdsem.core.limits import why_full
from etcdsem.core.registration import registered
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import AcquireTimeout, InvalidSetting, LeaseLost
from etcdsem.facade.lease import BaseLease
from etcdsem.facade.semaphore import BaseSemaphore, within
from etcdsem.model import MAX_SEMAPHORES, Duration


class Part(NamedTuple):
    """One of the semaphores: the object, its state in the core, and what creates its lease."""

    semaphore: BaseSemaphore[Any]
    state: SemaphoreState
    lease_of: Callable[[Grant], Any]


def parts_of(
    semaphores: Sequence[Any],
    kind: type[BaseSemaphore[Any]],
    lease_of: Callable[[Any, Any, Grant], BaseLease],
) -> list[Part]:
    """Check that the semaphores can be taken together, and return the parts. `lease_of` creates a
    lease from semaphore, driver and grant.
    """
    _check(semaphores, kind)
    clients = [one.client for one in semaphores]
    driver = clients[0]._driver
    parts = [Part(one, one._state(), partial(lease_of, one, driver)) for one in semaphores]
    if any(client is not clients[0] for client in clients):
        raise InvalidSetting(
            "acquire_all needs semaphores of the same client: give all of them the same client=, "
            "from connect(), or none of them"
        )
    _check_parts(parts)
    return parts


def refuse_demand(weight: int, priority: int, backfill: bool) -> None:
    """Raise InvalidSetting for options that `acquire_all` does not support."""
    given = {"weight": weight != 1, "priority": priority != 0, "backfill": bool(backfill)}
    for what, is_so in given.items():
        if is_so:
            raise InvalidSetting(
                f"acquire_all and hold_all do not support {what}=. Nest the blocks instead, in the "
                f"same order in all programs: with a.hold({what}=...), b.hold():"
            )


def _check(semaphores: Sequence[object], kind: type[BaseSemaphore[Any]]) -> None:
    for one in semaphores:
        if not isinstance(one, kind):
            raise TypeError(
                f"acquire_all and hold_all take semaphores of {kind._package}, not "
                f"{type(one).__module__}.{type(one).__qualname__}; pass a timeout by name"
            )
    if not 1 <= len(semaphores) <= MAX_SEMAPHORES:
        raise InvalidSetting(
            f"acquire_all takes 1 to {MAX_SEMAPHORES} semaphores, as many as fit into one "
            f"transaction, not {len(semaphores)}"
        )


def _check_parts(parts: Sequence[Part]) -> None:
    seen: set[SemaphoreState] = set()
    for part in parts:
        if part.semaphore.rate is not None:
            raise InvalidSetting(
                f"semaphore {part.state.name!r} has a rate, which acquire_all does not support; "
                "acquire its RateLimit first"
            )
        if part.state in seen:
            raise InvalidSetting(
                f"semaphore {part.state.name!r} was given twice; acquire_all takes different "
                "semaphores"
            )
        seen.add(part.state)


def named(semaphores: Sequence[BaseSemaphore[Any]]) -> str:
    """Their names, for messages."""
    return ", ".join(repr(one.name) for one in semaphores)


def _request(part: Part, on_wait: Callable[[str], object] | None) -> multi.SemaphoreRequest:
    waits = None if on_wait is None else partial(on_wait, part.state.name)
    return multi.SemaphoreRequest(part.state, part.semaphore._request(part.state, waits))


def acquiring(
    parts: Sequence[Part],
    limit: float | None,
    on_wait: Callable[[str], object] | None,
    keep: Callable[[tuple[Any, ...]], object] | None = None,
) -> Procedure[tuple[Any, ...] | str]:
    """A lease of each, in order, or the name of the semaphore that was full. `keep` gets the
    leases in the step in which they are granted.
    """
    env = parts[0].state.session.env
    until = math.inf if limit is None else env.now() + limit
    demand = [_request(part, on_wait) for part in parts]
    taken = yield from registered(
        [(one.state, one.semaphore._registration) for one in parts],
        lambda: multi.acquire_all(demand, until, once=limit == 0),
    )
    if taken.full is not None:
        return taken.full.part.semaphore.name
    try:  # an interruption may come, as in `BaseSemaphore._acquiring`
        leases = tuple(
            part.semaphore._list(grant, part.lease_of)
            for part, grant in zip(parts, taken.grants, strict=True)
        )
        for lease in leases:
            lease.owner = "caller"
        if keep is not None:
            keep(leases)
    except BaseException:
        for part, grant in zip(parts, taken.grants, strict=True):
            yield from part.semaphore._unlist(grant)
        raise
    return leases


def not_all(full: str, semaphores: Sequence[Any], timeout: Duration | None) -> AcquireTimeout:
    """The error of a block that does not begin, because a semaphore was full."""
    (state,) = (one._state() for one in semaphores if one.name == full)
    reason = why_full(state.limit, full, state.session.env.wall()) or (
        f"it had no free lease {within(timeout)}; to see the holders: etcdsem status {full}"
    )
    return AcquireTimeout(f"semaphores {named(semaphores)}: {full!r} prevented it: {reason}")


def ending(leases: Sequence[BaseLease], *, quietly: bool) -> Procedure[None]:
    """Release all of them, also if the release of one is interrupted. Raises LeaseLost, which names
    each lost lease, unless the block raised an exception (`quietly`).
    """
    losses: list[str] = []
    interruption: BaseException | None = None
    for lease in leases:
        if not lease._here:
            continue
        try:
            if quietly:
                yield from lease._releasing()
            else:
                yield from lease._ending()
        except LeaseLost as loss:
            losses.append(str(loss))
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption
    if losses:
        raise LeaseLost(" ".join(losses))
