"""When a running command must end: one look at its lease after the other, with time set by hand."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from etcdsem.cli.run import supervisor
from etcdsem.cli.run.multi import MultiLease
from etcdsem.cli.run.supervisor import Policy, Supervisor

TTL = 30.0
KILL_AFTER = 5.0
SLACK = supervisor.slack(TTL)


class Lease:
    """A lease as the supervisor sees it."""

    def __init__(self, remaining: float = TTL, name: str = "db") -> None:
        self.name = name
        self.remaining = remaining
        self.valid = True
        self.lost_reason = ""
        self.max_hold: float | None = None
        self.hold_remaining: float | None = None
        self.ttl = TTL

    def lose(self, reason: str) -> None:
        """It was evicted: by the clock it would last for long."""
        self.valid, self.lost_reason = False, reason


class Watched:
    """A supervisor, what it does, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lease: Any, policy: Policy) -> None:
        self.now = 1000.0
        self.sent: list[signal.Signals] = []
        self.guarded: list[float] = []
        self.said: list[str] = []
        monkeypatch.setattr(supervisor, "boot_time", lambda: self.now)
        monkeypatch.setattr(supervisor, "say", self.said.append)
        anything: Any = self
        self.supervisor = Supervisor("db", lease, anything, anything, anything, anything, policy)

    def send(self, number: int) -> bool:
        """A signal goes to the command."""
        self.sent.append(signal.Signals(number))
        return True

    def extend(self, deadline: float) -> None:
        """The watchdog is told until when the command may live."""
        self.guarded.append(deadline)

    def look(self, later: float = 0.0) -> None:
        """Time passes, and the supervisor looks at the lease."""
        self.now += later
        self.supervisor._look_at_lease()

    @property
    def pause(self) -> float:
        """Until the next look, if nothing happens."""
        return self.supervisor._pause()


def watched(monkeypatch: pytest.MonkeyPatch, lease: Any, *, terminate: bool = True) -> Watched:
    """A supervisor of a command with this lease."""
    return Watched(monkeypatch, lease, Policy(terminate=terminate, ttl=TTL, kill_after=KILL_AFTER))


def test_the_watchdog_hears_of_each_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each look it is told until when the lease is good."""
    lease = Lease()
    seen = watched(monkeypatch, lease)
    seen.look()
    lease.remaining = 21.0
    seen.look(9.0)
    lease.remaining = TTL
    seen.look(1.0)
    assert seen.guarded == [1030.0, 1030.0, 1040.0]
    assert (seen.sent, seen.said) == ([], [])


def test_a_lease_that_cannot_be_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM so early that SIGKILL, --kill-after later, still lands before the lease ends."""
    lease = Lease(KILL_AFTER + SLACK + 0.01)
    seen = watched(monkeypatch, lease)
    seen.look()
    assert seen.sent == []
    assert seen.pause <= 0.01 + 1e-9
    lease.remaining -= 0.01
    seen.look(0.01)
    assert seen.sent == [signal.SIGTERM, signal.SIGCONT]
    assert seen.supervisor.lost
    assert len(seen.said) == 1
    end = seen.now + lease.remaining
    assert seen.guarded[-1] == pytest.approx(end)
    lease.remaining -= KILL_AFTER - 0.01
    seen.look(KILL_AFTER - 0.01)
    assert len(seen.sent) == 2
    seen.look(0.02)
    assert seen.sent[2:] == [signal.SIGKILL]
    assert seen.now < end


def test_a_lease_that_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evicted, though it would have lasted: SIGTERM at once, SIGKILL --kill-after later; what the
    watchdog knew before was the lease's deadline, which may come sooner.
    """
    lease = Lease()
    seen = watched(monkeypatch, lease)
    seen.look()
    lease.lose("evicted by hand")
    seen.look()
    assert seen.sent == [signal.SIGTERM, signal.SIGCONT]
    assert "evicted by hand" in seen.said[0]
    assert seen.guarded[-1] == pytest.approx(seen.now + KILL_AFTER + SLACK)
    seen.look(KILL_AFTER - 0.1)
    assert len(seen.sent) == 2
    seen.look(0.1)
    assert seen.sent[2:] == [signal.SIGKILL]
    assert len(seen.said) == 1


def test_with_warn_the_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, and nothing is sent."""
    lease = Lease(1.0)
    seen = watched(monkeypatch, lease, terminate=False)
    seen.look()
    assert seen.said == []
    lease.lose("it could not be refreshed")
    seen.look()
    seen.look(100.0)
    assert (seen.sent, seen.guarded) == ([], [])
    assert len(seen.said) == 1
    assert "WITHOUT a lease" in seen.said[0]
    assert not seen.supervisor.lost


def test_the_end_by_max_hold_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ahead of SIGTERM, which comes ahead of the end."""
    lease = Lease()
    lease.max_hold, lease.hold_remaining = 600.0, 500.0
    seen = watched(monkeypatch, lease)
    seen.look()
    assert seen.said == []
    lease.hold_remaining = KILL_AFTER + SLACK + 1.0
    seen.look()
    seen.look()
    assert len(seen.said) == 1
    assert "--max-hold is 10m" in seen.said[0]
    assert "the command will be ended in 1s" in seen.said[0]


@pytest.mark.parametrize("left", [TTL, KILL_AFTER + SLACK + 0.3, 0.0])
def test_nothing_is_slept_through(monkeypatch: pytest.MonkeyPatch, left: float) -> None:
    """It looks again when something is due, at the latest."""
    lease = Lease(left)
    seen = watched(monkeypatch, lease)
    seen.look()
    due = KILL_AFTER if left <= 0 else left - KILL_AFTER - SLACK
    assert 0 < seen.pause <= max(due, 0.05)
    assert seen.pause <= 1.0


# ---------------------------------------------------------------- of several semaphores


def together(*leases: Lease) -> MultiLease:
    """Several leases as one."""
    several: Any = leases
    return MultiLease(several)


def test_several_leases_end_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that ends first counts, and is named."""
    first, second = Lease(20.0, "a"), Lease(10.0, "b")
    both = together(first, second)
    assert (both.valid, both.remaining, both.ends_first) == (True, 10.0, "b")
    assert both.hold_remaining is None
    first.hold_remaining = 7.0
    second.hold_remaining = 9.0
    assert both.hold_remaining == 7.0
    second.remaining = KILL_AFTER
    seen = watched(monkeypatch, both)
    seen.look()
    assert seen.sent[:1] == [signal.SIGTERM]
    assert "'b'" in seen.said[0]


@pytest.mark.parametrize("which", [0, 1])
def test_the_losing_of_any_one_counts(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    """Whichever is lost, the command ends."""
    leases = Lease(20.0, "a"), Lease(10.0, "b")
    both = together(*leases)
    seen = watched(monkeypatch, both)
    leases[which].lose("evicted")
    assert not both.valid
    leases[which].remaining = 0.0
    seen.look()
    assert seen.sent[:1] == [signal.SIGTERM]
    assert f"'{'ab'[which]}'" in seen.said[0]
