"""deploy/compose.yaml: what it says is understood, and the example runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.docker_etcd import docker_client, etcd_image

pytestmark = pytest.mark.timeout(300)

FILE = Path(__file__).parents[2] / "deploy" / "compose.yaml"


def compose(*arguments: str, **environment: str) -> str:
    """Run it, in whichever form this machine has."""
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    done = subprocess.run(
        [*program, "-f", str(FILE), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _there_is_compose() -> None:
    if shutil.which("docker-compose") is None and (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0
    ):
        pytest.skip("there is neither docker-compose nor docker compose")


def test_it_is_understood() -> None:
    """Three members and a job that is locked down."""
    shown = compose("config")
    for word in ("etcd-0", "etcd-1", "etcd-2", "read_only: true", "python:3.13-slim"):
        assert word in shown


@pytest.fixture
def project(image: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A project of the test's own, and the images for it."""
    name = f"etcdsem-{uuid.uuid4().hex[:8]}"
    settings = {"ETCD_IMAGE": etcd_image(), "ETCDSEM_IMAGE": image}
    yield name, settings
    compose("-p", name, "down", "-v", "-t", "1", **settings)


@pytest.mark.slow
def test_the_example_runs(project: tuple[str, dict[str, str]]) -> None:
    """Four jobs under a limit of three: all end well, and nobody holds afterwards."""
    name, settings = project
    compose("-p", name, "up", "-d", "--no-build", "--scale", "job=4", **settings)
    client = docker_client()
    try:
        labels = [f"com.docker.compose.project={name}", "com.docker.compose.service=job"]
        jobs = client.containers.list(all=True, filters={"label": labels})
        assert len(jobs) == 4
        for job in jobs:
            assert job.wait(timeout=120)["StatusCode"] == 0, job.logs()
            assert b"slot " in job.logs()
    finally:
        client.close()
    shown = compose("-p", name, "run", "--rm", "job", "status", "my-api", "--json", **settings)
    status = json.loads(shown.strip().splitlines()[-1])
    assert (status["limit"], status["held"], status["waiting"]) == (3, 0, 0)
