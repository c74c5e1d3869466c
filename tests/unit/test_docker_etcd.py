"""The cluster in containers does what the chaos tests ask of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import etcdsem
from etcdsem import Semaphore
from tests.helpers.docker_etcd import (
    ContainerCluster,
    docker_client,
    engine_or_skip,
    etcd_image,
    start_containers,
)
from tests.helpers.history import assert_clean
from tests.helpers.waiting import eventually


@pytest.fixture(scope="module")
def containers() -> Iterator[ContainerCluster]:
    engine_or_skip()
    with start_containers() as cluster:
        yield cluster


def test_a_semaphore_outlives_each_fault(containers: ContainerCluster, name: str) -> None:
    """A member killed and started again, the leader paused, a member cut off from its peers:
    acquire and release go on, and the history is clean.
    """
    victim = containers.members[0]
    with etcdsem.connect(containers.endpoints) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=15)

        def cycle() -> None:
            assert sem.acquire(timeout=60)
            sem.release()

        cycle()
        victim.kill()
        cycle()
        victim.restart()
        leader = containers.leader()
        leader.pause()
        cycle()
        leader.resume()
        victim.disconnect()
        eventually(lambda: not victim.healthy(), 30)
        cycle()
        victim.connect()
        containers.wait_healthy()
        cycle()
    assert assert_clean(victim, name).grants >= 5


def test_both_etcdctls_speak_to_it(containers: ContainerCluster) -> None:
    """This machine's and the container's own."""
    member = containers.members[1]
    member.etcdctl("put", "who", "outside")
    assert "outside" in member.etcdctl_inside("get", "who")


def test_the_image_is_built_once() -> None:
    """Its tag is a hash of its content."""
    engine_or_skip()
    tag = etcd_image()
    client = docker_client()
    try:
        before = client.images.get(tag).id
        assert etcd_image() == tag
        assert client.images.get(tag).id == before
    finally:
        client.close()


def test_nothing_stays_after_a_failure() -> None:
    """Containers and networks go, also when the body raises."""
    engine_or_skip()
    client = docker_client()
    ids: list[str] = []
    networks: list[str] = []
    try:
        with pytest.raises(ZeroDivisionError), start_containers(1) as cluster:
            ids = [member.container_id for member in cluster.members]
            networks = [str(cluster.network.name), str(cluster.members[0]._peers.name)]
            assert {one.id for one in client.containers.list()} >= set(ids)
            raise ZeroDivisionError
        assert not {one.id for one in client.containers.list(all=True)} & set(ids)
        assert not {one.name for one in client.networks.list()} & set(networks)
    finally:
        client.close()
