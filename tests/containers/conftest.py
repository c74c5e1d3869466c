"""A cluster of etcd in containers, shared by the tests of this folder, and pods on its network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import etcdsem
from tests.containers import images
from tests.containers.pods import Pods, make_pods
from tests.helpers.docker_etcd import ContainerCluster, engine_or_skip, start_containers


@pytest.fixture(scope="package")
def cluster() -> Iterator[ContainerCluster]:
    """Three members on a network of their own."""
    engine_or_skip()
    with start_containers() as started:
        yield started


@pytest.fixture
def pods(cluster: ContainerCluster) -> Iterator[Pods]:
    """Starts containers that stand for pods, and removes them."""
    with make_pods(cluster) as made:
        yield made


@pytest.fixture(scope="package")
def image() -> str:
    """The project's own image."""
    engine_or_skip()
    return images.project_image()


@pytest.fixture
def operator(cluster: ContainerCluster) -> Iterator[etcdsem.Client]:
    """A client on this machine."""
    with etcdsem.connect(cluster.endpoints) as client:
        yield client


@pytest.fixture(scope="package")
def local() -> dict[str, str]:
    """The images that stand for those of the manifests."""
    engine_or_skip()
    return images.of_manifests()
