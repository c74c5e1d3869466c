"""The lease request of `run` and `hold`: their common options, and the checks without etcd."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from etcdsem import validation
from etcdsem.cli import exit_codes
from etcdsem.cli.options import WholeNumber
from etcdsem.cli.output import exact, say
from etcdsem.cli.run.supervisor import slack
from etcdsem.errors import InvalidSetting
from etcdsem.intervals import read_intervals

if TYPE_CHECKING:
    from etcdsem.model import Rate

F = TypeVar("F", bound=Callable[..., Any])

ORDINARY: Final = {"weight": 1, "priority": 0, "backfill": False}
"""The options that ask for more than one slot in queue order, with their defaults."""


class LeaseRequest(NamedTuple):
    """The requested lease. Durations are in seconds."""

    name: str
    limit: int | None
    wait: float | None
    conflict_code: int
    ttl: int
    refresh: float
    labels: Mapping[str, str]
    quiet: bool
    weight: int
    priority: int
    backfill: bool
    etcd_wait: float | None
    """Seconds to wait for an etcd that does not answer; None: the defaults."""
    spare: float
    """Seconds that remain of the lease when a refresh has failed."""
    max_hold: float | None = None
    rate: Rate | None = None
    max_waiting: int | None = None
    more: tuple[tuple[str, int | None], ...] = ()
    """Names and limits of further semaphores, of which a lease each is requested too."""
    one_of: bool = False
    """Whether it is one of several."""
    expires: int = 0
    """Seconds for which a new name stays that nobody uses; 0: for good."""
    cost: int = 1
    """How many permits of the rate limit it takes."""

    @property
    def only_rate(self) -> bool:
        """Whether only a permit of a rate limit is requested, and no lease."""
        return self.rate is not None and self.limit is None

    @property
    def names(self) -> tuple[str, ...]:
        """All semaphores of which a lease is requested."""
        return (self.name, *(name for name, _ in self.more))

    @property
    def shown(self) -> str:
        """Their names, for messages."""
        return ", ".join(self.names)


_EAGER = "etcdsem.eager"


def _eager(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Accept --eager, the deprecated name of --backfill, for one more release."""
    if value and not ctx.resilient_parsing:
        say("--eager is deprecated: use --backfill")
        ctx.meta[_EAGER] = True


def _backfill(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Return the option's value. Click reads the options that were given, so --eager too, first."""
    return value or ctx.meta.get(_EAGER, False)


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "-l",
        "--limit",
        metavar="N",
        type=WholeNumber(),
        help="Allow at most N holders at a time. Registers NAME if it is new; otherwise N must "
        "equal the registered limit. Default: the registered limit.",
    ),
    click.option(
        "-w",
        "--wait",
        "--timeout",
        "wait",
        metavar="DURATION",
        help="Give up after this long.  [wait forever]",
    ),
    click.option(
        "--etcd-wait",
        metavar="DURATION",
        help="Give up on an etcd that does not answer after this long, at the start and while "
        "waiting. Also set by ETCDSEM_ETCD_WAIT.  [10s at the start, 60s while waiting]",
    ),
    click.option("-n", "--nonblock", is_flag=True, help="Do not wait; same as --wait 0."),
    click.option(
        "-E",
        "--conflict-exit-code",
        metavar="N",
        type=WholeNumber(0, 255),
        default=exit_codes.CONFLICT,
        help="Exit code for giving up.  [75]",
    ),
    click.option(
        "--max-waiting",
        metavar="N",
        type=WholeNumber(0),
        help="Give up at once instead of waiting if N or more wait already; 0: never wait.",
    ),
    click.option(
        "--weight",
        metavar="K",
        type=WholeNumber(),
        default=1,
        help="Hold K slots, 1 to 32, granted all at once.  [1]",
    ),
    click.option(
        "--priority",
        metavar="P",
        type=WholeNumber(),
        default=0,
        help="Priority in the queue, -100 to 100. Higher is served first; equal priorities are "
        "served in order of arrival.  [0]",
    ),
    click.option(
        "--backfill",
        is_flag=True,
        callback=_backfill,
        help="Overtake waiters that need more slots than are free. They may then wait forever.",
    ),
    click.option("--eager", is_flag=True, hidden=True, expose_value=False, callback=_eager),
    click.option(
        "-t",
        "--lease-timeout",
        metavar="DURATION",
        help="Free the slot this long after the last refresh, e.g. if this machine fails. At "
        "least 2s.  [30s]",
    ),
    click.option(
        "--max-hold",
        metavar="DURATION",
        help="Hold the lease no longer than this. It then counts as lost, and the next waiter "
        "gets the slot.",
    ),
    click.option(
        "--expires",
        metavar="DURATION",
        help="Let NAME, if it is new, leave etcd when nobody has used it for this long, at least "
        "10m.  [it stays]",
    ),
    click.option(
        "--label",
        "labels",
        metavar="KEY=VALUE",
        multiple=True,
        help="Add a label for operators to see, besides those in ETCDSEM_LABELS (k=v,k=v). May be "
        "repeated.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print nothing while waiting."),
)


def request_options(function: F) -> F:
    """Add the options of a lease request to a command; `read_request()` reads them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_request(
    *, expires: str | None = None, more: Sequence[tuple[str, int | None]] = (), **given: Any
) -> LeaseRequest:
    """Check the options, without etcd. Raises UsageError, InvalidName or InvalidSetting."""
    request = _read_request(**given)._replace(more=tuple(more))
    numbers = (request.limit, *(number for _, number in request.more))
    if expires is not None and request.rate is None and not any(numbers):
        raise click.UsageError("--expires applies to names that are registered: give --limit, too")
    period = 0.0 if request.rate is None else request.rate.period
    after = validation.expires_seconds(expires, period=period, what="--expires")
    return request._replace(expires=after)


def _read_request(
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
    etcd_wait: str | None = None,
    rate: str | None = None,
    priority: int = 0,
    backfill: bool = False,
    max_waiting: int | None = None,
) -> LeaseRequest:
    _check_kind(rate, limit, weight, priority, backfill, max_hold)
    intervals = read_intervals(lease_timeout, None)
    return LeaseRequest(
        name=validation.check_name(name),
        limit=None if limit is None else validation.check_limit(limit),
        wait=_wait_seconds(wait, nonblock=nonblock),
        conflict_code=conflict_exit_code,
        ttl=intervals.lease_timeout,
        refresh=intervals.refresh,
        spare=intervals.spare,
        labels=_labels(labels),
        quiet=quiet,
        weight=validation.check_weight(weight),
        priority=validation.check_priority(priority),
        backfill=backfill,
        etcd_wait=_etcd_wait(etcd_wait),
        max_hold=validation.max_hold_seconds(max_hold, what="--max-hold"),
        rate=None if rate is None else validation.read_rate(rate),
        max_waiting=max_waiting,
    )


def _wait_seconds(wait: str | None, *, nonblock: bool) -> float | None:
    if nonblock and wait is not None:
        raise click.UsageError("--nonblock and --wait cannot be combined")
    return 0.0 if nonblock else validation.timeout_seconds(wait, what="--wait")


def _etcd_wait(given: str | None) -> float | None:
    what = "--etcd-wait"
    if given is None:
        given, what = validation.environment("ETCDSEM_ETCD_WAIT"), "ETCDSEM_ETCD_WAIT"
    if given is None:
        return None
    wait = validation.seconds(given, what=what)
    if not 0 < wait < math.inf:
        raise InvalidSetting(f"{what} must be more than 0, not {given!r}")
    return wait


def _check_kind(rate: str | None, limit: int | None, *of_lease: object) -> None:
    if rate is not None and limit is None and of_lease != (*ORDINARY.values(), None):
        raise click.UsageError(
            "--weight, --priority, --backfill and --max-hold apply to leases: with --rate, also "
            "give -l N"
        )


def read_grace(option: str, given: str | None, request: LeaseRequest) -> float:
    """Return the time from "lost" to the end of the work, in seconds.

    It must fit, after a failed refresh and one more attempt, before the end of the lease, and also
    within --max-hold. `option` names the setting in errors.

    Raises:
        InvalidSetting: it does not fit.
    """
    from etcdsem.validation import seconds

    ttl = request.ttl
    room = request.spare - slack(ttl)
    longest = request.max_hold if request.max_hold is not None else math.inf
    if given is None:
        wanted = min(5.0, ttl / 3, max(0.0, 0.9 * room), longest / 3)
    else:
        wanted = seconds(given, what=option)
    if longest < math.inf and not 0 <= wanted < longest - slack(ttl):
        raise InvalidSetting(
            f"--max-hold {exact(longest)} is too short for {option} {exact(wanted)}: give more "
            f"than {exact(wanted + slack(ttl))}, so that the work can end in time"
        )
    if given is None:
        return wanted
    if not 0 <= wanted < room:
        raise InvalidSetting(
            f"{option} {given} is too long for a lease timeout of {ttl}s with a refresh every "
            f"{exact(request.refresh)}: give less than {exact(room)}, or a longer --lease-timeout"
        )
    return wanted


def _labels(given: Sequence[str]) -> dict[str, str]:
    from etcdsem.validation import read_labels

    labels = {}
    for label in given:
        key, equals, value = label.partition("=")
        if not equals:
            raise InvalidSetting(f"invalid --label {label!r}: expected KEY=VALUE")
        labels[key] = value
    return read_labels(labels)
