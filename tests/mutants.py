"""One-line faults that the tests must catch: each is put into a copy of the package in turn.

    python -m tests.mutants                     # all of them
    python -m tests.mutants --only supervisor   # those whose file or description contains a text
    python -m tests.mutants --list

1. The checkout is never changed: `etcdsem` and `tests` are copied to a temporary directory, and the
   tests run there, as do the processes that they start.
2. The tests must pass without a fault first. A fault is caught when one of its tests fails; it
   survives when all of them pass. Anything else (no such test, an import that fails) is an error.
3. `old` must stand in its file exactly once (`test_every_fault_can_be_put_in`, which is part of the
   ordinary tests). Choose a short text that says nothing but the faulty line.

A fault that survives is a hole in the tests: write the test, then add the fault here.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import _binaries

ROOT = Path(__file__).parents[1]

TIMEOUT = 60
"""Seconds that a test may take with a fault in it. One that hangs has noticed it."""


class Mutant(NamedTuple):
    """A fault: `old` is replaced by `new` in a file of the package."""

    what: str
    """What the program does wrong with it."""
    file: str
    old: str
    new: str
    tests: str
    """Tests of which at least one must fail, separated by spaces, relative to `tests/`."""


MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------ transactions
    Mutant(
        "a late DROP deletes another holder's slot",
        "core/transactions.py",
        "(*_all_mine(keys, mine), _uncontended(keys)),",
        "(_uncontended(keys),),",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late CLEAR deletes another holder's slot",
        "core/transactions.py",
        "(*_all_mine(keys, mine), _none_waits_since(keys, revision)),",
        "(_none_waits_since(keys, revision),),",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late RETIRE deletes another holder's slot",
        "core/transactions.py",
        "Txn(_all_mine(keys, mine), _delete_mine(keys, mine))",
        "Txn((), _delete_mine(keys, mine))",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late VACATE deletes another holder's slot",
        "core/transactions.py",
        "        _all_mine(keys, mine),\n        (*_delete_mine",
        "        (),\n        (*_delete_mine",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late EVICT deletes another holder's slot",
        "core/transactions.py",
        "return Txn(mine, (*(Delete(",
        "return Txn((), (*(Delete(",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late BATCH deletes another holder's slot",
        "core/transactions.py",
        "Txn((_mine(keys, part.slot, part.token),), ",
        "Txn((), ",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "only the first slot of a lease that holds several is compared when it is given back",
        "core/transactions.py",
        "for slot in mine.slots)\n\n\ndef _known",
        "for slot in mine.slots[:1])\n\n\ndef _known",
        "core/test_transactions.py::test_giving_back_several_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late PASS hands over another holder's slot",
        "core/transactions.py",
        "            _mine(keys, mine.slot, mine.token),\n",
        "",
        "core/test_transactions.py::test_handing_over_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late PASS of several hands over another holder's slot",
        "core/transactions.py",
        "(*mine_still, _limit_is",
        "(_limit_is",
        "core/test_transactions.py::test_handing_over_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "PASS grants a slot while one above the limit is held",
        "core/transactions.py",
        "            _no_surplus(keys, limit),\n            _priorities_are",
        "            _priorities_are",
        "core/test_transactions.py::test_pass_with_somebody_above_the_limit_passes_nothing",
    ),
    Mutant(
        "PASS of several grants slots while one above the limit is held",
        "core/transactions.py",
        "_limit_is(keys, limit), _no_surplus(keys, limit), _priorities",
        "_limit_is(keys, limit), _priorities",
        "core/test_transactions.py::test_pass_with_somebody_above_the_limit_passes_nothing",
    ),
    Mutant(
        "the first slot above the limit does not count as surplus in a transaction",
        "core/transactions.py",
        "Compare(keys.slot(limit.room), ",
        "Compare(keys.slot(limit.room + 1), ",
        "core/test_transactions.py::test_pass_with_somebody_above_the_limit_passes_nothing "
        "core/test_transactions.py::test_join_with_somebody_above_the_limit_waits",
    ),
    Mutant(
        "a JOIN for several slots takes the free ones although the first is held",
        "core/transactions.py",
        "branch = (Txn(free, ",
        "branch = (Txn(free[1:], ",
        "core/test_transactions.py::test_join_of_several_slots_takes_all_or_none",
    ),
    Mutant(
        "several at once overtake those who wait in one of the lines",
        "core/transactions.py",
        "guard, _uncontended(keys), _free(keys, slot))",
        "guard, _free(keys, slot))",
        "core/test_transactions.py::test_several_at_once_overtake_nobody",
    ),
    Mutant(
        "several at once are granted while a slot above a limit is held",
        "core/transactions.py",
        "conditions += (_limit_is(keys, limit), guard, ",
        "conditions += (_limit_is(keys, limit), ",
        "core/test_transactions.py::test_several_at_once_by_an_old_limit",
    ),
    # ------------------------------------------------------------ decisions
    Mutant(
        "a holder exactly at a lowered limit is no surplus: FILL and PASS repeat without end",
        "core/decisions.py",
        "first <= kv.key <",
        "first < kv.key <",
        "core/test_decisions.py::test_how_to_give_back core/test_decisions.py::test_what_to_fill",
    ),
    Mutant(
        "with priorities and a long line a slot passes a waiter with a higher one",
        "core/decisions.py",
        "if seen.priorities and not seen.complete:",
        "if seen.priorities < 0:",
        "core/test_decisions.py::test_how_to_give_back",
    ),
    Mutant(
        "with priorities and a long line FILL serves one with a lower priority",
        "core/decisions.py",
        "if not seen.complete and (seen.priorities or not seen.queue):",
        "if not seen.complete and not seen.queue:",
        "core/test_decisions.py::test_what_to_fill",
    ),
    # ------------------------------------------------------------ leases
    Mutant(
        "no margin: a lease counts as held until the moment at which etcd ends it",
        "core/leases.py",
        "return 0.1 + 0.01 * ttl",
        "return 0.0 * ttl",
        "core/test_leases.py::test_a_slow_clock_loses_it_before_etcd_does",
    ),
    Mutant(
        "no margin for clocks that run at different rates",
        "core/leases.py",
        "return 0.1 + 0.01 * ttl",
        "return 0.1 + 0.0 * ttl",
        "core/test_leases.py::test_a_slow_clock_loses_it_before_etcd_does",
    ),
    Mutant(
        "an etcd lease whose grant was not answered stays until its TTL is over",
        "core/leases.py",
        "            keeper.settle_id(lease_id, float(wanted))\n",
        "",
        "core/test_procedures.py::test_a_lease_that_may_have_been_granted_is_revoked",
    ),
    # ------------------------------------------------------------ procedures
    Mutant(
        "an interrupted attempt whose revocation fails stays until its TTL is over",
        "core/procedures.py",
        "    except BaseException:\n        session.keeper.settle_id(lease.id, lease.ttl)",
        "    except BaseException:\n        pass",
        "core/test_procedures.py::"
        "test_an_interrupted_attempt_is_settled_even_if_its_revocation_fails",
    ),
    Mutant(
        "a waiter does not use the room that JOIN saw: up to 15 s late",
        "core/procedures.py",
        "heal_at = env.now() if room else math.inf",
        "heal_at = math.inf",
        "core/test_procedures.py::test_room_that_join_saw_is_used_at_once",
    ),
    Mutant(
        "each waiter looks at once, also where nothing was free",
        "core/procedures.py",
        "heal_at = env.now() if room else math.inf",
        "heal_at = env.now()",
        "core/test_procedures.py::test_room_that_join_did_not_see_is_not_looked_for",
    ),
    Mutant(
        "requests that were not applied are counted as unknown",
        "core/procedures.py",
        'return "not applied"',
        'return "unknown"',
        "core/test_procedures.py::test_failed_requests_are_counted_by_what_is_known",
    ),
    Mutant(
        "a slot is handed out although its lease ran out before the answer came",
        "core/procedures.py",
        "    if not lease.valid(station.session.env.now()):\n",
        "    if False:\n",
        "core/test_procedures.py::test_a_slot_whose_lease_ran_out_on_the_way_is_not_handed_out",
    ),
    Mutant(
        "a lease whose release was interrupted stays until its TTL is over",
        "core/procedures.py",
        "        grant.given_back()\n        keeper.settle_later(grant.lease)\n        raise",
        "        grant.given_back()\n        raise",
        "core/test_procedures.py::test_a_release_whose_outcome_is_unknown_ends_the_lease",
    ),
    # ------------------------------------------------------------ several at once
    Mutant(
        "a set is handed out although one of its leases ran out before the answer came",
        "core/several.py",
        "if not all(lease.valid(now) for lease in leases):",
        "if not leases[0].valid(now):",
        "core/test_several.py::test_an_answer_after_the_deadline_of_one_lease_grants_nothing",
    ),
    Mutant(
        "a set is handed out although the lease that was waited for has ended since",
        "core/several.py",
        "if blocked is None and _all_valid(hand):",
        "if blocked is None:",
        "core/test_several.py::test_a_lease_that_ended_while_the_others_were_taken",
    ),
    Mutant(
        "waiting in order, a set is handed out although an earlier lease has ended since",
        "core/several.py",
        "            if not _all_valid(hand):\n",
        "            if False:\n",
        "core/test_several.py::test_a_lease_that_ended_while_the_others_were_taken",
    ),
    # ------------------------------------------------------------ rates
    Mutant(
        "a start that was granted by the former rate is handed out",
        "core/rates.py",
        "if limit.revision >= grant.token or limit.paused",
        "if limit.paused",
        "core/test_rates.py::test_a_slot_that_was_granted_by_another_limit_is_not_used",
    ),
    Mutant(
        "a block of starts is used after its end",
        "core/rates.py",
        "            and now <= self.closes\n",
        "",
        "core/test_rates.py::test_a_block_is_not_used_after_its_end",
    ),
    Mutant(
        "a start is handed out although its lease ends before the period does",
        "core/rates.py",
        "    if not (yield from freshen(session.keeper, grant.lease, wanted, within)):",
        "    if within < 0:",
        "core/test_rates.py::test_a_start_needs_a_lease_with_a_period_left",
    ),
    Mutant(
        "a slot of a rate is given back one period after the first start of its block",
        "core/rates.py",
        "if block.due > due:",
        "if block.due < due:",
        "core/test_rates.py::test_a_slot_is_given_back_one_period_after_its_last_start",
    ),
    # ------------------------------------------------------------ station
    Mutant(
        "a line that is too long is cut, and its revision is not: newcomers overtake",
        "core/station.py",
        "until = line[-1].created",
        "pass",
        "core/test_station.py::test_a_line_that_is_too_long_is_known_up_to_the_last_that_is_kept",
    ),
    Mutant(
        "older news of the line replaces newer",
        "core/station.py",
        "if until < self.line_until:",
        "if until < 0:",
        "core/test_station.py::test_old_news_of_the_line_is_left_aside",
    ),
    Mutant(
        "nobody reads again after a gap in the station's watches",
        "core/station.py",
        "    def _gap(self) -> None:\n        self.call_duty(reread=True)",
        "    def _gap(self) -> None:\n        self.call_duty(reread=False)",
        "core/test_station.py::test_after_a_gap_everything_is_read_again",
    ),
    # ------------------------------------------------------------ keeper process
    Mutant(
        "the helper process goes on renewing a lease that was taken back meanwhile",
        "keeper_process.py",
        "        if self.table.forbidden(place):\n            self.drop(lease_id)",
        "        if place < 0:\n            self.drop(lease_id)",
        "keeper/test_keeper.py::test_the_helper_keeps_nothing_that_was_taken_back",
    ),
    Mutant(
        "the helper process takes a lease over that was taken back before",
        "keeper_process.py",
        'b"K" and not self._table.forbidden(place):',
        'b"K":',
        "keeper/test_keeper.py::test_the_helper_keeps_nothing_that_was_taken_back",
    ),
    Mutant(
        "a helper process that hears nothing any more goes on renewing",
        "keeper/__init__.py",
        "self._process.kill()\n            return",
        "pass\n            return",
        "keeper/test_keeper.py::test_a_helper_that_cannot_be_told_is_killed",
    ),
    # ------------------------------------------------------------ etcd
    Mutant(
        "a read that a cancelled task leaves behind is cancelled: some etcd releases crash",
        "etcd/connection.py",
        'whole = name == "read"',
        "whole = False",
        "etcd/test_connection.py::test_a_read_must_not_be_cancelled",
    ),
    # ------------------------------------------------------------ asyncio
    Mutant(
        "a second cancellation interrupts the clean-up",
        "aio.py",
        "interrupted = interrupted or not isinstance(raised, Exception)",
        "interrupted = False",
        "aio/test_cancel_every_step.py::test_cancelled_again_while_it_cleans_up",
    ),
    # ------------------------------------------------------------ command line
    Mutant(
        "the guardian never hears of renewals: every long command is killed",
        "cli/supervisor.py",
        "self._guardian.extend(now + left)",
        "pass",
        "cli/test_supervise.py::test_a_command_may_outlast_its_lease_timeout",
    ),
)


def problems(mutants: Iterable[Mutant] = MUTANTS, root: Path = ROOT) -> list[str]:
    """Which faults cannot be put in any more, and which of their tests are gone."""
    wrong = []
    for mutant in mutants:
        count = (root / "etcdsem" / mutant.file).read_text().count(mutant.old)
        if count != 1:
            wrong.append(f"{mutant.file}: {count} times instead of once: {mutant.old!r}")
        for test in mutant.tests.split():
            path, _, name = test.partition("::")
            if not re.search(rf"^(async )?def {name}\(", (root / "tests" / path).read_text(), re.M):
                wrong.append(f"{mutant.file}: there is no test {test}")
    return wrong


class Copy:
    """A copy of the package and its tests, into which faults are put."""

    def __init__(self, place: Path) -> None:
        self.place = place
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        for folder in ("etcdsem", "tests"):
            shutil.copytree(ROOT / folder, place / folder, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", place)
        self._env = {**os.environ, "PYTHONPATH": str(place)}

    def check(self) -> None:
        """Raise if the tests would not use this copy."""
        code = "import etcdsem; print(etcdsem.__file__)"
        run = [sys.executable, "-c", code]
        used = subprocess.check_output(run, cwd=self.place, env=self._env, text=True)
        if not Path(used.strip()).is_relative_to(self.place):
            raise SystemExit(f"the tests would use {used.strip()}, not {self.place}")

    def write(self, file: str, text: str) -> None:
        """Give a file of the package another text."""
        path = self.place / "etcdsem" / file
        path.write_text(text)
        # A compiled file is taken for fresh if the source has the same size and whole second.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

    def test(self, tests: Iterable[str]) -> tuple[int, str]:
        """Run some tests; gives pytest's exit code and what it printed."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += [f"--timeout={TIMEOUT}", "--tb=line", f"--etcd={next(iter(_binaries()))}"]
        command += [f"tests/{test}" for test in tests]
        done = subprocess.run(
            command,
            cwd=self.place,
            env=self._env,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout

    def caught(self, mutant: Mutant) -> bool:
        """Put a fault in, run its tests, and take it out again: has one of them failed?"""
        good = (self.place / "etcdsem" / mutant.file).read_text()
        self.write(mutant.file, good.replace(mutant.old, mutant.new))
        try:
            code, said = self.test(mutant.tests.split())
        finally:
            self.write(mutant.file, good)
        if code not in (0, 1):
            raise SystemExit(f"{mutant.what}: pytest could not run ({code}):\n{said}")
        return code == 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Put the faults in, one at a time; the exit code is 1 if one survives."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="those whose file or description contains this")
    parser.add_argument("--list", action="store_true", help="print them, and do nothing")
    given = parser.parse_args(arguments)
    chosen = [one for one in MUTANTS if given.only in f"{one.file} {one.what}"]
    if not chosen:
        raise SystemExit(f"no fault matches {given.only!r}")
    if given.list:
        for one in chosen:
            print(f"{one.file}: {one.what}\n    {one.tests}")
        return 0
    if wrong := problems(chosen):
        raise SystemExit("\n".join(wrong))
    survivors = []
    with tempfile.TemporaryDirectory(prefix="etcdsem-mutants-") as place:
        copy = Copy(Path(place).resolve())
        copy.check()
        code, said = copy.test(dict.fromkeys(test for one in chosen for test in one.tests.split()))
        if code != 0:
            raise SystemExit(f"the tests fail without any fault:\n{said}")
        for one in chosen:
            caught = copy.caught(one)
            print(f"{'caught' if caught else 'SURVIVED':8} {one.file}: {one.what}", flush=True)
            if not caught:
                survivors.append(one)
    print(f"{len(chosen)} faults, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
