"""The restore of a real snapshot, by the manifests in `deploy/kubernetes/restore`."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from etcdsem.errors import EtcdSemError
from tests.containers import images
from tests.containers.kubelet import Kubelet, node
from tests.containers.test_manifests_run import reached
from tests.helpers.manifests import KUBERNETES, rendered

FOLDER = os.environ.get("ETCDSEM_ETCD_NEWEST", "").strip()
"""Read on import: the tests clear the environment of our variables."""

pytestmark = [
    pytest.mark.versions,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not FOLDER, reason="needs etcdutl 3.5.10 or later (set ETCDSEM_ETCD_NEWEST)"
    ),
]


def test_restore(image: str, tmp_path: Path) -> None:
    """What was written after the backup is gone, users and limits are back, the old data is kept,
    and the revision is above all that were ever seen.
    """
    made = tmp_path / "certificates"
    subprocess.run([KUBERNETES / "certificates.sh", "etcdsem", made, "team-a"], check=True)
    secrets = {path.name: path for path in made.iterdir() if path.is_dir()}
    local = {"etcdsem": image, "quay.io/coreos/etcd": images.etcd_tools_image(Path(FOLDER))}
    objects = rendered("overlays/production") + rendered("restore")
    with node(objects, local, tmp_path, secrets) as kubelet:
        kubelet.stateful_set("etcd")
        _succeeds(kubelet, "etcd-access", "CronJob")
        _etcdctl(kubelet, made / "operator", "put", "/etcdsem/x/max_leases", "7")
        _succeeds(kubelet, "etcd-backup", "CronJob")
        _etcdctl(kubelet, made / "operator", "put", "/etcdsem/x/max_leases", "9")
        before = _revision(kubelet, made)
        kubelet.scale_to_zero()
        for number in range(3):
            log = _succeeds(kubelet, f"etcd-restore-{number}", "Job")
            assert f"restored etcd-{number} from etcd-" in log
        kubelet.stateful_set("etcd")
        answer = _etcdctl(kubelet, made / "operator", "get", "/etcdsem/x/max_leases")
        assert answer.split()[-1] == "7"
        assert _revision(kubelet, made) > max(before, 10**9)
        with pytest.raises(EtcdSemError, match="permission denied"):
            _etcdctl(kubelet, made / "team-a", "get", "/etcdsem/x/max_leases")
        for number in range(3):
            assert list((tmp_path / f"claim-data-etcd-{number}").glob("data-before-*"))


def _succeeds(kubelet: Kubelet, name: str, kind: str) -> str:
    code, log = kubelet.job(name, kind=kind)
    assert code == 0, log
    return log


def _etcdctl(kubelet: Kubelet, files: Path, *arguments: str) -> str:
    return reached(kubelet, files, "etcd-0").etcdctl(*arguments)


def _revision(kubelet: Kubelet, made: Path) -> int:
    answer = _etcdctl(kubelet, made / "operator", "get", "/etcdsem/x", "--write-out=json")
    found = re.search(r'"revision":(\d+)', answer)
    assert found is not None
    return int(found[1])
