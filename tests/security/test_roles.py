"""The roles of docs/security.md, pasted from there, and what each of them allows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import etcdsem
from etcdsem import Client, Semaphore
from etcdsem.errors import PermissionDenied
from tests.helpers.logins import Waiter, user
from tests.helpers.tls import TlsEtcd
from tests.helpers.waiting import eventually
from tests.security.authority import Authority
from tests.security.secured import SecuredEtcd, secured

PAGE = Path(__file__).parents[2] / "docs" / "security.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")


def paste(etcd: SecuredEtcd, mark: str) -> None:
    """Run a block of the page as root, as it stands there."""
    found = re.search(rf"<!-- {mark} -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, f"docs/security.md has no block marked {mark}"
    path = f"{Path(etcd.etcdctl_binary).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **etcd.env(), "PATH": path, "ETCDCTL_USER": "root:root"}
    subprocess.run(
        ["bash", "-euc", found[1]], env=environment, check=True, timeout=60, capture_output=True
    )


@pytest.fixture(scope="module")
def etcd(each_binary: str) -> Iterator[SecuredEtcd]:
    """One member of each kind, with all roles of the page."""
    with secured(each_binary) as one:
        for mark in ("role-jobs", "role-smallest", "role-looking"):
            paste(one, mark)
        yield one


@pytest.fixture
def worker(etcd: SecuredEtcd) -> Iterator[Client]:
    """Jobs that use my-api and nothing else."""
    with user(etcd, "worker", password="its-password") as one:
        yield one


def cli(etcd: SecuredEtcd, who: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user."""
    environment = {
        **os.environ,
        **etcd.env(),
        "ETCDSEM_USER": who,
        "ETCDSEM_PASSWORD": "its-password",
    }
    return subprocess.run(
        [sys.executable, "-m", "etcdsem", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def everything(client: Client, max_leases: int | None) -> None:
    """Acquire, wait, hand over, look, try, give back."""
    sem = Semaphore(max_leases, "my-api", client=client)
    with sem.hold() as lease:
        assert sem.acquire(timeout=0) is False
        waiter = Waiter(sem)
        assert len(sem.status().waiters) == 1
        lease.release()
        handed = waiter.result()
        assert handed.valid
        assert handed.release()
    assert sem.acquire(timeout=5)
    assert sem.release()
    assert sem.get_value() == 0


def test_jobs_and_nothing_else(etcd: SecuredEtcd, worker: Client) -> None:
    """The role of jobs does all with its semaphore, and nothing with another."""
    everything(worker, 1)
    sem = Semaphore(1, "my-api", client=worker)
    sem.resize(2)
    sem.close()
    with pytest.raises(PermissionDenied, match=r"'worker'.*grant-permission"):
        Semaphore(1, "my-api-2", client=worker)
    with pytest.raises(PermissionDenied, match="worker"):
        worker.overview()
    done = cli(etcd, "worker", "run", "other", "-l", "1", "--", "true")
    assert done.returncode == 77
    assert "grant-permission" in done.stderr
    assert cli(etcd, "worker", "run", "my-api", "-l", "1", "--", "true").returncode == 0
    assert cli(etcd, "worker", "check", "my-api").returncode == 0
    Semaphore(None, "my-api", client=worker).close()


def test_the_smallest_role(etcd: SecuredEtcd, worker: Client) -> None:
    """It acquires, waits and hands over, but may not set the limit."""
    sem = Semaphore(1, "my-api", client=worker)
    with user(etcd, "guest", password="its-password") as guest:
        everything(guest, None)
        with pytest.raises(PermissionDenied, match="'guest'"):
            Semaphore(1, "my-api", client=guest)
        with pytest.raises(PermissionDenied, match="'guest'"):
            Semaphore(None, "my-api", client=guest).resize(7)
    assert cli(etcd, "guest", "run", "my-api", "--", "true").returncode == 0
    assert cli(etcd, "guest", "check", "my-api").returncode == 0
    looking = cli(etcd, "viewer", "check", "my-api")
    assert looking.returncode == 77
    assert "grant-permission" in looking.stderr
    sem.close()


def test_the_smallest_role_cannot_end_a_pause(etcd: SecuredEtcd, worker: Client) -> None:
    """It is told that it is full, with no error, until another client ends a pause that is over."""
    sem = Semaphore(2, "my-api", client=worker)
    with user(etcd, "guest", password="its-password") as guest:
        theirs = Semaphore(None, "my-api", client=guest)
        with pytest.raises(PermissionDenied, match="'guest'"):
            theirs.penalize(1)
        sem.penalize(0.1)
        waits = threading.Thread(target=theirs.acquire, args=(30,))
        waits.start()
        eventually(lambda: len(sem.waiters()) == 1)
        assert theirs.acquire(timeout=0) is False
        assert sem.acquire(timeout=20)
        sem.release()
        waits.join(20)
        assert theirs.release()
    sem.close()


def test_looking_only(etcd: SecuredEtcd, worker: Client) -> None:
    """Status and ls work, also the time left; acquire says PermissionDenied at once."""
    sem = Semaphore(1, "my-api", client=worker)
    with sem:
        status = cli(etcd, "viewer", "status", "my-api")
        assert status.returncode == 0, status.stderr
        assert "1 held" in status.stdout
        assert "my-api" in cli(etcd, "viewer", "ls").stdout
        with user(etcd, "viewer", password="its-password") as viewer:
            looking = Semaphore(None, "my-api", client=viewer)
            assert looking.holders()[0].ttl is not None
            for timeout in (0, None):  # full, and below free
                with pytest.raises(PermissionDenied, match="'viewer'"):
                    looking.acquire(timeout)
        refused = cli(etcd, "viewer", "evict", "my-api", "--slot", "0")
        assert refused.returncode == 77
        assert sem.leases[0].valid
    with user(etcd, "viewer", password="its-password") as viewer:
        looking = Semaphore(None, "my-api", client=viewer)
        for timeout in (0, None):
            with pytest.raises(PermissionDenied, match="'viewer'"):
                looking.acquire(timeout)
    assert sem.get_value() == 0
    sem.close()


def test_half_of_the_prefix(etcd: SecuredEtcd, worker: Client) -> None:
    """A role that has forgotten the waiters is refused when it must wait, and says whose key."""
    sem = Semaphore(1, "my-api", client=worker)
    etcd.root(
        "role add half",
        "role grant-permission half read /etcdsem/my-api/max_leases",
        "role grant-permission half --prefix=true readwrite /etcdsem/my-api/leases/",
        "user add halved:its-password",
        "user grant-role halved half",
    )
    with sem, user(etcd, "halved", password="its-password") as client:
        half = Semaphore(None, "my-api", client=client)
        for timeout in (0, 2, None):
            with pytest.raises(PermissionDenied, match=r"'halved'.*readwrite"):
                half.acquire(timeout)
    assert sem.status().waiters == ()
    sem.close()


def test_the_name_in_a_certificate(module_binary: str, tmp_path: Path, name: str) -> None:
    """With client certificates etcd knows the user by the common name: no password, no login."""
    authority = Authority(tmp_path)
    server, ours = authority.issue("server"), authority.issue("worker")
    options = ("--client-cert-auth", "--trusted-ca-file", authority.path)
    with TlsEtcd(server, *options, binary=module_binary) as etcd:
        etcd.launch()
        etcd.wait_healthy()
        root = authority.issue("root")
        path = f"{Path(etcd.etcdctl_binary).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": etcd.client_url}
        for variable, value in (("CACERT", authority.path), ("CERT", root.cert), ("KEY", root.key)):
            environment[f"ETCDCTL_{variable}"] = value
        for line in (
            "user add root:root",
            "user grant-role root root",
            "role add jobs",
            "role grant-permission jobs --prefix=true readwrite /etcdsem/",
            "user add worker:unused",
            "user grant-role worker jobs",
            "auth enable",
        ):
            command = ["etcdctl", *line.split()]
            subprocess.run(command, env=environment, check=True, timeout=30, capture_output=True)
        with etcdsem.connect(
            etcd.endpoint, cacert=authority.path, cert=ours.cert, key=ours.key
        ) as client:
            sem = Semaphore(1, name, client=client)
            with sem.hold() as lease:
                waiter = Waiter(sem)
                lease.release()
                waiter.result().release()
            assert client._driver.connection.counters["login"] == 0
            with pytest.raises(PermissionDenied):
                Semaphore(1, "x", client=client, prefix="/elsewhere")
