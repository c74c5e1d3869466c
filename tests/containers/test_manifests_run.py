"""The manifests do what they say: their pods are run as they are written, see `kubelet.py`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from etcdsem import Semaphore, connect
from etcdsem.errors import EtcdSemError
from tests.containers.api_server import Members, serving
from tests.containers.kubelet import Kubelet, node
from tests.containers.reached import Reached
from tests.helpers.admission import admit
from tests.helpers.history import assert_clean
from tests.helpers.manifests import CLIENT, KUBERNETES, in_namespace, rendered
from tests.helpers.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_dev(local: dict[str, str], tmp_path: Path) -> None:
    """Every example job, at the same time, on the single member of the dev overlay."""
    objects = rendered("overlays/dev") + in_namespace(rendered("examples"), "etcdsem")
    with node(objects, local, tmp_path) as kubelet:
        (member,) = kubelet.stateful_set("etcd")
        etcd = Reached(f"{kubelet.address(member)}:2379")
        runs: list[tuple[str, dict[str, Any], str]] = [
            ("wrapper", {}, "key number"),
            ("sidecar", {}, "at work"),
            ("without-python", {}, "slot "),
            ("library", {}, "part 2 in slot"),
            ("nightly", {"kind": "CronJob"}, "the report"),
            *[("parallel", {"index": index}, f"part {index}") for index in range(4)],
        ]
        with ThreadPoolExecutor(len(runs)) as pool, connect(etcd.endpoint) as client:
            running = [pool.submit(kubelet.job, name, **options) for name, options, _ in runs]
            sem = Semaphore(None, "my-api", client=client, register=False)
            labels: dict[str, dict[str, str]] = {}

            def all_seen() -> bool:
                if sem.name in {one.name for one in client.overview()}:
                    for holder in sem.holders():
                        labels[holder.labels["job"]] = dict(holder.labels)
                return set(labels) >= {"wrapper", "sidecar", "without-python"}

            eventually(all_seen, 120, what="the holders of the long jobs were seen")
            for (name, _, said), future in zip(runs, running, strict=True):
                code, log = future.result()
                assert code == 0, (name, log)
                assert said in log, (name, log)
        for seen in labels.values():
            assert seen["namespace"] == "etcdsem"
            assert seen["node"] == "this-node"
            assert seen["pod"].startswith(seen["job"])
        assert assert_clean(etcd, "my-api").most_held <= 5
        assert_clean(etcd, "team-a.nightly-report")
        # What a retry cannot help ends the pod of the sidecar, instead of a restart for ever.
        with connect(etcd.endpoint) as client:
            client.close_semaphore("my-api")
            Semaphore(4, "my-api", client=client)
            code, log = kubelet.job("sidecar")
        assert code == 78, log


def test_two_annotations(local: dict[str, str], tmp_path: Path) -> None:
    """What the policies make of the page's Job runs with a lease, in an image without Python."""
    page = (KUBERNETES.parents[1] / "docs" / "kubernetes.md").read_text()
    (written,) = re.findall(r"```yaml\n(apiVersion: batch/v1\n.*?)```", page, re.DOTALL)
    (job,) = in_namespace((yaml.safe_load(written),), "etcdsem")
    objects = (*rendered("overlays/dev"), admit(job, CLIENT))
    with node(objects, local, tmp_path) as kubelet:
        (member,) = kubelet.stateful_set("etcd")
        code, log = kubelet.job("report")
        assert (code, bool(re.search(r"slot \d", log))) == (0, True), log
        etcd = Reached(f"{kubelet.address(member)}:2379")
        assert assert_clean(etcd, "my-api").most_held == 1


def test_production(local: dict[str, str], tmp_path: Path) -> None:
    """Three members with the certificates that certificates.sh makes; users and roles; a job of a
    team that comes with its certificate; the exporter, which may only read; a backup.
    """
    made = tmp_path / "certificates"
    subprocess.run([KUBERNETES / "certificates.sh", "etcdsem", made, "team-a"], check=True)
    secrets = {path.name: path for path in made.iterdir() if path.is_dir()}
    secrets["etcdsem-client-tls"] = made / "team-a"
    team = rendered("overlays/team") + in_namespace(rendered("examples"), "team-a")
    with node(rendered("overlays/production") + team, local, tmp_path, secrets) as kubelet:
        kubelet.stateful_set("etcd")
        _users_follow_their_file(kubelet)
        code, log = kubelet.job("wrapper")
        assert code == 0, log
        assert "key number" in log
        code, log = kubelet.job("nightly", kind="CronJob")
        assert code == 0, log
        exporter = kubelet.deployment("etcdsem-exporter")  # ready: it may read
        with urllib.request.urlopen(f"http://{kubelet.address(exporter)}:9379/metrics") as answer:
            served = answer.read().decode()
        assert "etcdsem_up 1.0" in served
        assert re.search(r'semaphore_max_leases\{.*"my-api".*\} 5', served), served
        code, log = kubelet.job("etcd-backup", kind="CronJob")
        assert code == 0, log
        (backup,) = (tmp_path / "claim-etcd-backup").glob("etcd-*.db")
        assert backup.stat().st_size > 10_000
        _only_what_is_theirs(kubelet, made)
        _a_certificate_that_ends_is_told(kubelet, made, tmp_path)


def _a_certificate_that_ends_is_told(kubelet: Kubelet, made: Path, folder: Path) -> None:
    """etcd-access fails if a member serves a certificate of a few days; the daily check of a team's
    namespace, if the client's is one.
    """
    code, log = kubelet.job("etcdsem-certificate", kind="CronJob")
    assert code == 0, log
    renewed = {**os.environ, "DAYS": "20"}
    subprocess.run(
        [KUBERNETES / "certificates.sh", "etcdsem", made, "team-a"], check=True, env=renewed
    )
    code, log = kubelet.job("etcdsem-certificate", kind="CronJob")
    assert (code, "renew it" in log) == (1, True), log
    for file in ("tls.crt", "tls.key"):
        mounted = folder / "etcd-1-server-tls" / file
        mounted.write_bytes((made / "etcd-server-tls" / file).read_bytes())  # re-read by etcd
    code, log = kubelet.job("etcd-access", kind="CronJob")
    assert code == 1
    assert re.search(r"certificate of etcd-1\S* ends in (19|20) days", log), log


def test_members_restart_one_at_a_time(local: dict[str, str], tmp_path: Path) -> None:
    """restart-members.sh, with the real kubectl: each member is restarted when all are healthy;
    none is restarted without need, or while another is away; nothing is lost.
    """
    made = tmp_path / "certificates"
    subprocess.run([KUBERNETES / "certificates.sh", "etcdsem", made], check=True)
    secrets = {path.name: path for path in made.iterdir() if path.is_dir()}
    with node(rendered("overlays/production"), local, tmp_path, secrets) as kubelet:
        members = Members(kubelet, "etcd")
        etcd = reached(kubelet, made / "etcd-root-tls", "etcd-0")
        etcd.etcdctl("put", "/before", "x")
        with serving(members) as address:
            env = {
                **os.environ,
                "KUBECONFIG": str(_kubeconfig(tmp_path, address)),
                "PATIENCE": "90s",
            }

            def restart(**more: str) -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    [KUBERNETES / "restart-members.sh"],
                    env={**env, **more}, capture_output=True, text=True, check=False,
                )  # fmt: skip

            done = restart()
            assert done.returncode == 0, done.stderr
            assert members.healthy_at_deletion == []  # all are as they should be
            settings = members.set["spec"]["template"]["spec"]["containers"][0]["env"]
            settings.append({"name": "ETCD_LOG_LEVEL", "value": "warn"})
            done = restart()
            assert done.returncode == 0, (done.stdout, done.stderr)
            assert members.healthy_at_deletion == [3, 3, 3]
            assert "all 3 members have revision" in done.stdout
            etcd = reached(kubelet, made / "etcd-root-tls", "etcd-0")
            assert "x" in etcd.etcdctl("get", "/before")
            settings[-1]["value"] = "error"
            kubelet.pod("etcd-1").container.kill()
            assert restart(PATIENCE="2s").returncode != 0
            assert len(members.healthy_at_deletion) == 3


def _kubeconfig(folder: Path, address: str) -> Path:
    path = folder / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": address}}
    context = {"name": "c", "context": {"cluster": "c", "user": ""}}
    config = {"clusters": [cluster], "contexts": [context], "current-context": "c"}
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
    return path


def reached(kubelet: Kubelet, files: Path, pod: str) -> Reached:
    """A member, with a certificate."""
    options = (
        f"--cacert={files}/ca.crt", f"--cert={files}/tls.crt", f"--key={files}/tls.key",
        "--insecure-skip-tls-verify",  # we come by the address, the certificate has names
    )  # fmt: skip
    return Reached(f"https://{kubelet.address(kubelet.pod(pod))}:2379", options)


def _users_follow_their_file(kubelet: Kubelet) -> None:
    """The job can run again and then changes nothing; a line that is gone is taken back."""
    users = kubelet.get("ConfigMap", "etcd-users")["data"]
    before = users["users.txt"]

    def changes() -> list[str]:
        code, log = kubelet.job("etcd-access", kind="CronJob")
        assert code == 0, log
        assert "authentication is enabled" in log
        return re.findall(r"^etcdctl (.*)$", log, re.M)

    users["users.txt"] = before + "team-a read /shared/\n"
    assert "auth enable" in changes()
    assert changes() == []
    users["users.txt"] = before
    assert changes() == ["role revoke-permission team-a /shared/ /shared0"]


def _only_what_is_theirs(kubelet: Kubelet, made: Path) -> None:
    """A team has the semaphores that its role names, operators have all, the viewer only looks."""

    def etcdctl(user: str, *arguments: str) -> str:
        return reached(kubelet, made / user, "etcd-0").etcdctl(*arguments)

    etcdctl("operator", "put", "/etcdsem/x/max_leases", "3")
    etcdctl("team-a", "put", "/etcdsem/team-a.x/max_leases", "3")
    etcdctl("team-a", "put", "/etcdsem/my-api/max_leases", "5")
    assert "3" in etcdctl("etcdsem-view-tls", "get", "/etcdsem/x/max_leases")
    for user, arguments in (
        ("team-a", ("put", "/etcdsem/x/max_leases", "4")),
        ("team-a", ("get", "/etcdsem/team-ab/max_leases")),
        ("team-a", ("user", "list")),
        ("operator", ("put", "/other", "x")),
        ("operator", ("user", "list")),
        ("etcdsem-view-tls", ("put", "/etcdsem/x/max_leases", "4")),
    ):
        with pytest.raises(EtcdSemError, match="permission denied"):
            etcdctl(user, *arguments)
