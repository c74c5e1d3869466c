"""Several semaphores at once: what the blocking and the asyncio library share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from etcdsem.core import multi
from etcdsem.core.commands import Procedure
from etcdsem.core.grants import Grant
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import AcquireTimeout, InvalidSetting, LeaseLost
from etcdsem.facade.lease import BaseLease
from etcdsem.facade.semaphore import BaseSemaphore
from etcdsem.model import MAX_SEMAPHORES, Duration


class Part(NamedTuple):
    """One of several semaphores: the object, its state in the core, and how to make its lease."""

    semaphore: BaseSemaphore[Any]
    state: SemaphoreState
    lease_of: Callable[[Grant], Any]


def parts_of(
    semaphores: Sequence[Any],
    kind: type[BaseSemaphore[Any]],
    lease_of: Callable[[Any, Any, Grant], BaseLease],
) -> list[Part]:
    """The parts, if these are semaphores of that kind, not too many, all different and of one
    client; else raise what says so. `lease_of` makes a lease of semaphore, engine and grant.
    """
    _check(semaphores, kind)
    clients = [one.client for one in semaphores]
    driver = clients[0]._driver
    parts = [Part(one, one._state(), partial(lease_of, one, driver)) for one in semaphores]
    if any(client is not clients[0] for client in clients):
        raise InvalidSetting(
            "several semaphores at once must use the same client: give all of them the same "
            "client=, from connect(), or none of them"
        )
    _check_parts(parts)
    return parts


def refuse_wants(weight: int, priority: int, backfill: bool) -> None:
    """Only the ordinary ones are taken together. Raises InvalidSetting, which says what to do."""
    given = {"weight": weight != 1, "priority": priority != 0, "backfill": bool(backfill)}
    for what, is_so in given.items():
        if is_so:
            raise InvalidSetting(
                f"several semaphores at once are taken one slot each, in turn, so there is no "
                f"{what}=; for that take them one within the other, all programs in the order of "
                f"the names: with a.hold({what}=...), b.hold():"
            )


def _check(semaphores: Sequence[object], kind: type[BaseSemaphore[Any]]) -> None:
    for one in semaphores:
        if not isinstance(one, kind):
            raise TypeError(
                f"acquire_all and hold_all take semaphores of {kind._package}, not "
                f"{type(one).__module__}.{type(one).__qualname__}; a timeout is given by name"
            )
    if not 1 <= len(semaphores) <= MAX_SEMAPHORES:
        raise InvalidSetting(
            f"{len(semaphores)} semaphores at once: give 1 to {MAX_SEMAPHORES}, as many as "
            "fit into one transaction"
        )


def _check_parts(parts: Sequence[Part]) -> None:
    seen: set[SemaphoreState] = set()
    for part in parts:
        if part.semaphore.rate is not None:
            raise InvalidSetting(
                f"semaphore {part.state.name!r} has a rate: that is no part of several at once; "
                "take a start of its RateLimit before"
            )
        if part.state in seen:
            raise InvalidSetting(
                f"semaphore {part.state.name!r} was given twice: several at once must be "
                "different ones"
            )
        seen.add(part.state)


def named(semaphores: Sequence[BaseSemaphore[Any]]) -> str:
    """Their names, for a message."""
    return ", ".join(repr(one.name) for one in semaphores)


def acquiring(
    parts: Sequence[Part],
    limit: float | None,
    on_wait: Callable[[str], object] | None,
    keep: Callable[[tuple[Any, ...]], object] | None = None,
) -> Procedure[tuple[Any, ...] | str]:
    """A lease of each, in the order given; or the name of the one that was full. `keep` gets
    them in the step in which they are granted.
    """
    env = parts[0].state.session.env
    until = math.inf if limit is None else env.now() + limit
    wants = [
        multi.Want(
            part.state,
            part.semaphore._request(
                part.state,
                None if on_wait is None else partial(on_wait, part.state.name),
            ),
        )
        for part in parts
    ]
    taken = yield from multi.acquire_all(wants, until, once=limit == 0)
    if taken.full is not None:
        return taken.full.want.semaphore.name
    try:  # whatever interrupts, as in `BaseSemaphore._acquiring`
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


def not_all(
    full: str, semaphores: Sequence[BaseSemaphore[Any]], timeout: Duration | None
) -> AcquireTimeout:
    """The error of a block that does not begin, since one of them was full."""
    return AcquireTimeout(
        f"semaphores {named(semaphores)}: not all had a free lease within {timeout!r}: "
        f"{full!r} had none; who holds it: etcdsem status {full}"
    )


def ending(leases: Sequence[BaseLease], *, quietly: bool) -> Procedure[None]:
    """Give all of them back, whatever comes between. Raises LeaseLost, which names each that was
    lost, if the block raised nothing (`quietly`: it did).
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
