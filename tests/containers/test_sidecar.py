"""`etcdsem hold` as a sidecar, for main containers that cannot be changed. The test is the kubelet:
it starts the sidecar, asks its startup probe, then starts the main container, and stops the
sidecar when the main container has ended.
"""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from etcdsem import Client, Semaphore
from tests.containers import images
from tests.containers.pods import WORK, Pod, Pods, Referee
from tests.helpers.docker_etcd import ContainerCluster
from tests.helpers.history import assert_clean
from tests.helpers.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PORT = 8086
PROMPT = 10.0
"""Seconds within which a slot is free after a clean end: far less than the TTL of 60 s."""


class Sidecar:
    """An init container with restartPolicy Always, and what the kubelet does with it."""

    def __init__(
        self, pods: Pods, image: str, name: str, pod: str, *options: str, **more: Any
    ) -> None:
        hold = ["hold", name, "-l", "2", "-t", "60s", "--ready-port", str(PORT), *options]
        self.pods = pods
        self.name = pod
        self.hold = pods.run(pod, image, *hold, **more)
        self.hold.container.reload()
        (network,) = self.hold.container.attrs["NetworkSettings"]["Networks"].values()
        self.ip = str(network["IPAddress"])

    def probe(self) -> int:
        """An httpGet probe of /readyz: its status; 0 if nobody answers."""
        connection = http.client.HTTPConnection(self.ip, PORT, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def main(self, image: str, *command: str, **options: Any) -> Pod:
        """The main container: starts when the startup probe succeeds; shares the network."""
        eventually(lambda: self.probe() == 200, 120, what="the startup probe succeeds")
        options = {
            "network": None,
            "network_mode": f"container:{self.hold.container.id}",
            **options,
        }
        return self.pods.run("", image, *command, **options)

    def stop(self) -> int:
        """SIGTERM, as after the main container's end."""
        self.hold.container.stop(timeout=30)
        return self.hold.end()


def test_the_main_container_waits_for_the_lease(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """No startup probe succeeds before the lease is held; after a clean end it is free at once."""
    sem = Semaphore(2, name, client=operator)
    assert sem.acquire(timeout=30)
    assert sem.acquire(timeout=30)
    sidecar = Sidecar(pods, image, name, "app")
    eventually(sem.waiters, 120, what="the sidecar waits")
    eventually(lambda: sidecar.probe() == 503, 120, what="it says that it is not ready")
    sem.release()
    main = sidecar.main(images.bare_image(), "sh", "-c", "echo at work; sleep 1; exit 3")
    held = {holder.host: holder for holder in sem.holders()}
    assert held["app"].labels["pod"] == "app"
    assert main.end() == 3  # an image that knows nothing of us
    ended = time.monotonic()
    assert sidecar.stop() == 0, sidecar.hold.log()
    eventually(lambda: len(sem.holders()) == 1, PROMPT, what="the slot is free")
    assert time.monotonic() - ended < PROMPT
    sem.release()
    assert_clean(cluster.members[0], name)


def test_eight_pods_with_sidecars(
    cluster: ContainerCluster, pods: Pods, image: str, name: str
) -> None:
    """Main containers are never more than two at a time, by the referee's count."""
    referee = Referee(pods, image)

    def live(number: int) -> tuple[int, int]:
        sidecar = Sidecar(pods, image, name, f"pod-{number}")
        work = ["-c", WORK, referee.host, "40"]
        env = {
            "JOB": f"pod-{number}",
            "ETCDSEM_SLOT": f"any-{number}",
            "ETCDSEM_FENCING_TOKEN": f"{number}",
        }
        main = sidecar.main(image, *work, entrypoint="python3", env=env)
        return main.end(), sidecar.stop()

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(live, range(1, 9)))
    assert codes == [(0, 0)] * 8
    verdict = referee.verdict()
    assert len(verdict["jobs"]) == 8
    assert verdict["most"] <= 2
    assert assert_clean(cluster.members[0], name).most_held <= 2


def test_a_lost_lease_ends_the_main_container(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """With `--on-lost warn` /readyz fails for good, and with it the liveness probe
    of the main container.
    """
    sidecar = Sidecar(pods, image, name, "app", "--on-lost", "warn")
    main = sidecar.main(images.bare_image(), "sh", "-c", "sleep 1000")
    sem = Semaphore(None, name, client=operator)
    (holder,) = sem.holders()
    cluster.members[0].etcdctl("lease", "revoke", holder.lease_id)
    eventually(lambda: sidecar.probe() == 503, 120, what="the liveness probe fails")
    main.container.stop(timeout=0)  # the kubelet's answer
    assert main.end() == 137
    assert sidecar.probe() == 503
    assert sidecar.stop() == 70
    assert_clean(cluster.members[0], name)


DEAF = 'trap "exit 0" TERM; echo at work; while :; do sleep 0.1; done'
"""A main container that ends with 0 when it is asked to end."""


def test_kill_pod_makes_a_lost_lease_a_failure(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """Main is killed when the lease is lost, before any probe fails: it cannot end with 0. And
    again when the sidecar alone was killed and is started beside it.
    """
    bare = images.bare_image()
    for number, harm in enumerate(("revoked", "killed")):
        pause = pods.run("", bare, "infinity", entrypoint="/pause")
        shared = {"pid_mode": f"container:{pause.container.id}"}
        sidecar = Sidecar(pods, image, name, f"app-{number}", "--on-lost", "kill-pod", **shared)
        main = sidecar.main(bare, "sh", "-c", DEAF, **shared)
        main.wait_for("at work")
        if harm == "revoked":
            (holder,) = Semaphore(None, name, client=operator).holders()
            cluster.members[0].etcdctl("lease", "revoke", holder.lease_id)
        else:
            sidecar.hold.container.kill()
            sidecar.hold.end()
            sidecar.hold.container.start()
        assert main.end() == 137
        assert pause.status == "running"
        code = sidecar.stop()
        assert code in ((70,) if harm == "revoked" else (0, 143))  # with its new lease, or none yet
    for holder in Semaphore(None, name, client=operator).holders():  # that of the killed sidecar
        cluster.members[0].etcdctl("lease", "revoke", holder.lease_id)
    assert_clean(cluster.members[0], name)


def test_kill_pod_says_what_it_cannot_kill(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """A main container of another user stays alive; the sidecar says why, once."""
    bare = images.bare_image()
    pause = pods.run("", bare, "infinity", entrypoint="/pause")
    shared = {"pid_mode": f"container:{pause.container.id}"}
    sidecar = Sidecar(pods, image, name, "app", "--on-lost", "kill-pod", **shared)
    main = sidecar.main(bare, "sh", "-c", DEAF, user="65533:65533", **shared)
    main.wait_for("at work")
    (holder,) = Semaphore(None, name, client=operator).holders()
    cluster.members[0].etcdctl("lease", "revoke", holder.lease_id)
    sidecar.hold.wait_for("waiting until stopped")
    sidecar.hold.wait_for("processes of other users")
    assert main.status == "running"
    assert sidecar.stop() == 70
    assert sidecar.hold.log().count("processes of other users") == 1


def test_process_1_of_a_sidecar_reaps_orphans(pods: Pods, image: str, name: str) -> None:
    """What `kubectl exec` leaves behind does not stay as zombies."""
    hold = pods.run("app", image, "hold", name, "-l", "1")
    hold.wait_for("is held")
    code, pid = hold.exec("sh", "-c", "sleep 0.2 & echo $!")
    assert code == 0

    def is_there(number: str) -> bool:
        return hold.exec("sh", "-c", f"test -e /proc/{number}")[0] == 0

    eventually(lambda: not is_there(pid.strip()), 120, what="the orphan has gone")
    assert is_there("1")


def test_the_ready_file_and_its_check(pods: Pods, image: str, operator: Client, name: str) -> None:
    """An exec probe, for who cannot reach the port; the file tells the main container its slot."""
    volume = pods.volume()
    file = "/tmp/ready"
    hold = pods.run(
        "app", image, "hold", name, "-l", "1", "--ready-file", file,
        volumes={volume: {"bind": "/tmp", "mode": "rw"}},
    )  # fmt: skip
    check = ("etcdsem", "hold", "--check", file)
    eventually(lambda: hold.exec(*check)[0] == 0, 120, what="the exec probe succeeds")
    main = pods.run(
        "main", images.bare_image(), "sh", "-c", f"cat {file}",
        volumes={volume: {"bind": "/tmp", "mode": "ro"}},
    )  # fmt: skip
    assert main.end() == 0
    assert json.loads(main.log())["slot"] == 0
    hold.container.stop(timeout=30)
    assert hold.end() == 0
    assert Semaphore(None, name, client=operator).get_value() == 0
