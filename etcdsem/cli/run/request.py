"""What `run` and `hold` ask for in common: the options, and what is checked without etcd."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from etcdsem import model
from etcdsem.cli import exit_codes
from etcdsem.cli.options import WholeNumber
from etcdsem.cli.output import exact
from etcdsem.cli.run.supervisor import slack
from etcdsem.errors import InvalidSetting
from etcdsem.intervals import read_intervals

if TYPE_CHECKING:
    from etcdsem.model import Rate

F = TypeVar("F", bound=Callable[..., Any])

ORDINARY: Final = {"weight": 1, "priority": 0, "eager": False}
"""The options that ask for more than one slot in its turn, and what they are if not given."""


class LeaseRequest(NamedTuple):
    """The lease that is wanted. Durations in seconds."""

    name: str
    limit: int | None
    more: tuple[tuple[str, int | None], ...]
    """Names and limits of further semaphores: a lease of each is wanted."""
    one_of: bool
    """It is one of several."""
    wait: float | None
    conflict_code: int
    ttl: int
    refresh: float
    labels: Mapping[str, str]
    quiet: bool
    weight: int
    priority: int
    eager: bool
    spare: float
    """Seconds that are left of the lease when a refresh has failed."""
    max_hold: float | None = None
    rate: Rate | None = None

    @property
    def only_rate(self) -> bool:
        """A start of a rate limit is wanted, and no lease."""
        return self.rate is not None and self.limit is None

    @property
    def names(self) -> tuple[str, ...]:
        """All semaphores of which a lease is wanted."""
        return (self.name, *(name for name, _ in self.more))

    @property
    def shown(self) -> str:
        """Their names, for people."""
        return ", ".join(self.names)


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "-l",
        "--limit",
        metavar="N",
        type=WholeNumber(),
        help="At most N hold NAME at a time: registers it if it is new, else N must be what is "
        "registered. Without it, whatever is registered.",
    ),
    click.option(
        "-w",
        "--wait",
        "--timeout",
        "wait",
        metavar="DURATION",
        help="Give up after that. [for ever]",
    ),
    click.option("-n", "--nonblock", is_flag=True, help="Don't wait: the same as --wait 0."),
    click.option(
        "-E",
        "--conflict-exit-code",
        metavar="N",
        type=WholeNumber(0, 255),
        default=exit_codes.CONFLICT,
        help="The exit code when it gave up.  [75]",
    ),
    click.option(
        "--weight",
        metavar="K",
        type=WholeNumber(),
        default=1,
        help="Hold K slots, 1 to 32: all of them or none, in its turn.  [1]",
    ),
    click.option(
        "--priority",
        metavar="P",
        type=WholeNumber(),
        default=0,
        help="-100 to 100: of those who wait the highest is served first; of the same, in the "
        "order in which they came.  [0]",
    ),
    click.option(
        "--eager",
        is_flag=True,
        help="Pass those in line who want more slots than are free (they may wait for ever then).",
    ),
    click.option(
        "-t",
        "--lease-timeout",
        metavar="DURATION",
        help="The slot is free this long after we were last heard of. Seconds, at least 2.  [30s]",
    ),
    click.option(
        "--max-hold",
        metavar="DURATION",
        help="Hold it no longer than that: then it counts as lost, and the next one gets the slot.",
    ),
    click.option(
        "--label",
        "labels",
        metavar="KEY=VALUE",
        multiple=True,
        help="Shown to operators, with those of ETCDSEM_LABELS (k=v,k=v). May be repeated.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing while waiting."),
)


def request_options(function: F) -> F:
    """Give a command the options for the lease it wants; `read_request()` reads them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_request(
    *,
    name: str,
    limit: int | None,
    wait: str | None,
    nonblock: bool,
    conflict_exit_code: int,
    lease_timeout: str | None,
    labels: Sequence[str],
    quiet: bool,
    weight: int,
    max_hold: str | None,
    rate: str | None = None,
    more: Sequence[tuple[str, int | None]] = (),
    priority: int = 0,
    eager: bool = False,
) -> LeaseRequest:
    """Check all that can be checked without etcd."""
    seconds = _wait_seconds(wait, nonblock=nonblock)
    if rate is not None and limit is None:
        _refuse_lease_options(weight, priority, eager, max_hold)
    intervals = read_intervals(lease_timeout, None)
    return LeaseRequest(
        name=model.check_name(name),
        limit=None if limit is None else model.check_limit(limit),
        more=tuple(more),
        one_of=False,
        wait=seconds,
        conflict_code=conflict_exit_code,
        ttl=intervals.lease_timeout,
        refresh=intervals.refresh,
        spare=intervals.spare,
        labels=_labels(labels),
        quiet=quiet,
        weight=model.check_weight(weight),
        priority=model.check_priority(priority),
        eager=eager,
        max_hold=model.max_hold_seconds(max_hold, what="--max-hold"),
        rate=None if rate is None else model.read_rate(rate),
    )


def _wait_seconds(wait: str | None, *, nonblock: bool) -> float | None:
    if nonblock and wait is not None:
        raise click.UsageError("--nonblock and --wait exclude each other")
    return 0.0 if nonblock else model.timeout_seconds(wait, what="--wait")


def _refuse_lease_options(*given: object) -> None:
    if given != (*ORDINARY.values(), None):
        raise click.UsageError(
            "--weight, --priority, --eager and --max-hold are for a lease, so give -l N, too"
        )


def read_grace(option: str, given: str | None, request: LeaseRequest) -> float:
    """The time from "lost" to the end of the work, in seconds; `option` names it in an error.

    After a refresh that failed there must be time for one more, and then for that. It must end
    within --max-hold, too.
    """
    from etcdsem.model import seconds

    ttl = request.ttl
    room = request.spare - slack(ttl)
    longest = request.max_hold if request.max_hold is not None else math.inf
    if given is None:
        wanted = min(5.0, ttl / 3, max(0.0, 0.9 * room), longest / 3)
    else:
        wanted = seconds(given, what=option)
    if longest < math.inf and not 0 <= wanted < longest - slack(ttl):
        raise InvalidSetting(
            f"--max-hold {exact(longest)} is too short for {option} {exact(wanted)}: what is done "
            f"must have ended by then; give more than {exact(wanted + slack(ttl))}"
        )
    if given is None:
        return wanted
    if not 0 <= wanted < room:
        raise InvalidSetting(
            f"{option} {given} does not fit into a lease timeout of {ttl}s that is refreshed "
            f"every {exact(request.refresh)}: give less than {exact(room)}, "
            "or a longer --lease-timeout"
        )
    return wanted


def _labels(given: Sequence[str]) -> dict[str, str]:
    from etcdsem.model import read_labels

    labels = {}
    for label in given:
        key, equals, value = label.partition("=")
        if not equals:
            raise InvalidSetting(f"--label {label!r}: write KEY=VALUE")
        labels[key] = value
    return read_labels(labels)
