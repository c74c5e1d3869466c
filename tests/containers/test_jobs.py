"""Twenty jobs in containers share a limit of five, whatever happens to them and to etcd.

The judge of the limit is etcd's own record. A referee in a container of its own counts who is at
work; it refuses fencing tokens of the past, as a resource does that must not be hurt by a process
that was paused and does not know yet that its lease is over.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from etcdsem import Client, Semaphore
from tests.containers.pods import WORK, Pod, Pods, Referee, known
from tests.helpers.docker_etcd import ContainerCluster
from tests.helpers.history import Verdict, assert_clean
from tests.helpers.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JOBS, LIMIT = 20, 5
LOST = 70


class Jobs:
    """Twenty of them, under one semaphore."""

    def __init__(
        self, pods: Pods, image: str, name: str, ttls: Sequence[int], beats: Sequence[int]
    ) -> None:
        self.name = name
        self.referee = Referee(pods, image)

        def start(number: int) -> Pod:
            return pods.run(
                f"job-{number:02}",
                image,
                *("run", name, "-l", str(LIMIT), "-t", f"{ttls[number]}s", "-q", "--"),
                *("python3", "-c", WORK, self.referee.host, str(beats[number])),
                env={"JOB": f"job-{number:02}"},
            )

        self._pods = pods
        self._starts = [functools.partial(start, number) for number in range(len(beats))]
        self.pods: list[Pod] = []

    def start(self, count: int = JOBS) -> None:
        """Start the next `count` of them."""
        begun = len(self.pods)
        self.pods += self._pods.run_all(self._starts[begun : begun + count])

    def codes(self) -> dict[str, int]:
        """Wait for all of them: their exit codes."""
        return {pod.name: pod.end(200) for pod in self.pods}

    def logs(self) -> str:
        return "\n".join(f"{pod.name}: {pod.log().strip()}" for pod in self.pods if pod.log())


def nothing_is_lost(operator: Client, cluster: ContainerCluster, name: str) -> Verdict:
    """No slot is held, nobody waits, all five can be had at once; and etcd's record is clean."""
    sem = Semaphore(None, name, client=operator)
    eventually(
        lambda: (sem.status().holders, sem.status().waiters) == ((), ()),
        120,
        what="all slots are free",
    )
    assert all(sem.acquire(timeout=60) for _ in range(LIMIT))
    assert not sem.acquire(timeout=0)
    for _ in range(LIMIT):
        sem.release()
    return assert_clean(cluster.members[0], name)


def test_twenty_jobs(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """Undisturbed: all are done, never more than five at work, five at times."""
    jobs = Jobs(pods, image, name, [30] * JOBS, [40] * JOBS)
    jobs.start()
    codes = jobs.codes()
    assert set(codes.values()) == {0}, (codes, jobs.logs())
    verdict = jobs.referee.verdict()
    assert len(verdict["jobs"]) == JOBS
    assert verdict["most"] <= LIMIT
    assert verdict["refused"] == []
    record = nothing_is_lost(operator, cluster, name)
    assert record.most_held == LIMIT
    assert record.grants >= JOBS + LIMIT


def test_jobs_that_are_killed_paused_and_cut_off(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """`docker kill`, `docker pause` for longer than the TTL, `docker network disconnect` of three
    that hold; and a pause of one that waits.
    """
    ttl = 8  # of those that are hurt; the others must not lose theirs because the machine is busy
    ttls = [ttl] * 3 + [30] * (JOBS - 4) + [ttl]
    jobs = Jobs(pods, image, name, ttls, [100_000] * 3 + [40] * (JOBS - 3))
    jobs.start(3)
    killed, paused, cut_off = jobs.pods
    sem = Semaphore(None, name, client=operator, register=False)
    eventually(lambda: known(sem) and len(sem.holders()) == 3, 120, what="the three hold")
    jobs.start()
    killed.container.kill()
    paused.container.pause()
    pods.network.disconnect(cut_off.container.id)
    waiter = jobs.pods[-1]
    if waiter.status == "running":
        waiter.container.pause()
    assert cut_off.end() == LOST, cut_off.log()  # it knows by itself, without a network
    time.sleep(ttl + 2)  # a pause has no event to wait for
    for one in (paused, waiter):
        if one.status == "paused":
            one.container.unpause()
    codes = jobs.codes()
    assert codes.pop(killed.name) == 137
    assert codes.pop(paused.name) == LOST, paused.log()
    assert codes.pop(cut_off.name) == LOST
    assert codes.pop(waiter.name) in (0, LOST), waiter.log()
    assert set(codes.values()) == {0}, (codes, jobs.logs())
    verdict = jobs.referee.verdict()
    assert verdict["most"] <= LIMIT, verdict
    assert len(verdict["jobs"]) >= JOBS - 1
    nothing_is_lost(operator, cluster, name)


def test_jobs_during_a_rolling_restart_of_etcd(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """Each member is stopped and started again while jobs come, hold and go."""
    jobs = Jobs(pods, image, name, [30] * JOBS, [60] * JOBS)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(jobs.start)
        for member in cluster.members:
            member.restart()
        coming.result()
    cluster.wait_healthy()
    codes = jobs.codes()
    assert set(codes.values()) <= {0, LOST}, (codes, jobs.logs())
    verdict = jobs.referee.verdict()
    assert verdict["most"] <= LIMIT, verdict
    nothing_is_lost(operator, cluster, name)
