"""The project's image: as process 1, without root, on a read-only root; and carried elsewhere."""

from __future__ import annotations

import json

import pytest

from etcdsem import Client, Semaphore
from tests.containers import images
from tests.containers.images import ROOT
from tests.containers.pods import Pods, known
from tests.helpers.docker_etcd import ContainerCluster, etcd_image
from tests.helpers.history import assert_clean
from tests.helpers.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OBEYS = "import signal, sys, time\n" + (
    "def stop(*_): print('stopped', flush=True); sys.exit(7)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "print('at work', flush=True)\n"
    "while True: time.sleep(1)\n"
)
"""A command that ends with 7 at SIGTERM."""

ORPHANS = "import os, time\n" + (
    "for _ in range(5):\n"
    "    if os.fork() == 0:\n"
    "        os._exit(0) if os.fork() else (time.sleep(0.2), os._exit(0))\n"
    "    os.wait()\n"
    "print('forked', flush=True)\n"
    "time.sleep(1000)\n"
)
"""A command whose grandchildren end after their parents: process 1 inherits them."""

STATES = (
    "import os\n"
    "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
    "    try: print(pid, open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0])\n"
    "    except OSError: pass\n"
)


def test_docker_stop_ends_a_job_properly(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """The command gets SIGTERM, the lease is given back at once, the exit code is the command's;
    the next in line has the slot.
    """
    job = ["run", name, "-l", "1", "-t", "60s", "--", "python3", "-c", OBEYS]
    first = pods.run("first", image, *job)
    first.wait_for("at work")
    second = pods.run("second", image, *job)
    sem = Semaphore(None, name, client=operator)
    eventually(lambda: len(sem.waiters()) == 1, 120, what="the second waits")
    first.container.stop(timeout=30)
    assert first.end() == 7
    assert "stopped" in first.log()
    second.wait_for("at work")  # long before the lease's 60 s
    holder = sem.holders()[0]
    assert holder.labels == {"pod": "second", "namespace": "test", "node": "here"}
    assert holder.host == "second"
    second.container.stop(timeout=30)
    assert second.end() == 7
    assert sem.get_value() == 0
    assert_clean(cluster.members[0], name)


def test_docker_stop_of_one_that_waits(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """It leaves the line at once, with 128 and the signal's number."""
    sem = Semaphore(1, name, client=operator)
    with sem:
        waiting = pods.run("waiting", image, "run", name, "--", "sleep", "0")
        eventually(sem.waiters, 120, what="it waits")
        waiting.container.stop(timeout=30)
        assert waiting.end() == 128 + 15
        assert sem.waiters() == ()
    assert_clean(cluster.members[0], name)


def test_docker_stop_of_a_program_that_uses_the_library(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """The example of the library pattern gives its lease back at SIGTERM, also as process 1; and
    leaves the line when it is stopped there.
    """
    program = (ROOT / "deploy" / "kubernetes" / "examples" / "program.py").read_text()
    program = program.replace("my-api", name).replace("Semaphore(5", "Semaphore(1")
    program = program.replace("time.sleep(1)", "time.sleep(1000)")
    first = pods.run("first", image, "-c", program, entrypoint="python3")
    first.wait_for("part 0")
    second = pods.run("second", image, "-c", program, entrypoint="python3")
    sem = Semaphore(None, name, client=operator)
    eventually(sem.waiters, 120, what="the second waits")
    for one in (second, first):
        one.container.stop(timeout=30)
        assert one.end() == 128 + 15, one.log()
    assert (sem.holders(), sem.waiters()) == ((), ())
    assert_clean(cluster.members[0], name)


def test_process_1_reaps_orphans(pods: Pods, image: str, operator: Client, name: str) -> None:
    """What a command leaves behind does not stay as zombies."""
    job = pods.run("job", image, "run", name, "-l", "1", "--", "python3", "-c", ORPHANS)
    job.wait_for("forked")

    def states() -> list[str]:
        code, listed = job.exec("python3", "-c", STATES)
        assert code == 0
        return [line.split()[1] for line in listed.splitlines()]

    # the wrapper, its watchdog, the command, and the one that looks
    eventually(lambda: len(states()) == 4, 120, what="the orphans have gone")
    assert "Z" not in states()
    job.container.stop(timeout=30)
    assert job.end() == 128 + 15


def test_the_image_asks_for_little(image: str) -> None:
    """A numeric user that is not root, no volume, no port, and the command as entry point."""
    from tests.helpers.docker_etcd import docker_client

    client = docker_client()
    try:
        config = client.images.get(image).attrs["Config"]
        extra = (
            client.images.get(image).attrs["Size"]
            - (client.images.get(images.base_image()).attrs["Size"])
        )
    finally:
        client.close()
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["etcdsem"]
    assert not config.get("Volumes")
    assert extra < 60e6, f"{extra / 1e6:.0f} MB on top of the base image"


def test_in_images_without_python(
    cluster: ContainerCluster, pods: Pods, image: str, operator: Client, name: str
) -> None:
    """An init container copies the program into a volume. From there it runs in an image that has
    a shell and no Python, and in one that has nothing but etcd's programs, not even a C library.
    """
    volume = pods.volume()
    init = pods.run(
        "init", image, "/tmp/etcdsem", entrypoint="etcdsem-copy",
        volumes={volume: {"bind": "/tmp", "mode": "rw"}}, network="none",
    )  # fmt: skip
    assert init.end(120) == 0, init.log()
    volumes = {volume: {"bind": "/opt", "mode": "ro"}}
    run = ["run", name, "-l", "2", "--label", "app=old", "--"]
    with_shell = pods.run(
        "with-shell", images.bare_image(), *run, "sh", "-c",
        "! command -v python3; echo slot $ETCDSEM_SLOT ${LD_LIBRARY_PATH-clean}",
        entrypoint="/opt/etcdsem/etcdsem", volumes=volumes,
    )  # fmt: skip
    loader = ["--library-path", "/opt/etcdsem/lib", "/opt/etcdsem/bin/python3", "-I", "-m"]
    endpoint = f"--endpoints={cluster.inner_endpoints[0]}"
    key = f"/etcdsem/{name}/leases/"
    with_nothing = pods.run(
        "with-nothing", etcd_image(), *loader, "etcdsem", *run,
        "etcdctl", endpoint, "get", "--prefix", "--print-value-only", key,
        entrypoint="/opt/etcdsem/ld.so", volumes=volumes,
    )  # fmt: skip
    assert with_shell.end() == 0, with_shell.log()
    assert "slot" in with_shell.log()
    assert "clean" in with_shell.log()
    assert with_nothing.end() == 0, with_nothing.log()
    records = [json.loads(line) for line in with_nothing.log(err=False).splitlines()]
    mine = [record for record in records if record["host"] == "with-nothing"]
    assert mine[0]["labels"]["app"] == "old"
    assert mine[0]["labels"]["pod"] == "with-nothing"
    assert known(Semaphore(None, name, client=operator))
    assert_clean(cluster.members[0], name)
