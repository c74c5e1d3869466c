"""The Kubernetes manifests, rendered."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"


Object = Mapping[str, Any]


NOT_NAMESPACED = ("Namespace", "PriorityClass")


def in_namespace(objects: tuple[Object, ...], namespace: str) -> tuple[Object, ...]:
    """The objects as `kubectl --namespace` would create them."""
    return tuple(
        one
        if one["kind"] in NOT_NAMESPACED
        else {**one, "metadata": {**one["metadata"], "namespace": namespace}}
        for one in objects
    )


@cache
def rendered(folder: str, root: Path = KUBERNETES) -> tuple[Object, ...]:
    """What `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl to render the overlays with")
    done = subprocess.run(
        ["kubectl", "kustomize", str(root / folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return tuple(yaml.safe_load_all(done.stdout))
