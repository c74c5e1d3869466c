"""Supervise the running command until it ends, or must end because its lease does.

    running ──the lease is lost, or nearly──> ending ──kill_at──> killed
       │                                         │                   │
       └────────────── the command ends ─────────┴───────────────────┘

1. With `terminate`, SIGTERM goes to the command's process group early enough that SIGKILL, sent
   `kill_after` later, lands before the lease's deadline, and so before etcd can reassign the slot.
   --max-hold is merely an earlier deadline.
   After an eviction the slot already belongs to another client: SIGTERM goes out at once, SIGKILL
   `kill_after` later.
2. INT, QUIT, TERM, HUP, USR1 and USR2 are forwarded to the group each time we receive them. A
   command that ignores them keeps running and keeps its lease.
3. The watchdog learns of every renewal within a tick, and gets "done" before the command is reaped.
4. Orphans that are reparented to us (as PID 1 of a container) are reaped.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from typing import Final, Protocol

from etcdsem.cli import exit_codes
from etcdsem.cli.output import exact, say, span
from etcdsem.cli.run.multi import MultiLease
from etcdsem.cli.run.outage import Outage
from etcdsem.cli.run.process_group import ProcessGroup
from etcdsem.cli.run.terminal import Terminal
from etcdsem.cli.run.watchdog import Watchdog
from etcdsem.cli.signals import Signals
from etcdsem.clock import boot_time
from etcdsem.intervals import missed_after
from etcdsem.posix import process_stat

_STOPS: Final = (signal.SIGTTIN, signal.SIGTTOU)
_LEFTOVERS_TICK: Final = 0.05


class HeldLease(Protocol):
    """The part of the library's `Lease` that is used here."""

    @property
    def remaining(self) -> float: ...
    @property
    def valid(self) -> bool: ...
    @property
    def lost_reason(self) -> str: ...
    @property
    def max_hold(self) -> float | None: ...
    @property
    def hold_remaining(self) -> float | None: ...


class Policy:
    """When a command must end. All times are in seconds."""

    def __init__(
        self, *, terminate: bool, ttl: float, kill_after: float, refresh: float | None = None
    ) -> None:
        """`refresh`: the interval between two refreshes, if it is not a third of `ttl`."""
        self.terminate = terminate
        self.kill_after = kill_after
        self.ttl = ttl
        self.missed_after = missed_after(ttl / 3 if refresh is None else refresh, ttl)
        self.slack = slack(ttl)
        self.tick = max(0.05, min(1.0, ttl / 10))


def slack(ttl: float) -> float:
    """Return the safety margin between SIGKILL and the lease's deadline, for busy machines."""
    return min(0.5, 0.05 * ttl)


def _warn_at(lease: HeldLease, policy: Policy) -> float:
    """Return how much of --max-hold is left when the warning is due."""
    from etcdsem.validation import warning_ahead

    if lease.max_hold is None:
        return -math.inf
    notice = policy.kill_after + policy.slack if policy.terminate else 0.0
    return warning_ahead(lease.max_hold) + notice


def ends_soon(name: str, lease: HeldLease, starved: str = "") -> str:
    """Return a message that says why a lease that is still valid will end soon.

    `starved` is why its client cannot start a thread, if it cannot.
    """
    from etcdsem.model import duration_text

    left, bound = lease.remaining, lease.hold_remaining
    if lease.max_hold is None or bound is None or bound > left + 0.1:
        why = f" (cannot start a thread: {starved})" if starved else ""
        return f"the lease on {name!r} cannot be refreshed{why} and ends in {exact(left)}"
    return (
        f"the lease on {name!r} ends in {exact(left)}: it has nearly reached its --max-hold of "
        f"{duration_text(lease.max_hold)}"
    )


class Supervisor:
    """One running command and its lease."""

    def __init__(
        self,
        name: str,
        lease: HeldLease,
        group: ProcessGroup,
        watchdog: Watchdog,
        signals: Signals,
        terminal: Terminal,
        policy: Policy,
        starved: Callable[[], str] = str,
        report: Callable[[], object] = str,
    ) -> None:
        """`starved` returns why the client cannot start a thread; empty if it can. `report` is
        called after each look at the lease.
        """
        self._name = name
        self._lease = lease
        self._group = group
        self._watchdog = watchdog
        self._signals = signals
        self._terminal = terminal
        self._policy = policy
        self._starved = starved
        self._report = report
        self._kill_at = math.inf  # finite while ending
        self._stopping = False  # a SIGTSTP was forwarded to the command
        self._forwarded: set[int] = set()
        self._warned = False
        self._outage = Outage(policy.missed_after, say)
        self._warn_at = _warn_at(lease, policy)
        self.lost = False
        """The command was ended because its lease was lost."""

    def run(self) -> int:
        """Wait until the command has ended. Returns its exit code, `BySignal` if one ended it."""
        while not self._ended():
            self._look_at_lease()
            self._report()
            for number in self._signals.wait(self._pause()):
                self._signalled(number)
        self._terminal.end(self._group.pid)
        if self.lost:
            self._end_leftovers()
        self._watchdog.done()
        code = self._reap()
        if isinstance(code, exit_codes.BySignal) and code.number not in self._forwarded:
            self._terminal.key_ended(code.number)
        if code == 128 + signal.SIGKILL and self._policy.terminate and not self._lease.valid:
            self.lost = True
            say(f"{self._loss()}; the watchdog killed the command")  # while we were stopped
        if not self.lost and self._group.send(0):
            say(
                f"note: processes of the command are still running in process group "
                f"{self._group.pid}, without a lease"
            )
        return code

    # ---------------------------------------------------------------- the lease

    def _look_at_lease(self) -> None:
        left = self._lease.remaining if self._lease.valid else 0.0
        now = boot_time()
        bound = self._lease.hold_remaining
        if bound is not None and bound <= self._warn_at and left > 0:
            self._warn_at = -math.inf
            self._warn(bound)
        if not self._policy.terminate:
            if left <= 0 and not self._warned:
                self._warned = True
                say(f"WARNING: {self._loss()}; the command keeps running WITHOUT a lease")
            self._look_at_etcd(left)
            return
        if self._kill_at == math.inf:
            if left <= 0:
                self._end(f"{self._loss()}; ending the command", now + self._policy.kill_after)
            elif left <= self._policy.kill_after + self._policy.slack:
                self._end(
                    f"{ends_soon(self._shown, self._lease, self._starved())}; ending the command",
                    now + left - self._policy.slack,
                )
            else:
                self._look_at_etcd(left)
                self._watchdog.extend(now + left)
                return
        if now >= self._kill_at:
            self._group.send(signal.SIGKILL)

    def _warn(self, left: float) -> None:
        from etcdsem.model import duration_text

        message = f"the lease on {self._shown!r} ends in {exact(round(left, 1))}"
        if self._policy.terminate:
            sooner = max(0.0, left - self._policy.kill_after - self._policy.slack)
            message += f", and the command will be ended in {exact(round(sooner, 1))}"
        say(f"{message}: --max-hold is {duration_text(self._lease.max_hold or 0.0)}")

    def _look_at_etcd(self, left: float) -> None:
        """Report an outage of etcd that may end the lease."""
        bound = self._lease.hold_remaining
        self._outage.look_at_lease(self._policy.ttl, left, bound, lambda: self._outlook(left))

    def _outlook(self, left: float) -> str:
        if not self._policy.terminate:
            return f"the lease on {self._shown!r} will be lost in {span(left)} unless it answers"
        left -= self._policy.kill_after + self._policy.slack
        return f"the command will be ended in {span(left)} unless it answers"

    @property
    def _shown(self) -> str:
        """The semaphore to name in messages: with several, the one whose lease ends first."""
        return self._lease.ends_first if isinstance(self._lease, MultiLease) else self._name

    def _loss(self) -> str:
        reason = self._lease.lost_reason or "it could not be refreshed in time"
        return f"the lease on {self._shown!r} was lost: {reason}"

    def _end(self, why: str, kill_at: float) -> None:
        self.lost = True
        self._kill_at = kill_at
        say(f"{why} (SIGTERM, SIGKILL after {exact(max(0.0, kill_at - boot_time()))})")
        self._group.send(signal.SIGTERM)
        self._group.send(signal.SIGCONT)  # a stopped command would never hear it
        self._watchdog.extend(kill_at + self._policy.slack)

    def _pause(self) -> float:
        """Return the seconds until the next check is due."""
        if self._kill_at < math.inf:
            return max(_LEFTOVERS_TICK, min(self._policy.tick, self._kill_at - boot_time()))
        if not self._policy.terminate or not self._lease.valid:
            return self._policy.tick
        left = self._lease.remaining - self._policy.kill_after - self._policy.slack
        return min(self._policy.tick, left)

    # ---------------------------------------------------------------- signals

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._stopped()
            self._reap_orphans()
            return
        self._forwarded.add(number)
        if number == signal.SIGTSTP:
            self._stopping = True
        self._group.send(number)

    def _stopped(self) -> None:
        """If the command was stopped, act like a job of a shell."""
        try:
            seen = os.waitid(os.P_PID, self._group.pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return  # it has ended
        if seen is None or self._kill_at < math.inf:
            return
        if seen.si_status in _STOPS and self._terminal.ours():
            self._terminal.lend(self._group.pid)
            self._group.send(signal.SIGCONT)
        elif self._terminal.lent or seen.si_status in _STOPS or self._stopping:
            self._stop_too()

    def _stop_too(self) -> None:
        """Stop until the shell continues us; without a shell the command continues at once."""
        had_it = self._terminal.lent
        self._terminal.take_back(self._group.pid)
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # Had our group owned the terminal, the terminal would have stopped all of it.
        os.kill(0 if had_it else os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, before)
        self._stopping = False
        if self._policy.terminate and not self._lease.valid:
            return  # it may have been killed meanwhile; if not, the next check ends it
        if had_it:
            self._terminal.lend(self._group.pid)
        self._group.send(signal.SIGCONT)

    # ---------------------------------------------------------------- the end

    def _ended(self) -> bool:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._group.pid, flags) is not None

    def _end_leftovers(self) -> None:
        """Give processes that the command left in its group until `kill_at` to end, then kill."""
        while self._others() and boot_time() < self._kill_at:
            self._signals.wait(_LEFTOVERS_TICK)
        self._group.send(signal.SIGKILL)

    def _others(self) -> bool:
        """Whether the group has members besides the command, which has ended."""
        return _members(self._group.pid) - {self._group.pid} != set()

    def _reap(self) -> int:
        self._group.reaped = True
        _, status = os.waitpid(self._group.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else exit_codes.by_signal(-code)

    def _reap_orphans(self) -> None:
        while True:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            try:
                seen = os.waitid(os.P_ALL, 0, flags)
            except ChildProcessError:
                return
            if seen is None or seen.si_pid == self._group.pid:
                return
            os.waitpid(seen.si_pid, 0)


def _members(group: int) -> set[int]:
    """Return the live processes of a process group from /proc; empty where there is no /proc."""
    found: set[int] = set()
    try:
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return found
    for pid in pids:
        try:
            stat = process_stat(pid)
        except (OSError, ValueError):
            continue
        if stat.group == group and stat.state not in "ZX":
            found.add(pid)
    return found
