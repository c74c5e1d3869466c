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
        "core/transactions/give.py",
        "(*all_are_mine(keys, mine), uncontended(keys)),",
        "(uncontended(keys),),",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late CLEAR deletes another holder's slot",
        "core/transactions/give.py",
        "(*all_are_mine(keys, mine), none_waits_since(keys, revision)),",
        "(none_waits_since(keys, revision),),",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late RETIRE deletes another holder's slot",
        "core/transactions/give.py",
        "Txn(all_are_mine(keys, mine), delete_mine(keys, mine))",
        "Txn((), delete_mine(keys, mine))",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late VACATE deletes another holder's slot",
        "core/transactions/give.py",
        "        all_are_mine(keys, mine),\n        (*delete_mine",
        "        (),\n        (*delete_mine",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late EVICT deletes another holder's slot",
        "core/transactions/admin.py",
        "Txn(all_are_mine(keys, part), delete_mine(keys, part)) for",
        "Txn((), delete_mine(keys, part)) for",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late BATCH deletes another holder's slot",
        "core/transactions/batch.py",
        "Txn((slot_is_mine(keys, part.slot, part.token),), ",
        "Txn((), ",
        "core/test_transactions.py::test_giving_back_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "only the first slot of a lease that holds several is compared when it is given back",
        "core/transactions/conditions.py",
        "mine.token) for slot in mine.slots)",
        "mine.token) for slot in mine.slots[:1])",
        "core/test_transactions.py::test_giving_back_several_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late PASS hands over another holder's slot",
        "core/transactions/give.py",
        "        slot_is_mine(keys, mine.slot, mine.token),\n",
        "",
        "core/test_transactions.py::test_handing_over_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "a late PASS of several hands over another holder's slot",
        "core/transactions/batch.py",
        "(*mine_still, limit_is",
        "(limit_is",
        "core/test_transactions.py::test_handing_over_late_leaves_the_next_holder_alone",
    ),
    Mutant(
        "PASS of several passes over the first waiter",
        "core/transactions/batch.py",
        "(Txn((still_waits(keys, line[place]),), serve, branch),)",
        "(Txn((still_waits(keys, line[place]),), branch, serve),)",
        "core/test_batching.py::test_several_pass_to_several",
    ),
    Mutant(
        "PASS of several takes waiters that it did not serve for served",
        "core/transactions/batch.py",
        "        if inner.succeeded:\n            break\n        gone += 1",
        "        gone += 1\n        if inner.succeeded:\n            break",
        "core/test_batching.py::test_several_pass_to_several "
        "core/test_batching.py::test_others_have_served_the_first",
    ),
    Mutant(
        "PASS grants a slot while one above the limit is held",
        "core/transactions/give.py",
        "        no_surplus(keys, limit),\n        priorities_are",
        "        priorities_are",
        "core/test_transactions.py::test_pass_with_somebody_above_the_limit_passes_nothing",
    ),
    Mutant(
        "PASS of several grants slots while one above the limit is held",
        "core/transactions/batch.py",
        "limit_is(keys, limit), no_surplus(keys, limit), priorities",
        "limit_is(keys, limit), priorities",
        "core/test_transactions.py::test_pass_with_somebody_above_the_limit_passes_nothing",
    ),
    Mutant(
        "the first slot above the limit does not count as surplus in a transaction",
        "core/transactions/conditions.py",
        "Compare(keys.slot(limit.room), ",
        "Compare(keys.slot(limit.room + 1), ",
        "core/test_transactions.py::test_pass_with_somebody_above_the_limit_passes_nothing "
        "core/test_transactions.py::test_join_with_somebody_above_the_limit_waits",
    ),
    Mutant(
        "a JOIN for several slots takes the free ones although the first is held",
        "core/transactions/join.py",
        "return (Txn(conditions, ",
        "return (Txn(conditions[1:], ",
        "core/test_transactions.py::test_join_of_several_slots_takes_all_or_none",
    ),
    Mutant(
        "several at once overtake those who wait in one of the lines",
        "core/transactions/multi.py",
        "guard, uncontended(keys), slot_is_free(keys, slot))",
        "guard, slot_is_free(keys, slot))",
        "core/test_transactions.py::test_several_at_once_overtake_nobody",
    ),
    Mutant(
        "several at once are granted while a slot above a limit is held",
        "core/transactions/multi.py",
        "conditions += (limit_is(keys, limit), guard, ",
        "conditions += (limit_is(keys, limit), ",
        "core/test_transactions.py::test_several_at_once_by_an_old_limit",
    ),
    # ------------------------------------------------------------ linger
    Mutant(
        "a slot that stays with its client is used again although others wait",
        "core/linger.py",
        "            not semaphore.queue.contended\n            and not semaphore.waiters\n",
        "            True\n",
        "api/test_linger.py::test_asyncio_in_memory",
    ),
    Mutant(
        "a slot stays with its client though somebody has begun to wait",
        "core/linger.py",
        "        self._semaphore.queue.set_contended(True)\n        self.stop()",
        "        self._semaphore.queue.set_contended(True)",
        "api/test_linger.py::test_asyncio_in_memory",
    ),
    Mutant(
        "more callers wait than may",
        "core/acquire.py",
        "        over = request.max_waiting is not None and result.waiting > request.max_waiting",
        "        over = False",
        "api/test_max_waiting.py::test_one_too_many_is_refused_at_once",
    ),
    Mutant(
        "a caller is refused although there is a place in the queue by the time that it leaves",
        "core/wait.py",
        "if grant is None and waiting >= most:",
        "if grant is None:",
        "api/test_max_waiting.py::test_a_place_that_comes_while_one_leaves",
    ),
    Mutant(
        "a timed pause is ended although its key is there",
        "core/transactions/admin.py",
        '(limit_is(keys, limit), Compare(keys.paused, "create", "=", 0)),',
        "(limit_is(keys, limit),),",
        "core/test_transactions.py::test_a_timed_pause_ends_with_its_key",
    ),
    Mutant(
        "a late end of a timed pause ends the one that came after it",
        "core/transactions/admin.py",
        '(limit_is(keys, limit), Compare(keys.paused, "create", "=", 0)),',
        '(Compare(keys.paused, "create", "=", 0),),',
        "core/test_transactions.py::test_a_timed_pause_ends_with_its_key",
    ),
    Mutant(
        "no waiter notices that a timed pause is over",
        "core/watches.py",
        "if self._pause is None and semaphore.waiters:",
        "if False:",
        "scenarios/test_scenarios.py::test_on_the_simulator",
    ),
    Mutant(
        "the end of a timed pause makes a name stay",
        "core/transactions/admin.py",
        "limit.after_pause, limit.lease)",
        "limit.after_pause)",
        "operators/test_timed_pause.py::test_a_name_that_expires_still_does",
    ),
    Mutant(
        "a shorter pause replaces a longer one",
        "core/admin.py",
        "    return max(0.0, left or 0.0)",
        "    return 0.0",
        "scenarios/test_scenarios.py::test_on_the_simulator",
    ),
    Mutant(
        "a timed pause that is over stays in force until somebody waits",
        "core/timed_pause.py",
        "    if limit.after_pause and (once or not semaphore.waiters):",
        "    if False:",
        "operators/test_timed_pause.py::test_whoever_comes_first_ends_it",
    ),
    Mutant(
        "a slot that stays with its client is used again after a pause",
        "core/linger.py",
        "            and semaphore.limit.revision < grant.token",
        "",
        "api/test_linger.py::test_a_pause_ends_it",
    ),
    Mutant(
        "a slot stays with its client for as long as it is used",
        "core/linger.py",
        "            and now < grant.granted_at + MAX_TENURE\n",
        "",
        "api/test_linger.py::test_time_is_bounded",
    ),
    Mutant(
        "a slot stays with its client until somebody waits",
        "core/linger.py",
        "        if until < self._wakes_at:",
        "        if False:",
        "api/test_linger.py::test_time_is_bounded",
    ),
    Mutant(
        "a slot that stays with its client is used by any request",
        "core/linger.py",
        "            if usable and _alike(kept.request, request):",
        "            if usable:",
        "api/test_linger.py::test_another_request_takes_another_slot",
    ),
    # ------------------------------------------------------------ names that expire
    Mutant(
        "the marks of a name that expires have no lease, and stay behind",
        "core/transactions/conditions.py",
        "    if not lease:\n        return Put(key, HERE)\n    same",
        "    return Put(key, HERE)\n    same",
        "api/test_expires.py::test_it_leaves_with_everything",
    ),
    Mutant(
        "records of permits have no lease, and stay behind",
        "core/transactions/permit.py",
        "Put(keys.permit(slot), permit, name_lease)",
        "Put(keys.permit(slot), permit)",
        "api/test_expires.py::test_it_leaves_with_everything",
    ),
    Mutant(
        "a resize makes a name stay",
        "core/admin.py",
        "written, kv.lease, timed=timed)",
        "written, timed=timed)",
        "api/test_expires.py::test_changes_keep_the_lease_and_etcdctl_ends_it",
    ),
    Mutant(
        "prune does not compare that nobody holds or waits",
        "core/transactions/admin.py",
        '"mod", "=", limit.mod_revision), *unused(keys)]',
        '"mod", "=", limit.mod_revision)]',
        "core/test_transactions.py::test_expire_leaves_alone_what_is_used",
    ),
    Mutant(
        "apply overwrites what has changed since it was compared",
        "core/transactions/admin.py",
        "return Txn(seen, (*puts, Put(keys.applied, text)), limits_as_set(keys))",
        "return Txn((), (*puts, Put(keys.applied, text)), limits_as_set(keys))",
        "cli/test_apply.py::test_a_plan_that_is_overtaken_changes_nothing",
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
        "core/lease_manager.py",
        "            manager.revoke_id_later(lease_id, float(wanted))\n",
        "",
        "core/test_procedures.py::test_a_lease_that_may_have_been_granted_is_revoked",
    ),
    # ------------------------------------------------------------ procedures
    Mutant(
        "an interrupted attempt whose revocation fails stays until its TTL is over",
        "core/lease_manager.py",
        "    except BaseException:\n        manager.revoke_id_later(lease.id, lease.ttl)",
        "    except BaseException:\n        pass",
        "core/test_procedures.py::"
        "test_an_interrupted_attempt_is_settled_even_if_its_revocation_fails",
    ),
    Mutant(
        "a waiter does not use the room that JOIN saw: up to 15 s late",
        "core/wait.py",
        "reconcile_at = env.now() if room else math.inf",
        "reconcile_at = math.inf",
        "core/test_procedures.py::test_room_that_join_saw_is_used_at_once",
    ),
    Mutant(
        "each waiter looks at once, also where nothing was free",
        "core/wait.py",
        "reconcile_at = env.now() if room else math.inf",
        "reconcile_at = env.now()",
        "core/test_procedures.py::test_room_that_join_did_not_see_is_not_looked_for",
    ),
    Mutant(
        "requests that were not applied are counted as unknown",
        "core/retry.py",
        'return "not applied"',
        'return "unknown"',
        "core/test_procedures.py::test_failed_requests_are_counted_by_what_is_known",
    ),
    Mutant(
        "a slot is handed out although its lease ran out before the answer came",
        "core/try_now.py",
        "    if not lease.valid(semaphore.session.env.now()):\n",
        "    if False:\n",
        "core/test_procedures.py::test_a_slot_whose_lease_ran_out_on_the_way_is_not_handed_out",
    ),
    Mutant(
        "a lease whose release was interrupted stays until its TTL is over",
        "core/release.py",
        "        grant.given_back()\n        yield from end_interrupted(manager, grant.lease)\n"
        "        raise",
        "        grant.given_back()\n        raise",
        "core/test_procedures.py::test_a_release_whose_outcome_is_unknown_ends_the_lease",
    ),
    # ------------------------------------------------------------ several at once
    Mutant(
        "a set is handed out although one of its leases ran out before the answer came",
        "core/multi.py",
        "if not all(lease.valid(now) for lease in leases):",
        "if not leases[0].valid(now):",
        "core/test_multi.py::test_an_answer_after_the_deadline_of_one_lease_grants_nothing",
    ),
    Mutant(
        "a set is handed out although the lease that was waited for has ended since",
        "core/multi.py",
        "if blocked is None and _all_valid(hand):",
        "if blocked is None:",
        "core/test_multi.py::test_a_lease_that_ended_while_the_others_were_taken",
    ),
    Mutant(
        "waiting in order, a set is handed out although an earlier lease has ended since",
        "core/multi.py",
        "            if not _all_valid(hand):\n",
        "            if False:\n",
        "core/test_multi.py::test_a_lease_that_ended_while_the_others_were_taken",
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
        "core/permits.py",
        "            and now <= self.closes\n",
        "",
        "core/test_rates.py::test_a_block_is_not_used_after_its_end",
    ),
    Mutant(
        "a start is handed out although its lease ends before the period does",
        "core/rates.py",
        "    if not (yield from freshen(session.leases, grant.lease, wanted, within)):",
        "    if within < 0:",
        "core/test_rates.py::test_a_start_needs_a_lease_with_a_period_left",
    ),
    Mutant(
        "a slot of a rate is given back one period after the first start of its block",
        "core/permits.py",
        "if block.due > due:",
        "if block.due < due:",
        "core/test_rates.py::test_a_slot_is_given_back_one_period_after_its_last_start",
    ),
    Mutant(
        "a slot of a rate is taken although the record of a permit keeps it",
        "core/transactions/permit.py",
        "    return (*free, Compare(",
        "    return free\n    return (*free, Compare(",
        "core/test_permit_records.py::test_a_slot_whose_lease_ends_early_stays_taken",
    ),
    Mutant(
        "a slot of a rate is granted to a waiter although the record of a permit keeps it",
        "core/transactions/conditions.py",
        "        if left > 0.0:\n",
        "        if left < 0.0:\n",
        "core/test_permit_records.py::test_a_waiter_is_served_when_a_record_is_over",
    ),
    Mutant(
        "a waiter sleeps on when the record of a permit is over",
        "core/wait.py",
        "wake = min(wake, reread_at, waiters.reconcile_at)",
        "wake = min(wake, reread_at)",
        "core/test_permit_records.py::test_a_waiter_is_served_when_a_record_is_over",
    ),
    Mutant(
        "a record of a permit whose time lies far in the future is believed",
        "core/keys/permit.py",
        "return 0.0 if self.since > wall + SKEW else max(",
        "return max(",
        "core/test_permit_records.py::test_a_record_blocks_until_its_time_is_over",
    ),
    Mutant(
        "a permit is handed out however old its record is",
        "core/permits.py",
        "latest = recorded + LATE",
        "latest = math.inf",
        "core/test_permit_records.py::test_nothing_is_handed_out_long_after_its_record",
    ),
    Mutant(
        "a permit is recorded although its slot is gone",
        "core/transactions/permit.py",
        "Txn((*conditions, limit_is(keys, limit)), puts",
        "Txn((limit_is(keys, limit),), puts",
        "core/test_permit_records.py::test_a_slot_that_was_handed_over_and_is_gone_is_not_used",
    ),
    Mutant(
        "of the slots of a start, only the first has a record",
        "core/transactions/permit.py",
        "for part in mine.parts",
        "for part in mine._replace(more=()).parts",
        "api/test_costs.py::test_its_slots_stay_taken_if_its_lease_ends_early",
    ),
    Mutant(
        "a start that was granted by another block is handed out",
        "core/rates.py",
        "if len(grant.slots) != slots_for(semaphore, rate, cost):",
        "if False:",
        "core/test_rates.py::test_slots_that_were_requested_with_another_block",
    ),
    Mutant(
        "a start waits for one rate limit while it holds permits of one that comes later",
        "core/rates.py",
        "yield from _put_back(turns[place + 1 :])",
        "pass",
        "core/test_rates.py::test_it_does_not_wait_for_one_limit_with_permits_of_a_later_one",
    ),
    Mutant(
        "a start of two rate limits is handed out although one has no permits",
        "core/rates.py",
        "if failed is None and all(",
        "if failed is None and any(",
        "core/test_rates.py::test_several_are_handed_out_at_one_moment",
    ),
    Mutant(
        "settling gives back a slot of which a permit was used",
        "core/permits.py",
        "count, block.left = divmod(block.left, block.size)",
        "count, block.left = -(-block.left // block.size), 0",
        "api/test_settle.py::test_a_part_of_a_block_stays_with_its_client",
    ),
    Mutant(
        "a start can be settled twice",
        "facade/rate_limit.py",
        "if not self.done:",
        "if True:",
        "api/test_settle.py::test_once_and_never_too_late",
    ),
    Mutant(
        "the record of a permit outlives its slot",
        "core/transactions/give.py",
        "    if mine.permit:\n",
        "    if False:\n",
        "core/test_permit_records.py::test_the_record_is_deleted_with_its_slot",
    ),
    # ------------------------------------------------------------ semaphore state
    Mutant(
        "a line that is too long is cut, and its revision is not: newcomers overtake",
        "core/queue_view.py",
        "until = waiters[-1].created",
        "pass",
        "core/test_semaphore_state.py::test_a_line_that_is_too_long_is_known_up_to_the_last_that_is_kept",
    ),
    Mutant(
        "older news of the line replaces newer",
        "core/queue_view.py",
        "if until < self.until:",
        "if until < 0:",
        "core/test_semaphore_state.py::test_old_news_of_the_line_is_left_aside",
    ),
    Mutant(
        "nobody reads again after a gap in the station's watches",
        "core/watches.py",
        "    def _gap(self) -> None:\n        self._semaphore.waiters.wake_leader(reread=True)",
        "    def _gap(self) -> None:\n        self._semaphore.waiters.wake_leader(reread=False)",
        "core/test_semaphore_state.py::test_after_a_gap_everything_is_read_again",
    ),
    Mutant(
        "older news of who stands in the way replaces newer",
        "core/watches.py",
        "if at < self._blocker_at:",
        "if at < 0:",
        "core/test_semaphore_state.py::test_who_stands_in_the_way_is_watched",
    ),
    Mutant(
        "the end of one who stands in the way is missed if it comes before its watch is set up",
        "core/watches.py",
        "start=at + 1, only",
        "only",
        "core/test_semaphore_state.py::test_who_stands_in_the_way_is_watched",
    ),
    Mutant(
        "two programs that take turns read the queue at each hand-over",
        "core/queue_view.py",
        "        self.expect(waiter if again else None)\n",
        "",
        "api/test_cost.py::test_two_programs_that_take_turns_read_nothing",
    ),
    Mutant(
        "a release hands over to the expected waiter although it wants several slots",
        "core/transactions/conditions.py",
        '        Compare(key, "value", "<", 0, value=start + b":"),  # which is above all digits\n',
        "",
        "core/test_transactions.py::"
        "test_clear_passes_to_the_expected_waiter_only_if_it_waits_alone",
    ),
    Mutant(
        "a release hands over to the expected waiter although others wait",
        "core/transactions/conditions.py",
        '        Compare(keys.waiters, "lease", "=", waiter.lease, end=keys.waiters_end),\n',
        "",
        "core/test_transactions.py::"
        "test_clear_passes_to_the_expected_waiter_only_if_it_waits_alone",
    ),
    Mutant(
        "a waiter of the client that hands over waits for the watch",
        "core/release_steps.py",
        "    semaphore.watches.handed_over(after, held.slots, reply.revision)\n",
        "",
        "api/test_cost.py::test_a_hand_over_within_a_client_needs_no_event",
    ),
    Mutant(
        "waiters of the client that hands over several slots wait for the watch",
        "core/slots.py",
        "                if done:\n",
        "                if not done:\n",
        "api/test_cost.py::test_a_hand_over_within_a_client_needs_no_event",
    ),
    Mutant(
        "waiters of the client that fills free slots wait for the watch",
        "core/reconcile.py",
        "in step.pairs if reply.succeeded else ():",
        "in ():",
        "api/test_cost.py::test_a_fill_within_a_client_needs_no_event",
    ),
    Mutant(
        "the watch on one who stands in the way outlives the others",
        "core/watches.py",
        "            watches.append(self._blocker[1])\n",
        "",
        "core/test_semaphore_state.py::test_who_stands_in_the_way_is_watched",
    ),
    Mutant(
        "the slot that was given back last is not tried first",
        "core/slots.py",
        "self._recent.popitem()[0]",
        "next(iter(self._recent))",
        "core/test_semaphore_state.py::test_the_slot_given_back_last_is_tried_first",
    ),
    Mutant(
        "slots that were given back are remembered without bound",
        "core/slots.py",
        "if len(self._recent) > RECENT:",
        "if len(self._recent) < 0:",
        "core/test_semaphore_state.py::test_the_slot_given_back_last_is_tried_first",
    ),
    Mutant(
        "when the waiter on duty leaves, nobody takes its duty over",
        "core/waiters.py",
        "        elif first:\n",
        "        elif not first:\n",
        "core/test_semaphore_state.py::test_a_freed_slot_calls_the_first_waiter",
    ),
    Mutant(
        "a freed slot wakes nobody",
        "core/watches.py",
        "    def _freed(self, events: Sequence[Event]) -> None:\n"
        "        self._semaphore.waiters.wake_leader(reread=False)",
        "    def _freed(self, events: Sequence[Event]) -> None:\n        pass",
        "core/test_semaphore_state.py::test_a_freed_slot_calls_the_first_waiter",
    ),
    Mutant(
        "the end of a waiter's key takes back the duty to see to a free slot",
        "core/waiters.py",
        "            if due:\n                self.request_reconcile()\n",
        '            self._reconciling = "due" if due else "idle"\n',
        "core/test_semaphore_state.py::test_news_that_is_no_duty_leaves_the_duty",
    ),
    Mutant(
        "an old closing ends all waits, though it was registered again since",
        "core/watches.py",
        "        elif semaphore.limit is None or kv.mod_revision >= semaphore.limit.revision:\n",
        "        else:\n",
        "core/test_semaphore_state.py::test_a_closed_semaphore_tells_all_waiters",
    ),
    Mutant(
        "an old closing is believed, though it was registered again since",
        "core/semaphore.py",
        "if self.limit is None or self.limit.revision <= at:",
        "if at > 0:",
        "core/test_semaphore_state.py::test_a_closed_semaphore_tells_all_waiters",
    ),
    Mutant(
        "nobody is told that a semaphore was closed",
        "core/semaphore.py",
        "self.waiters.tell(Closed(revision))",
        "pass",
        "core/test_semaphore_state.py::test_a_closed_semaphore_tells_all_waiters",
    ),
    Mutant(
        "an older limit replaces a newer one",
        "core/semaphore.py",
        "if self.limit is not None and limit.revision <= self.limit.revision:",
        "if self.limit is None and limit.revision < 0:",
        "core/test_semaphore_state.py::test_a_raised_limit_calls_the_first_waiter",
    ),
    Mutant(
        "a raised limit wakes nobody",
        "core/semaphore.py",
        "        if raised:\n",
        "        if not raised:\n",
        "core/test_semaphore_state.py::test_a_raised_limit_calls_the_first_waiter",
    ),
    Mutant(
        "a limit of 0, or a pause, refuses those who wait for several slots",
        "core/semaphore.py",
        "waiter.demand.weight > limit.room > 0:",
        "waiter.wants.weight > limit.room:",
        "core/test_semaphore_state.py::test_a_raised_limit_calls_the_first_waiter",
    ),
    Mutant(
        "who waits for more than a lowered limit waits for ever",
        "core/semaphore.py",
        "waiter.box.put(TooHeavy())",
        "pass",
        "core/test_semaphore_state.py::test_a_raised_limit_calls_the_first_waiter",
    ),
    Mutant(
        "each holder is told that it was evicted by its own grant",
        "core/grants.py",
        "if event.kv.mod_revision > self.token and",
        "if event.kv.mod_revision >= self.token and",
        "core/test_semaphore_state.py::test_an_eviction_is_told_at_once",
    ),
    Mutant(
        "an eviction is not noticed",
        "core/grants.py",
        "if event.kv.mod_revision > self.token and",
        "if event.kv.mod_revision > self.token + 9 and",
        "core/test_semaphore_state.py::test_an_eviction_is_told_at_once",
    ),
    Mutant(
        "after a gap in the watch of a held slot nobody reads it again",
        "core/grants.py",
        "CallbackListener(self._judge, gap=semaphore.grants.verify)",
        "CallbackListener(self._judge)",
        "core/test_semaphore_state.py::test_a_gap_of_the_watch_of_a_slot_has_it_verified",
    ),
    Mutant(
        "what is held for long is never verified",
        "core/grants.py",
        "        elif now >= self._verify_at:\n",
        "        elif now < 0:\n",
        "core/test_semaphore_state.py::test_what_is_held_for_long_is_verified_now_and_then",
    ),
    Mutant(
        "the end of an evicted grant makes the slot of the next one look free",
        "core/grants.py",
        "if self.by_slot.get(slot) is grant:",
        "if slot in self.by_slot:",
        "core/test_semaphore_state.py::test_a_slot_that_was_granted_again_stays_listed",
    ),
    Mutant(
        "a lost lease is told and counted twice",
        "core/grants.py",
        '        if self.state != "held":\n            return\n        self.detach()',
        "        self.detach()",
        "core/test_semaphore_state.py::test_a_lost_grant_counts_until_the_program_lets_go",
    ),
    Mutant(
        "a lost lease counts as overbooked for ever",
        "core/grants.py",
        "self.semaphore.stats.overbooked -= 1",
        "pass",
        "core/test_semaphore_state.py::test_a_lost_grant_counts_until_the_program_lets_go",
    ),
    Mutant(
        "watches are closed while somebody waits",
        "core/watches.py",
        "if not self._watches or waiters or self._expecting:",
        "if not self._watches or self._expecting:",
        "core/test_semaphore_state.py::test_watches_stay_while_somebody_waits",
    ),
    Mutant(
        "watches are never closed",
        "core/watches.py",
        "if now >= waiters.quiet_since + WATCH_AFTER_LAST_WAITER:",
        "if now < 0:",
        "core/test_semaphore_state.py::test_watches_stay_while_somebody_waits",
    ),
    Mutant(
        "watches are closed before their first waiter is in line",
        "core/watches.py",
        "self._semaphore.waiters.mark_quiet()  # who",
        "pass  # who",
        "core/test_semaphore_state.py::"
        "test_watches_outlast_the_moment_before_their_first_waiter_is_in_line",
    ),
    Mutant(
        "who waits is not told that etcd refuses the user",
        "core/watches.py",
        "        self._semaphore.waiters.tell(AccessLost(error))\n",
        "",
        "core/test_semaphore_state.py::test_refused_watches_tell_all_who_wait",
    ),
    Mutant(
        "a grant message reaches nobody",
        "core/watches.py",
        "waiter.box.put(GrantMessage(kv))",
        "pass",
        "core/test_semaphore_state.py::test_a_message_goes_to_the_waiter_with_its_lease",
    ),
    Mutant(
        "one who was served stays in the known line",
        "core/queue_view.py",
        "if queued.created > self._served_until:",
        "if queued.created >= self._served_until:",
        "core/test_semaphore_state.py::test_old_news_of_the_line_is_left_aside",
    ),
    Mutant(
        "the end of a waiter's key is no reason to look",
        "core/waiters.py",
        "self._waiters.wake_leader(reread=True, due=False)",
        "pass",
        "core/test_semaphore_state.py::test_the_end_of_a_waiters_key_is_a_reason_to_look",
    ),
    Mutant(
        "a waiter that misses events of its key is not looked for",
        "core/waiters.py",
        "        self._waiters.wake_leader(reread=True)\n",
        "        pass\n",
        "core/test_semaphore_state.py::test_after_a_gap_everything_is_read_again",
    ),
    Mutant(
        "a semaphore that is waited for is forgotten",
        "core/semaphore.py",
        "busy = self.grants or self.waiters or stats",
        "busy = self.grants or stats",
        "core/test_semaphore_state.py::test_semaphores_in_use_are_not_forgotten",
    ),
    Mutant(
        "a semaphore that is being acquired is forgotten",
        "core/semaphore.py",
        "stats.pending or stats.overbooked",
        "stats.overbooked",
        "core/test_semaphore_state.py::test_semaphores_in_use_are_not_forgotten",
    ),
    Mutant(
        "semaphores of made-up names are never forgotten",
        "core/session.py",
        "len(self.semaphores) > MOST_REMEMBERED",
        "len(self.semaphores) > 10 * MOST_REMEMBERED",
        "core/test_semaphore_state.py::test_semaphores_in_use_are_not_forgotten",
    ),
    Mutant(
        "a bound by max_hold is warned of again and again",
        "core/grants.py",
        "        self.warn_at = math.inf\n        self.semaphore",
        "        self.semaphore",
        "core/test_semaphore_state.py::test_a_grant_that_was_bound_is_warned_of_once",
    ),
    # ------------------------------------------------------------ helper process (keeper)
    Mutant(
        "the helper process goes on renewing a lease that was taken back meanwhile",
        "renewal_helper_process.py",
        "        if self.table.forbidden(place):\n            self.drop(lease_id)",
        "        if place < 0:\n            self.drop(lease_id)",
        "keeper/test_keeper.py::test_the_helper_keeps_nothing_that_was_taken_back",
    ),
    Mutant(
        "the helper process takes a lease over that was taken back before",
        "renewal_helper_process.py",
        'b"K" and not self._table.forbidden(place):',
        'b"K":',
        "keeper/test_keeper.py::test_the_helper_keeps_nothing_that_was_taken_back",
    ),
    Mutant(
        "a helper process that hears nothing any more goes on renewing",
        "renewal_helper/__init__.py",
        "self.kill()\n        return False",
        "return False",
        "keeper/test_keeper.py::test_a_helper_that_cannot_be_told_is_killed",
    ),
    # ------------------------------------------------------------ etcd
    Mutant(
        "a read that a cancelled task leaves behind is cancelled: some etcd releases crash",
        "etcd/methods.py",
        'return self.name == "read"',
        "return False",
        "etcd/test_connection.py::test_a_read_must_not_be_cancelled",
    ),
    # ------------------------------------------------------------ asyncio
    Mutant(
        "a second cancellation interrupts the clean-up",
        "drivers/aio.py",
        "interrupted = interrupted or not isinstance(raised, Exception)",
        "interrupted = False",
        "aio/test_cancel_every_step.py::test_cancelled_again_while_it_cleans_up",
    ),
    Mutant(
        "notes are taken in the wrong order",
        "drivers/aio_clock.py",
        "return self._notes.pop(0)",
        "return self._notes.pop()",
        "aio/test_engine.py::test_notes_come_in_their_order",
    ),
    Mutant(
        "a wait ends when a timer of the loop comes early",
        "drivers/aio_clock.py",
        "        while not self._notes:\n",
        "        for _ in range(not self._notes):\n",
        "aio/test_engine.py::test_a_wait_ends_by_the_clock_of_its_client",
    ),
    Mutant(
        "a revocation in the background ends when its task is cancelled",
        "drivers/aio.py",
        "if self._over or not isinstance(command, Wait | RevokeLease):",
        "if command is not None:",
        "aio/test_engine.py::test_what_runs_beside_the_callers_is_cancelled_by_nobody",
    ),
    Mutant(
        "after a failed request a task cannot be cancelled any more",
        "drivers/aio.py",
        "interrupted = interrupted or not isinstance(raised, Exception)",
        "interrupted = True",
        "aio/test_engine.py::test_an_error_does_not_shield_what_follows",
    ),
    Mutant(
        "closing a client cuts off what is under way",
        "drivers/aio.py",
        "while self._driving and (left",
        "while not self._driving and (left",
        "aio/test_engine.py::test_closing_waits_for_what_is_under_way",
    ),
    Mutant(
        "a closed client goes on performing",
        "drivers/aio.py",
        "        if self._over:\n            raise Over\n",
        "",
        "aio/test_engine.py::test_a_closed_client_performs_nothing",
    ),
    Mutant(
        "a closed client is opened again",
        "aio/client.py",
        "if self._closed or (driver is not None and driver.session.closed):",
        "if driver is not None and driver.session.semaphores is None:",
        "aio/test_engine.py::test_a_closed_client_performs_nothing",
    ),
    Mutant(
        "a block whose lease was lost ends as if nothing had happened",
        "aio/blocks.py",
        "            await lease._end()\n",
        "            await lease.release()\n",
        "aio/test_engine.py::test_a_block_whose_lease_was_lost_says_so",
    ),
    Mutant(
        "a coroutine function as on_lost is never awaited",
        "drivers/aio.py",
        "if inspect.isawaitable(result):",
        "if result is NotImplemented:",
        "aio/test_engine.py::test_on_lost_runs_in_the_loop",
    ),
    Mutant(
        "errors in the background are not logged",
        "drivers/aio.py",
        'log.exception("etcdsem: error in %s", name)',
        "pass",
        "aio/test_engine.py::test_an_error_in_the_background_is_logged",
    ),
    Mutant(
        "a client is used from another event loop",
        "aio/client.py",
        "if driver is not None and driver.loop is not loop:",
        "if driver is not None and driver.loop is None:",
        "aio/test_engine.py::test_a_client_of_another_loop_is_refused",
    ),
    Mutant(
        "a default client that was closed stays the default",
        "aio/client.py",
        "if client is None or client._closed or (",
        "if client is None or (",
        "aio/test_engine.py::test_a_closed_default_client_is_replaced",
    ),
    Mutant(
        "when its loop ends nothing is given back",
        "drivers/aio.py",
        "        with contextlib.suppress(asyncio.CancelledError):\n"
        "            await self._end.wait()\n",
        "        await self._end.wait()\n",
        "aio/test_processes.py::test_a_loop_ends_without_close",
    ),
    Mutant(
        "a caller that is cancelled ends the attempt to connect that others wait for",
        "etcd/aio_transport.py",
        "not (await asyncio.wait([task], timeout=left))[0]",
        "await asyncio.wait_for(task, left)",
        "etcd/test_aio_transport.py::test_one_attempt_to_connect_serves_all",
    ),
    Mutant(
        "a silent connection is kept for the next calls",
        "etcd/aio_transport.py",
        "if self.reads == one.reads:",
        "if not self.reads:",
        "etcd/test_aio_transport.py::test_a_silent_connection_is_left",
    ),
    Mutant(
        "one late answer makes us leave a connection on which others are answered",
        "etcd/aio_transport.py",
        "if self.reads == one.reads:",
        "if self.reads:",
        "etcd/test_aio_transport.py::test_a_late_answer_harms_nobody",
    ),
    Mutant(
        "a call that may have been sent counts as not applied",
        "etcd/aio_transport.py",
        "waiting.offset >= self.sent",
        "waiting.offset >= 0",
        "etcd/test_aio_transport.py::test_what_was_not_sent_was_not_applied",
    ),
    Mutant(
        "a call that was not sent counts as unknown",
        "etcd/aio_transport.py",
        "waiting.offset >= self.sent",
        "waiting.offset < 0",
        "etcd/test_aio_transport.py::test_what_was_not_sent_was_not_applied",
    ),
    Mutant(
        "a call whose caller was cancelled before it could be sent is sent later",
        "etcd/aio_transport.py",
        "            wire.withdraw(stream)\n",
        "",
        "etcd/test_aio_transport.py::test_more_calls_than_the_server_takes",
    ),
    Mutant(
        "a loop that stood still takes an answer in time for a late one",
        "etcd/aio_transport.py",
        "        self.read()  # a loop that stood still",
        "        # a loop that stood still",
        "etcd/test_aio_transport.py::test_a_loop_that_stood_still_hears_the_answer",
    ),
    Mutant(
        "after an interruption a connection is used on, in whatever state it is",
        "etcd/aio_wire.py",
        "        except BaseException:\n            self.lost(_INTERRUPTED)\n            raise\n\n"
        "    def flush",
        "        finally:\n            pass\n\n    def flush",
        "etcd/test_aio_transport.py::test_a_signal_handler_that_raises",
    ),
    Mutant(
        "a listener that fails ends the streams",
        "etcd/aio_stream_wire.py",
        "        except RpcError:\n            raise\n        except Exception:",
        "        except ZeroDivisionError:",
        "etcd/test_aio_streams.py::test_a_listener_that_fails",
    ),
    # ------------------------------------------------------------ command line
    Mutant(
        "the watchdog never hears of renewals: every long command is killed",
        "cli/run/supervisor.py",
        "self._watchdog.extend(now + left)",
        "pass",
        "cli/test_supervise.py::test_a_command_may_outlast_its_lease_timeout",
    ),
    Mutant(
        "SIGTERM comes so late that SIGKILL lands after the lease's end",
        "cli/run/supervisor.py",
        "left <= self._policy.kill_after + self._policy.slack:",
        "left <= self._policy.slack:",
        "cli/test_supervisor.py::test_a_lease_that_cannot_be_refreshed",
    ),
    Mutant(
        "SIGKILL comes at the very end of the lease",
        "cli/run/supervisor.py",
        "now + left - self._policy.slack,",
        "now + left,",
        "cli/test_supervisor.py::test_a_lease_that_cannot_be_refreshed",
    ),
    Mutant(
        "no SIGKILL follows",
        "cli/run/supervisor.py",
        "self._group.send(signal.SIGKILL)\n\n    def _warn",
        "pass\n\n    def _warn",
        "cli/test_supervisor.py::test_a_lease_that_cannot_be_refreshed",
    ),
    Mutant(
        "a stopped command never hears SIGTERM",
        "cli/run/supervisor.py",
        "        self._group.send(signal.SIGCONT)  # a stopped",
        "        pass  # a stopped",
        "cli/test_supervisor.py::test_a_lease_that_was_lost",
    ),
    Mutant(
        "after an eviction the command goes on until the lease would have ended",
        "cli/run/supervisor.py",
        "self._lease.remaining if self._lease.valid else 0.0",
        "self._lease.remaining",
        "cli/test_supervisor.py::test_a_lease_that_was_lost",
    ),
    Mutant(
        "the watchdog kills earlier than --kill-after",
        "cli/run/supervisor.py",
        "        self._watchdog.extend(kill_at + self._policy.slack)\n",
        "",
        "cli/test_supervisor.py::test_a_lease_that_was_lost",
    ),
    Mutant(
        "with warn the command is ended",
        "cli/run/supervisor.py",
        "        if not self._policy.terminate:\n            if left",
        "        if False:\n            if left",
        "cli/test_supervisor.py::test_with_warn_the_command_goes_on",
    ),
    Mutant(
        "with warn it is said at every look",
        "cli/run/supervisor.py",
        "                self._warned = True\n",
        "",
        "cli/test_supervisor.py::test_with_warn_the_command_goes_on",
    ),
    Mutant(
        "the end by --max-hold is said at every look",
        "cli/run/supervisor.py",
        "            self._warn_at = -math.inf\n            self._warn(bound)",
        "            self._warn(bound)",
        "cli/test_supervisor.py::test_the_end_by_max_hold_is_announced_once",
    ),
    Mutant(
        "it sleeps through the moment for SIGTERM",
        "cli/run/supervisor.py",
        "return min(self._policy.tick, left)",
        "return self._policy.tick",
        "cli/test_supervisor.py::test_nothing_is_slept_through",
    ),
    Mutant(
        "no time is kept between SIGKILL and the lease's end",
        "cli/run/supervisor.py",
        "return min(0.5, 0.05 * ttl)",
        "return 0.0",
        "cli/test_supervisor.py::test_a_lease_that_cannot_be_refreshed",
    ),
    Mutant(
        "of several leases only the losing of the first counts",
        "cli/run/multi.py",
        "return all(lease.valid for lease in self.leases)",
        "return self.leases[0].valid",
        "cli/test_supervisor.py::test_the_losing_of_any_one_counts",
    ),
    Mutant(
        "of several leases the last to end counts",
        "cli/run/multi.py",
        "return min(self.leases, key=",
        "return max(self.leases, key=",
        "cli/test_supervisor.py::test_several_leases_end_with_the_first",
    ),
    Mutant(
        "a killed wrapper leaves the command's children running",
        "cli/run/watchdog.py",
        "            group.send(signal.SIGKILL)\n        return",
        "            pass\n        return",
        "cli/test_supervise.py::test_killed_wrapper_leaves_no_command",
    ),
    Mutant(
        "a stopped wrapper keeps the command beyond its lease",
        "cli/run/watchdog.py",
        "left = deadline - boot_time()",
        "left = 1.0",
        "cli/test_supervise.py::test_stopped_wrapper_cannot_keep_the_command",
    ),
    Mutant(
        "the watchdog keeps the wrapper's output open",
        "cli/run/watchdog.py",
        "            os.dup2(null, fd)\n    if pipe",
        "            pass\n    if pipe",
        "cli/test_run.py::test_a_stream_that_the_command_closes_is_closed",
    ),
    Mutant(
        "a signal ends the watchdog",
        "cli/run/watchdog.py",
        "            signal.signal(number, signal.SIG_IGN)\n",
        "            pass\n",
        "cli/test_supervise.py::test_the_watchdog_is_deaf",
    ),
    Mutant(
        "where the watchdog is gone the command outlives its wrapper",
        "cli/run/launcher.py",
        "        die_with_parent()\n",
        "",
        "cli/test_supervise.py::test_wrapper_and_watchdog_killed_at_once",
    ),
    Mutant(
        "the command ignores SIGPIPE",
        "cli/run/launcher.py",
        "            signal.signal(sig, signal.SIG_DFL)\n        _exec",
        "            pass\n        _exec",
        "cli/test_run.py::test_the_commands_signals_are_as_ours_were",
    ),
    Mutant(
        "a signal that was ignored is heard",
        "cli/signals.py",
        "if not ignored or number in",
        "if number != 0 or number in",
        "cli/test_run.py::test_an_ignored_signal_stays_ignored",
    ),
    Mutant(
        "after a loss what the command started goes on",
        "cli/run/supervisor.py",
        "            self._signals.wait(_LEFTOVERS_TICK)\n        self._group.send(signal.SIGKILL)",
        "            self._signals.wait(_LEFTOVERS_TICK)",
        "cli/test_supervise.py::test_a_child_that_outlives_the_command_after_a_loss_is_killed",
    ),
    Mutant(
        "as a container's process 1 it reaps no orphans",
        "cli/run/supervisor.py",
        "            self._reap_orphans()\n",
        "",
        "cli/test_supervise.py::test_as_pid_1_it_reaps_orphans",
    ),
    Mutant(
        "a command that the watchdog killed ends with 137 instead of 70",
        "cli/run/supervisor.py",
        "            self.lost = True\n            say(",
        "            say(",
        "cli/test_supervise.py::test_stopped_wrapper_cannot_keep_the_command",
    ),
    Mutant(
        "signals are not passed on",
        "cli/run/supervisor.py",
        "            self._stopping = True\n        self._group.send(number)",
        "            self._stopping = True",
        "cli/test_supervise.py::test_signals_go_to_the_command",
    ),
    Mutant(
        "at the end it waits for an etcd that is away",
        "cli/run/acquire_worker.py",
        "worker.join(RELEASE_TIMEOUT)",
        "worker.join()",
        "cli/test_run.py::test_etcd_gone_at_the_end",
    ),
    Mutant(
        "a signal does not leave the line",
        "cli/run/acquire_worker.py",
        "            signals.stop(min(left",
        "            signals.wait(min(left",
        "cli/test_run.py::test_a_signal_leaves_the_line_at_once",
    ),
    Mutant(
        "--wait counts from the answer of etcd on",
        "cli/run/acquire_worker.py",
        "left = None if until == math.inf else",
        "left = None if until > 0 else",
        "cli/test_run.py::test_wait_gives_up",
    ),
    Mutant(
        "the exit code of a lost lease is the command's",
        "cli/run/job.py",
        "return exit_codes.LOST if supervisor.lost else code",
        "return code",
        "cli/test_supervise.py::test_evicted_is_70",
    ),
    Mutant(
        "the command is told another slot",
        "cli/run/job.py",
        '"ETCDSEM_SLOT": str(lease.slot)',
        '"ETCDSEM_SLOT": str(lease.slot + 1)',
        "cli/test_run.py::test_token_and_lease_are_etcds",
    ),
    Mutant(
        "the grace ignores that a refresh may have failed",
        "intervals.py",
        "margin(self.lease_timeout) - self.refresh",
        "margin(self.lease_timeout)",
        "cli/test_request.py::test_a_grace_that_does_not_fit_is_refused",
    ),
    Mutant(
        "the grace that is taken by itself does not fit into a short lease",
        "cli/run/request.py",
        "min(5.0, ttl / 3, max(0.0, 0.9 * room), longest / 3)",
        "min(5.0, longest / 3)",
        "cli/test_request.py::test_the_grace_that_is_taken_by_itself_fits",
    ),
    Mutant(
        "ready is taken back only when the lease ends",
        "cli/run/hold.py",
        "lease.remaining - self._plan.notice - slack(lease.ttl)",
        "lease.remaining",
        "cli/test_hold.py::test_lost_with_notice_when_etcd_is_silent",
    ),
    Mutant(
        "the ready file goes stale while the lease is held",
        "cli/run/hold.py",
        "            if self._file is not None and lease.valid:",
        "            if self._file is not None and not lease.valid:",
        "cli/test_hold.py::test_lost_with_notice_when_etcd_is_silent",
    ),
    Mutant(
        "the port says ready after the lease was lost",
        "cli/run/hold.py",
        "return ready_data(lease, good) if good > 0 else None",
        "return ready_data(lease, good)",
        "cli/test_hold.py::test_a_probe_is_answered_by_the_clock",
    ),
    Mutant(
        "a ready file of before the machine's start is believed",
        "cli/run/ready_file.py",
        "if boot != boot_id():",
        "if boot is None:",
        "cli/test_hold.py::test_check_of_what_is_no_ready_file",
    ),
    Mutant(
        "a stale ready file is believed",
        "cli/run/ready_file.py",
        "if boot_time() >= until:",
        "if until < 0:",
        "cli/test_hold.py::test_killed_its_file_goes_stale",
    ),
    Mutant(
        "the probe says ready while it waits",
        "cli/run/ready_file.py",
        "200 if data else 503",
        "200",
        "cli/test_hold.py::test_not_ready_while_it_waits",
    ),
    Mutant(
        "what an earlier holder left in the ready file stays while it waits",
        "cli/run/ready_file.py",
        "            self.remove()\n        except",
        "        except",
        "cli/test_hold.py::test_not_ready_while_it_waits",
    ),
    Mutant(
        "a drain that gave up says that it is done",
        "cli/admin/drain.py",
        "return exit_codes.CONFLICT",
        "return exit_codes.OK",
        "cli/test_operate.py::test_drain_that_takes_too_long",
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
        # PYTEST_ADDOPTS holds the options of the run that this is part of: --record is not ours.
        inherited = {v: it for v, it in os.environ.items() if not v.startswith("PYTEST_")}
        self._env = {**inherited, "PYTHONPATH": str(place)}

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
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--all"]
        # A fault may keep a test from ending even when it is told to.
        command += [f"--timeout={TIMEOUT}", "--timeout-method=thread"]
        command += ["--tb=line", f"--etcd={next(iter(_binaries()))}"]
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
