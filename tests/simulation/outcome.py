"""Runs a simulation to its end, and reports the outcome."""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from tests.simulation.options import Options
from tests.simulation.trace import brief
from tests.simulation.world import World


class Outcome(NamedTuple):
    """The outcome of a run. `error` is None if there was no violation."""

    options: Options
    error: BaseException | None
    counters: Counter[str]
    log: list[tuple[Any, ...]]
    steps: int
    rates: object = None
    """The options of a rate limit's run."""


class Playable(Protocol):
    """A run that can be executed to its end."""

    world: World

    def go(self) -> None: ...
    def count(self) -> None:
        """Add to the counters what is known at the end."""


def play(options: Options, make: Callable[[], Playable], *, rates: object = None) -> Outcome:
    """Create a run, and execute it to its end; the library's log is silenced."""
    log = logging.getLogger("etcdsem")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        run = make()
        error: BaseException | None = None
        try:
            run.go()
        except Exception as raised:  # a violation, or an exception that the core must not raise
            error = raised
        run.count()
        world = run.world
        world.dispose()
        return Outcome(options, error, world.counters, list(world.log), world.steps, rates)
    finally:
        log.setLevel(level)


def report(outcome: Outcome, *, last: int = 80) -> str:
    """A readable report of a run: how to repeat it, its options, its last events."""
    lines = [f"seed {outcome.options.seed}: {outcome.error or 'no violation'}"]
    if outcome.error is not None and not isinstance(outcome.error, AssertionError):
        lines += traceback.format_exception(outcome.error)
    which = "" if outcome.rates is None else "--rates "
    seed = f"--seed {outcome.options.seed}"
    lines.append(f"repeat with: python -m tests.simulation {which}{seed} --trace")
    lines.append(str(outcome.rates or outcome.options))
    lines += map(_line, outcome.log[-last:])
    return "\n".join(lines)


def _line(entry: tuple[Any, ...]) -> str:
    moment, who, *what = entry
    return f"{moment:10.4f}  {who!s:>8}  " + " ".join(map(brief, what))
