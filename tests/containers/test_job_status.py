"""What becomes of a Job when its lease is lost, or can never be had: the player runs the examples
as they are written, with retries and failure policies (`job_controller.py`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from etcdsem import Client, Semaphore, connect
from tests.containers.job_controller import JobController
from tests.containers.kubelet import Kubelet, node
from tests.containers.pods import Pod
from tests.helpers.manifests import in_namespace, rendered
from tests.helpers.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class World(NamedTuple):
    """A node with etcd and the examples, and a client."""

    kubelet: Kubelet
    client: Client


@pytest.fixture(scope="module")
def world(local: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The dev overlay. `wrapper` has a semaphore of its own, with a limit of 1."""
    examples = {one["metadata"]["name"]: copy.deepcopy(one) for one in rendered("examples")}
    (container,) = examples["wrapper"]["spec"]["template"]["spec"]["containers"]
    container["args"][1:3] = ["single", "--limit=1"]
    objects = (*rendered("overlays/dev"), *in_namespace(tuple(examples.values()), "etcdsem"))
    with node(objects, local, tmp_path_factory.mktemp("jobs")) as kubelet:
        (member,) = kubelet.stateful_set("etcd")
        with connect(f"{kubelet.address(member)}:2379") as client:
            yield World(kubelet, client)


def container_of(kubelet: Kubelet, job: str, name: str) -> Pod:
    """The newest container of this name; waits until there is one."""

    def found() -> list[Pod]:
        return [one for one in kubelet.containers(job) if one.name.endswith(f"/{name}")]

    eventually(found, 120, what=f"{name} of {job} starts")
    return found()[-1]


def test_what_no_retry_can_help_fails_the_job(world: World) -> None:
    """Another limit: the plain init container before the sidecar ends with 78, once."""
    Semaphore(4, "my-api", client=world.client)
    controller = JobController(world.kubelet, "sidecar", back_off=0.1)
    controller.run()
    assert controller.codes == [78]
    assert controller.status == {"succeeded": 0, "failed": 1, "condition": "Failed"} | {
        "reason": "PodFailurePolicy"
    }
    world.client.close_semaphore("my-api")


@pytest.mark.parametrize("harm", ["revoked", "killed"])
def test_a_lost_lease_fails_the_pod_and_not_the_job(world: World, harm: str) -> None:
    """Main of the sidecar example would end with 0 on SIGTERM or by itself; it is killed, counts as
    failed, and is tried again. A killed sidecar is started again beside it.
    """
    kubelet, client = world
    already = len(kubelet.containers("sidecar"))
    controller = JobController(kubelet, "sidecar", back_off=0.1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(controller.run)
        eventually(lambda: len(kubelet.containers("sidecar")) >= already + 3, 120, what="main")
        container_of(kubelet, "sidecar", "main").wait_for("at work")
        if harm == "killed":
            container_of(kubelet, "sidecar", "lease").container.kill()
        else:
            for holder in Semaphore(None, "my-api", client=client).holders():
                client.evict("my-api", slot=holder.slot)
        running.result()
    assert controller.codes == [137, 0]
    assert controller.status == {"succeeded": 1, "failed": 1, "condition": "Complete"}


def test_a_waiting_pod_is_not_ready(world: World) -> None:
    """Of two pods of the wrapper example, the one that works is ready, the other is running."""
    kubelet = world.kubelet
    template: Any = kubelet.get("Job", "wrapper")["spec"]["template"]

    def ready() -> list[bool]:
        return [
            kubelet.is_ready(one, template)
            for one in kubelet.containers("wrapper")
            if one.status == "running"
        ]

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(kubelet.job, "wrapper", index=index) for index in range(2)]
        eventually(lambda: sorted(ready()) == [False, True], 120, what="one of two is ready")
        for job in jobs:
            code, log = job.result()
            assert (code, bool(re.search("key number 0", log))) == (0, True), log
