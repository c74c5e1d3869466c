"""The time from "lost" to the end of the work: what fits into a lease, and what does not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from etcdsem.cli.run.request import LeaseRequest, read_grace, read_request
from etcdsem.cli.run.supervisor import slack
from etcdsem.core.leases import margin
from etcdsem.errors import InvalidSetting


def request(timeout: str | None = None, **more: Any) -> LeaseRequest:
    """What is wanted with this lease timeout."""
    given: dict[str, Any] = {
        "name": "db",
        "limit": 1,
        "wait": None,
        "nonblock": False,
        "conflict_exit_code": 75,
        "lease_timeout": timeout,
        "labels": (),
        "quiet": False,
        "weight": 1,
        "max_hold": None,
    }
    return read_request(**{**given, **more})


def room(wanted: LeaseRequest) -> float:
    """Seconds that are left of a lease whose refresh has failed, until it ends."""
    return wanted.ttl - margin(wanted.ttl) - slack(wanted.ttl) - wanted.refresh


@pytest.mark.parametrize("timeout", ["2", "3", "6", "15", "30", "10m"])
def test_the_grace_that_is_taken_by_itself_fits(timeout: str) -> None:
    """After a refresh that failed there is time for one more, and then for SIGTERM's."""
    wanted = request(timeout)
    grace = read_grace("--kill-after", None, wanted)
    assert 0 < grace <= 5.0
    assert grace < room(wanted)
    assert grace <= wanted.ttl / 3


@pytest.mark.parametrize("timeout", ["2", "6", "30", "10m"])
def test_a_grace_that_does_not_fit_is_refused(timeout: str) -> None:
    """To the tenth of a second."""
    wanted = request(timeout)
    fits = math.floor(room(wanted) * 10 - 0.01) / 10
    assert read_grace("--kill-after", str(fits), wanted) == fits
    with pytest.raises(InvalidSetting, match="is too long for"):
        read_grace("--kill-after", str(round(fits + 0.2, 1)), wanted)


def test_a_grace_must_fit_into_max_hold_too() -> None:
    """A third of it by itself; and never so long that it had to begin before the command."""
    short = request("30s", max_hold="6s")
    assert read_grace("--kill-after", None, short) == 2.0
    assert read_grace("--kill-after", "5s", short) == 5.0
    with pytest.raises(InvalidSetting, match="--max-hold"):
        read_grace("--kill-after", "5.5s", short)


def test_how_long_to_wait() -> None:
    """For ever, so long, or not at all."""
    assert request().wait is None
    assert request(wait="1m30s").wait == 90.0
    assert request(nonblock=True).wait == 0.0
