"""A chaos run: clients at work, faults in the clients and in etcd, and the final judgement.

1. Clients are real processes: workers that use the library, some of them through TCP proxies, and
   `etcdsem run` with jobs. They report to the referee (referee.py); etcd's history is read from
   etcd.
2. Faults are dealt from a shuffled deck, so each occurs before any occurs again; client faults and
   etcd faults happen concurrently. Each fault's function also ends it, so after the last one
   everything is healthy.
3. Then everybody must be served once more, everything must be gone from etcd, and the history is
   judged at every revision.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from etcdsem.errors import EtcdSemError
from etcdsem.model import Rate
from tests.chaos import starts
from tests.chaos.clusters import Cluster, Member
from tests.chaos.elections import stale_leaders
from tests.chaos.referee import Belief, Eviction, Referee, boottime
from tests.helpers.history import Change, judge, read_history_since
from tests.record import BROKEN

HERE = Path(__file__).parent

TTL = 3
"""Seconds of a worker's lease TTL: short, so that many leases are lost."""

MODULES = ("worker", "worker", "aio_worker", "aio_worker")
"""Workers with threads and with asyncio; with the proxies, used by every second one, all four kinds
occur."""

PATIENCE = 90.0
"""Seconds for everybody to be served after the last fault, on a busy machine."""

Faults = dict[str, Callable[[random.Random], None]]
"""The possible faults by name; each ends what it began."""

JOB_CODES = (0, 69, 70, 75, -signal.SIGKILL)
"""Allowed exit codes of `etcdsem run`: success, etcd unavailable, lease lost, full for too long, or
killed by us."""

BITING = "holder paused for longer than its TTL"
"""Occurs three times as often as the others: without a fence it does harm."""

FIXED, RESIZED = "chaos-fixed", "chaos-resized"
"""Two semaphores: one keeps its limit, the other one's limit is changed all the time."""


RATE, BLOCKS = "chaos-rate", "chaos-blocks"
RATES = {RATE: Rate(8, 2.0, 1), BLOCKS: Rate(30, 2.0, 5)}
"""Two rate limits, one of them in blocks. They are paused but never changed by hand, since after a
manual deletion or change nothing could be said about the rate."""


@dataclass
class Report:
    """The results of a run."""

    kind: str
    seed: int
    seconds: float
    wrong: list[str] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    vitals: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    spared: set[str] = field(default_factory=set)
    """Workers that were never killed, to observe their resource use over time."""
    circumstances: list[str] = field(default_factory=list)
    """What was done when, on the same clock as the entries of `wrong`."""

    def lines(self) -> list[str]:
        """The report for people."""
        return [*self._counted(), *(f"  WRONG: {one}" for one in self.wrong[:20])]

    def alarm(self) -> str:
        """What is wrong, the worst first; enough to start from if nothing else is kept."""
        worst = (one[:1500] for one in self.wrong[:5])
        return "\n".join([*worst, *self.circumstances, *self._counted()])

    def _counted(self) -> list[str]:
        head = f"chaos on {self.kind}, seed {self.seed}, {self.seconds:.0f} s of faults"
        counted = sorted(self.counters.items())
        return [head, *(f"  {name:.<48} {number}" for name, number in counted)]


class WorkerProcess:
    """A running worker.py or aio_worker.py."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.who: str = config["who"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.chaos.{config['module']}", json.dumps(config)],
            cwd=HERE.parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: list[str] = []
        threading.Thread(target=self._read_errors, daemon=True).start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line)
            del self.errors[:-200]

    def wait_ready(self) -> None:
        """Wait until it has begun; raises AssertionError with its output if it ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", f"{self.who}: {line} {''.join(self.errors)}"

    def drain(self) -> None:
        """Tell it to finish."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write("drain\n")
            self.process.stdin.flush()

    def last_words(self) -> dict[str, Any] | None:
        """Its final report; None if it gives none."""
        assert self.process.stdout is not None
        try:
            self.process.wait(PATIENCE + 60)
        except subprocess.TimeoutExpired:
            return None
        lines = self.process.stdout.read().splitlines()
        if self.process.returncode != 0 or not lines:
            return None
        report: dict[str, Any] = json.loads(lines[-1])
        return report

    def kill(self) -> None:
        """SIGKILL it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Chaos:
    """One run. `run()` returns the report; an AssertionError means that it could not be done."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        seconds: float,
        seed: int,
        workers: int = 4,
        threads: int = 3,
        spared: int = 0,
        control: str | None = None,
    ) -> None:
        self.control = control  # the only fault, in the workers; see worker.py
        self.spared = spared
        self.cluster = cluster
        self.seconds = seconds
        self.rng = random.Random(seed)
        self.seed = seed
        self.report = Report(cluster.kind, seed, seconds)
        self.counters = self.report.counters
        self.referee = Referee()
        self.workers: list[WorkerProcess] = []
        self.made = 0
        self.worker_count, self.thread_count = workers, threads
        self.over = threading.Event()
        self.history: dict[str, list[Change]] = {name: [] for name in (FIXED, RESIZED, *RATES)}
        self.read_up_to = 0
        self.lock = threading.Lock()
        self.highest_term = 0
        self.done: list[tuple[float, str]] = []  # when each fault began
        self.logs: dict[str, str] = {}  # of the members, at the end
        self.ahead = 0.0  # seconds by which the members' wall clock is ahead of ours

    # -- the run

    def run(self) -> Report:
        """Set up, cause faults, let everybody be served, and judge."""
        cluster = self.cluster
        cluster.ask("put", f"/etcdsem/{FIXED}/max_leases", "2")
        cluster.ask("put", f"/etcdsem/{RESIZED}/max_leases", "3")
        for name, rate in RATES.items():
            cluster.ask("put", f"/etcdsem/{name}/max_leases", str(rate))
        with self.referee, contextlib.ExitStack() as stack:
            stack.callback(self._kill_all)
            self.workers = [self._new_worker() for _ in range(self.worker_count)]
            for worker in self.workers:
                worker.wait_ready()
            self.report.spared = {worker.who for worker in self.workers[: self.spared]}
            began = boottime()
            runners = [threading.Thread(target=self._run_jobs, args=(n,)) for n in range(2)]
            decks = (self._client_faults(), self._etcd_faults())
            harm = [
                threading.Thread(target=self._do_harm, args=(began, deck, seed))
                for seed, deck in enumerate(() if self.control else decks)
            ]
            for thread in (*runners, *harm):
                thread.start()
            for thread in harm:
                thread.join()
            if self.control:
                self._rest(self.seconds)
            self._note_term()
            self.over.set()
            healed = boottime()
            for member in cluster.members:
                member.wait_healthy()
            with self._nothing_paused():
                for worker in self.workers:
                    worker.drain()
                for thread in runners:
                    thread.join()
                self._hear_last_words()
            self.counters["seconds until all were served"] = round(boottime() - healed)
            self._nothing_left()
        self._judge()
        return self.report

    def _kill_all(self) -> None:
        self.over.set()
        for worker in self.workers:
            worker.kill()

    def _new_worker(self) -> WorkerProcess:
        self.made += 1
        endpoints = self.cluster.proxied if self.made % 2 else self.cluster.endpoints
        first = self.made % len(endpoints)
        return WorkerProcess(
            {
                "who": f"w{self.made}",
                "module": MODULES[self.made % len(MODULES)],
                "endpoints": [*endpoints[first:], *endpoints[:first]],
                "semaphores": [FIXED, RESIZED],
                "rates": list(RATES),
                "control": self.control,
                "threads": self.thread_count,
                "ttl": TTL,
                "referee": self.referee.port,
                "seed": self.seed,
                "patience": PATIENCE,
            }
        )

    def _hear_last_words(self) -> None:
        for worker in self.workers:
            said = worker.last_words()
            if said is None:
                self._wrong(f"{worker.who} did not come to its end: {''.join(worker.errors[-20:])}")
                continue
            self.counters["served after the last fault"] += said["served"]
            for unserved in said["unserved"]:
                self._wrong(f"{worker.who} was not served after the faults: {unserved}")
            # Each thread by either semaphore and by both at once; and a start of each rate limit.
            if said["served"] != 3 * self.thread_count + len(RATES):
                self._wrong(f"{worker.who}: {said['served']} served")
            before, after = said["before"], said["after"]
            for what in ("threads", "fds"):
                if after[what] > before[what]:
                    self._wrong(
                        f"{worker.who} has {after[what]} {what}, had {before[what]} {said['files']}"
                    )

    # -- etcdsem run

    def _run_jobs(self, number: int) -> None:
        rng = random.Random(f"{self.seed}-jobs-{number}")
        environment = {**os.environ, "ETCDSEM_ENDPOINTS": ",".join(self.cluster.endpoints)}
        options = ["-q", "-t", f"{TTL}s", "--kill-after", "1s", "-w", "20s"]
        while not self.over.is_set():
            job = [sys.executable, "-I", "-S", str(HERE / "job.py"), str(self.referee.port)]
            command = [sys.executable, "-m", "etcdsem", "run", *self._what_to_run(rng)]
            job += [rng.choice(["0.1", "0.5", "2"]), str(boottime())]
            process = subprocess.Popen(
                [*command, *options, "--", *job],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            harm = rng.choice([None, None, None, "kill", "stop"])
            try:
                process.wait(rng.random() * 4 if harm else None)
            except subprocess.TimeoutExpired:
                if harm == "kill":
                    self.counters["fault: etcdsem run killed"] += 1
                    process.kill()
                else:
                    self.counters["fault: etcdsem run stopped"] += 1
                    process.send_signal(signal.SIGSTOP)
                    self.over.wait(2 * TTL)
                    process.send_signal(signal.SIGCONT)
            _, said = process.communicate()
            self.counters[f"etcdsem run ended with {process.returncode}"] += 1
            if process.returncode not in JOB_CODES:
                self._wrong(f"etcdsem run ended with {process.returncode}: {said.decode()}")

    @staticmethod
    def _what_to_run(rng: random.Random) -> list[str]:
        if rng.random() < 0.2:
            return [RATE, "--rate", str(RATES[RATE])]
        wishes = rng.choice([[], [], ["--priority", "5"], ["--backfill"]])
        return [rng.choice([FIXED, RESIZED]), *wishes]

    # -- faults

    def _do_harm(self, began: float, faults: Faults, seed: int) -> None:
        rng = random.Random(f"{self.seed}-{seed}")
        deck: list[str] = []
        try:
            while boottime() < began + self.seconds:
                if not deck:
                    deck = [*faults, *(name for name in faults if name == BITING for _ in range(2))]
                    rng.shuffle(deck)
                name = deck.pop()
                self.counters[f"fault: {name}"] += 1
                self.done.append((boottime(), name))
                faults[name](rng)
                self._rest(rng.random())
        except Exception as error:
            self._wrong(f"the fault {name!r} could not be done: {type(error).__name__}: {error}")

    def _rest(self, seconds: float) -> None:
        time.sleep(seconds)

    def _client_faults(self) -> Faults:
        return {
            "client killed": self._kill_worker,
            BITING: self._pause_long,
            "client paused for less than half its TTL": self._pause_short,
            "GIL held for longer than the TTL": lambda rng: self._signal_worker(signal.SIGUSR1),
            "wall clock jumps an hour": lambda rng: self._signal_worker(signal.SIGUSR2),
            "holder's lease revoked": self._revoke,
            "slot's key deleted": self._delete_slot,
            "waiter's key deleted": self._delete_waiter,
            "limit changed": self._change_limit,
            "paused and resumed": self._pause_grants,
        }

    def _etcd_faults(self) -> Faults:
        faults: Faults = {
            "leader killed": self._kill_leader,
            "leader moved": self._move_leader,
            "leader paused": self._pause_leader,
            "quorum lost for less than the TTL": lambda rng: self._lose_quorum(TTL / 3),
            "quorum lost for longer than the TTL": lambda rng: self._lose_quorum(TTL * 1.7),
            "all members killed": self._kill_all_members,
            "clients cut off": lambda rng: self._proxies("hold", "hold", 2 * TTL),
            "clients' requests held": lambda rng: self._proxies("hold", "pass", 8.5),
            "answers lost, then reset": self._lose_answers,
            "connections reset": lambda rng: self._reset(),
            "compacted while cut off": self._compact,
        }
        if self.cluster.isolate is not None:
            faults["leader cut off from its peers"] = lambda rng: self._isolate(True, rng)
            faults["member cut off from its peers"] = lambda rng: self._isolate(False, rng)
        return faults

    # -- faults of clients

    def _victim(self, *, holder: bool = False) -> WorkerProcess:
        """A worker, preferably one that is at work."""
        pids = {worker.process.pid: worker for worker in self.workers}
        until = boottime() + 5.0
        while holder and boottime() < until:
            working = self.referee.at_work(lambda belief: belief.pid in pids)
            if working:
                return pids[self.rng.choice(working).pid]
            time.sleep(0.005)
        return self.rng.choice(self.workers)

    def _kill_worker(self, rng: random.Random) -> None:
        victim = self._victim(holder=rng.random() < 0.7)
        if victim.who in self.report.spared:
            victim = rng.choice(self.workers[self.spared :])
        victim.kill()
        self.referee.gone(victim.process.pid)
        new = self._new_worker()
        self.workers[self.workers.index(victim)] = new
        new.wait_ready()

    def _pause(self, victim: WorkerProcess, seconds: float) -> None:
        victim.process.send_signal(signal.SIGSTOP)
        try:
            self._rest(seconds)
        finally:
            victim.process.send_signal(signal.SIGCONT)

    def _pause_long(self, rng: random.Random) -> None:
        self._pause(self._victim(holder=True), TTL * (1.5 + rng.random()))

    def _pause_short(self, rng: random.Random) -> None:
        self._pause(self._victim(holder=True), TTL * 0.45 * rng.random())

    def _signal_worker(self, number: signal.Signals) -> None:
        self._victim(holder=True).process.send_signal(number)
        if number == signal.SIGUSR1:
            self._rest(TTL + 2.0)

    def _evicting(
        self, act: Callable[[], int], *, slot: int | None = None, lease: str | None = None
    ) -> None:
        """Evict by hand, and tell the referee since when: the evicted client may not know yet."""
        eviction = Eviction(RESIZED, slot, lease, boottime())
        self.referee.evicted(eviction)
        with contextlib.suppress(AssertionError):  # it may still land, at any revision
            eviction.revision = act()

    def _holder(self) -> Belief | None:
        working = self.referee.at_work(lambda belief: belief.semaphore == RESIZED)
        return self.rng.choice(working) if working else None

    def _revoke(self, rng: random.Random) -> None:
        holder = self._holder()
        if holder is not None:
            self._evicting(lambda: self._tell("lease", "revoke", holder.lease), lease=holder.lease)

    def _delete_slot(self, rng: random.Random) -> None:
        slot = rng.randrange(3)
        key = f"/etcdsem/{RESIZED}/leases/{slot:05d}"
        self._evicting(lambda: self._tell("del", key), slot=slot)

    def _delete_waiter(self, rng: random.Random) -> None:
        listed = self.cluster.ask("get", "--prefix", "--keys-only", f"/etcdsem/{RESIZED}/waiters/")
        keys = listed.split()
        if keys:
            with contextlib.suppress(AssertionError):
                self._tell("del", rng.choice(keys))

    def _tell(self, *arguments: str) -> int:
        """Run etcdctl once and return etcd's revision; raises AssertionError if it is unknown
        whether the command was done.
        """
        member = self.rng.choice(self.cluster.members)
        try:
            said = member.etcdctl("--command-timeout=5s", *arguments, "-w", "json")
        except EtcdSemError as error:
            if "lease not found" in str(error):
                return 0
            raise AssertionError(str(error)) from error
        except subprocess.TimeoutExpired as error:
            raise AssertionError(str(error)) from error
        return int(json.loads(said)["header"]["revision"])

    def _change_limit(self, rng: random.Random) -> None:
        with contextlib.suppress(AssertionError):
            self._tell("put", f"/etcdsem/{RESIZED}/max_leases", str(rng.choice([1, 2, 3, 5])))

    def _pause_grants(self, rng: random.Random) -> None:
        """An operator pauses one with plain puts, and resumes it, however long that takes."""
        name = rng.choice([RESIZED, *RATES])
        key, limit = f"/etcdsem/{name}/max_leases", str(RATES.get(name, rng.choice([2, 3])))
        with contextlib.suppress(AssertionError):
            self._tell("put", key, f"{limit} paused")
        self._rest(2 * rng.random())
        until = boottime() + PATIENCE
        while True:
            try:
                self._tell("put", key, limit)
                return
            except AssertionError:
                if boottime() > until:
                    raise

    @contextlib.contextmanager
    def _nothing_paused(self) -> Iterator[None]:
        """Repeatedly resume what is paused: a put that a member had not answered may take effect
        after a later one.
        """
        over = threading.Event()

        def resume() -> None:
            while not over.wait(0.5):
                for name in (RESIZED, *RATES):
                    key = f"/etcdsem/{name}/max_leases"
                    limit, *paused = self.cluster.ask("get", "--print-value-only", key).split()
                    if paused:
                        self.cluster.ask("put", key, limit)

        thread = threading.Thread(target=resume)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # -- faults of etcd

    def _heal(self) -> None:
        for member in self.cluster.members:
            member.wait_healthy()
        self._note_term()

    def _note_term(self) -> None:
        said = self.cluster.status(0) or {}
        self.highest_term = max(self.highest_term, int(said.get("RaftTerm", "0")))

    def _kill_leader(self, rng: random.Random) -> None:
        leader = self.cluster.members[self.cluster.leader()]
        leader.kill()
        self._rest(1.0 + 2 * rng.random())
        leader.launch()
        self._heal()

    def _move_leader(self, rng: random.Random) -> None:
        for _ in range(3):
            leader = self.cluster.leader()
            to = (self.cluster.status((leader + 1) % 3) or {}).get("MemberID")
            if to is not None:
                with contextlib.suppress(EtcdSemError):
                    self.cluster.members[leader].etcdctl("move-leader", f"{int(to):x}")
            self._rest(0.3)
        self._heal()

    def _pause_leader(self, rng: random.Random) -> None:
        leader = self.cluster.members[self.cluster.leader()]
        self._stall([leader], TTL * (1.0 + rng.random()))

    def _lose_quorum(self, seconds: float) -> None:
        self._stall(self.cluster.members[:2], seconds)

    def _stall(self, members: Sequence[Member], seconds: float) -> None:
        """Suspend some members for a while."""
        for member in members:
            member.pause()
        try:
            self._rest(seconds)
        finally:
            for member in members:
                member.resume()
        self._heal()

    def _kill_all_members(self, rng: random.Random) -> None:
        for member in self.cluster.members:
            member.kill()
        for member in self.cluster.members:
            member.launch()
        self._heal()

    def _isolate(self, leads: bool, rng: random.Random) -> None:
        assert self.cluster.isolate is not None
        assert self.cluster.rejoin is not None
        leader = self.cluster.leader()
        number = leader if leads else (leader + 1) % 3
        self.cluster.isolate(number)
        try:
            self._rest(TTL * (1.0 + rng.random()))
        finally:
            self.cluster.rejoin(number)
        self._heal()

    def _proxies(self, up: str, down: str, seconds: float) -> None:
        for proxy in self.cluster.proxies:
            proxy.up, proxy.down = up, down
        try:
            self._rest(seconds)
        finally:
            for proxy in self.cluster.proxies:
                proxy.up, proxy.down = "pass", "pass"

    def _lose_answers(self, rng: random.Random) -> None:
        for _ in range(4):
            self._proxies("pass", "drop", 0.05 + 0.2 * rng.random())
            self._reset()
            self._rest(0.5)

    def _reset(self) -> None:
        for proxy in self.cluster.proxies:
            proxy.reset()

    def _compact(self, rng: random.Random) -> None:
        """Cut the proxied clients off, compact past what they have seen, and let them resume."""
        for proxy in self.cluster.proxies:
            proxy.up, proxy.down = "hold", "drop"
        try:
            self._rest(1.0)
            self._read_history()
            self.cluster.ask("compact", str(self.read_up_to))
            self._reset()
        finally:
            for proxy in self.cluster.proxies:
                proxy.up, proxy.down = "pass", "pass"

    # -- the judgement

    def _read_history(self) -> None:
        """Continue reading the history of both semaphores, up to now."""
        until = 0
        for name, changes in self.history.items():
            member = self.cluster.members[-1]
            new, at = read_history_since(member, name, self.read_up_to + 1)
            changes += new
            until = min(until, at) if until else at
        for name, changes in self.history.items():  # both up to the same revision
            self.history[name] = [change for change in changes if change.revision <= until]
        self.read_up_to = until

    def _nothing_left(self) -> None:
        """Check that nothing but the limits is left once the leases of killed clients have ended.

        Starts end by their leases after their clients have ended, so the contended mark of a rate
        limit may stay, and the records of its permits.
        """
        until = boottime() + 30.0
        stay = tuple(
            f"/etcdsem/{name}/{one}" for name in RATES for one in ("contended", "permits/")
        )
        while True:
            keys = self.cluster.ask("get", "--prefix", "--keys-only", "/etcdsem/").split()
            left = [
                key for key in keys if not key.endswith("/max_leases") and not key.startswith(stay)
            ]
            leases = self.cluster.ask("lease", "list").splitlines()[1:]
            if not left and not leases:
                return
            if boottime() > until:
                self._wrong(f"left behind in etcd: keys {left}, leases {leases}")
                return
            time.sleep(0.3)

    def _judge(self) -> None:
        self._read_history()
        self.logs = {member.name: member.log() for member in self.cluster.members}
        self.ahead = time.time() - boottime()
        self.referee.stale_leaders = stale_leaders(self.logs, self.ahead)
        self.report.circumstances = [
            "faults: " + ", ".join(f"{name} {at:.1f}" for at, name in self.done),
            "leaders that did not know that they led no more: "
            + ", ".join(
                f"{who} {on:.1f} to {to:.1f}" for who, on, to in self.referee.stale_leaders
            ),
        ]
        if not self._members_agree():
            return  # no history is the true one, so nothing can be judged by one
        for name, changes in self.history.items():
            verdict = judge(changes, name)
            for wrong in verdict.wrong:
                self._broken(f"{name}: {wrong}")
            self.counters["revisions judged"] += verdict.revisions
            self.counters["grants in etcd"] += verdict.grants
            self.counters["hand-overs in etcd"] += verdict.handed_over
        self._all_recorded()
        for wrong in self.referee.judge():
            self._broken(wrong)
        self._judge_starts()
        referee = self.referee
        self.counters.update(referee.counters)
        self.counters["writes past the fence"] = referee.fenced.accepted
        self.counters["stale writes refused by the fence"] = referee.fenced.refused
        self.counters["stale writes without a fence"] = referee.unfenced.stale
        self.counters["raft terms"] = self.highest_term
        self.counters["evictions by hand"] = len(referee.evictions)
        self.counters["worker processes"] = self.made
        self.report.vitals = referee.vitals

    def _judge_starts(self) -> None:
        for name, rate in RATES.items():
            told = self.referee.starts.get(name, [])
            wrong = self.referee.judge_starts(name, rate)
            for one in (*wrong, *starts.unrecorded(told, rate, self.history[name])):
                self._broken(one)
            self.counters[f"starts of {rate}"] = len(told)
            self.counters[f"starts of {rate}, told within µs"] = starts.blur(told)
            self.counters[f"starts of {rate}, most in a window"] = starts.most(told, rate)

    def _all_recorded(self) -> None:
        """Check that each reported grant is in etcd's history, with that slot and token."""
        recorded = {
            (change.key, change.revision)
            for changes in self.history.values()
            for change in changes
            if change.kind == "put"
        }
        for name, slot, token in self.referee.beliefs:
            if (f"/etcdsem/{name}/leases/{slot:05d}", token) not in recorded:
                self._broken(f"{name}: slot {slot}, token {token} was believed, never granted")

    def _members_agree(self) -> bool:
        """Whether all members have the same data; else etcd broke its own promise (#13766)."""
        until = boottime() + 20.0
        while True:
            hashes = [self._hash_of(member) for member in self.cluster.members]
            if None not in hashes and len(set(hashes)) == 1:
                return True
            if boottime() > until:  # a member may be late
                self._wrong(f"etcd's members have different data: {hashes}")
                return False
            time.sleep(0.5)

    def _hash_of(self, member: Member) -> tuple[int, int] | None:
        """Of its data; None if it is not as far as that yet."""
        try:
            said = member.etcdctl("endpoint", "hashkv", f"--rev={self.read_up_to}", "-w", "json")
        except EtcdSemError:
            return None
        found = json.loads(said)[0]["HashKV"]
        return found["hash"], found["compact_revision"]

    def evidence(self) -> dict[str, Any]:
        """Everything that is needed to find out afterwards what went wrong, as plain JSON."""
        return {
            "report": self.report.lines(),
            "wrong": self.report.wrong,
            "faults": self.done,
            "history": {
                name: [
                    (one.revision, one.kind, one.key, one.value.decode(), one.created, one.lease)
                    for one in changes
                ]
                for name, changes in self.history.items()
            },
            "beliefs": [asdict(belief) for belief in self.referee.beliefs.values()],
            "starts": self.referee.starts,
            "evictions": [asdict(eviction) for eviction in self.referee.evictions],
            "stale leaders": self.referee.stale_leaders,
            "said": {worker.who: worker.errors for worker in self.workers},
            "logs": self.logs,
            "their clock is ahead by": self.ahead,
        }

    def _broken(self, what: str) -> None:
        """Record a failure of the semaphore itself, not of the machine."""
        with self.lock:
            self.report.wrong.insert(0, f"{BROKEN}: {what}")

    def _wrong(self, what: str) -> None:
        with self.lock:
            self.report.wrong.append(what)
