"""The annotations etcdsem.io/semaphore and etcdsem.io/limit on Jobs: `base/annotations`."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helpers.admission import Refused, admit, policies
from tests.helpers.manifests import CLIENT, KUBERNETES, rendered

SEMAPHORE, LIMIT = "etcdsem.io/semaphore", "etcdsem.io/limit"
GOOD = {SEMAPHORE: "my-api", LIMIT: "5"}
RUN = [
    *("/etcdsem/ld.so", "--library-path", "/etcdsem/lib", "/etcdsem/bin/python3", "-I", "-m"),
    *("etcdsem", "run", "my-api", "--limit=5", "--"),
]
COMMAND = ["sh", "-c", "echo done"]


def job(
    annotations: dict[str, str] | None = None, *, on_pod: dict[str, str] | None = None,
    namespace: str = "team-a", **container: Any,
) -> dict[str, Any]:  # fmt: skip
    """A Job as a team writes it."""
    main = {"name": "main", "image": "busybox", "command": COMMAND, **container}
    template: dict[str, Any] = {"spec": {"containers": [main]}}
    if on_pod is not None:
        template["metadata"] = {"annotations": on_pod}
    metadata: dict[str, Any] = {"name": "one", "namespace": namespace}
    if annotations is not None:
        metadata["annotations"] = annotations
    template["spec"]["restartPolicy"] = "Never"
    spec = {"template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def cron_job(on_job: dict[str, str], on_itself: dict[str, str] | None = None) -> dict[str, Any]:
    made = job(on_itself)
    each = {"metadata": {"annotations": on_job}, "spec": made["spec"]}
    made["spec"] = {"schedule": "0 0 * * *", "jobTemplate": each}
    return {**made, "kind": "CronJob"}


def pod(one: dict[str, Any]) -> Any:
    return one["spec"]["template"]["spec"]


def bare(one: Any) -> Any:
    """Without the empty members that the server writes."""
    if isinstance(one, dict):
        return {key: bare(value) for key, value in one.items() if value not in ({}, None)}
    return [bare(each) for each in one] if isinstance(one, list) else one


@pytest.mark.parametrize("given", [job(GOOD), job(on_pod=GOOD), job({}, on_pod=GOOD)])
def test_a_job_gets_the_copied_wrapper(given: dict[str, Any]) -> None:
    """What the example has: volumes, the init container, settings, labels, and the command."""
    made = admit(given, CLIENT)
    (example,) = [
        one["spec"]["template"]
        for one in rendered("examples")
        if one["metadata"]["name"] == "without-python"
    ]
    (main,), (copying,) = pod(made)["containers"], pod(made)["initContainers"]
    (expected,), (copying_expected,) = (
        example["spec"]["containers"],
        example["spec"]["initContainers"],
    )
    assert main["command"] == RUN + COMMAND
    assert main["env"] == expected["env"]
    assert main["envFrom"] == expected["envFrom"]
    assert {each["mountPath"] for each in main["volumeMounts"]} == {
        each["mountPath"] for each in expected["volumeMounts"]
    }
    for field in ("command", "image", "resources"):
        assert copying[field] == copying_expected[field]
    assert copying["securityContext"].items() >= copying_expected["securityContext"].items()
    assert len(pod(made)["volumes"]) == 2
    assert made["spec"]["template"]["metadata"]["labels"].items() >= CLIENT.items()
    kubernetes_validate.validate(bare(made), "1.36", strict=True)


def test_what_is_there_is_kept() -> None:
    """Other volumes, variables, mounts, init containers; a variable of the same name wins."""
    given = job(GOOD, env=[{"name": "POD_NAME", "value": "x"}], args=["y"])
    pod(given)["volumes"] = [{"name": "data", "secret": {"secretName": "s", "defaultMode": 420}}]
    pod(given)["initContainers"] = [{"name": "first", "image": "busybox"}]
    pod(given)["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    pod(given)["containers"][0]["envFrom"] = [{"secretRef": {"name": "other"}}]
    given["spec"]["template"]["metadata"] = {"labels": {"app": "a"}}
    made = admit(given, CLIENT)
    (main,) = pod(made)["containers"]
    assert pod(made)["volumes"][0] == pod(given)["volumes"][0]
    assert [one["name"] for one in pod(made)["initContainers"]] == ["first", "etcdsem-copy"]
    assert [one["name"] for one in main["env"]].count("POD_NAME") == 1
    assert main["env"][0]["value"] == "x"
    assert main["volumeMounts"][0]["mountPath"] == "/data"
    assert len(main["envFrom"]) == 2
    assert main["args"] == ["y"]
    assert made["spec"]["template"]["metadata"]["labels"] == {"app": "a", **CLIENT}


def test_the_container_that_works_is_named() -> None:
    given = job({**GOOD, "etcdsem.io/container": "main"})
    pod(given)["containers"].insert(0, {"name": "log", "image": "busybox", "command": ["log"]})
    log, main = pod(admit(given, CLIENT))["containers"]
    assert (log["command"], main["command"]) == (["log"], RUN + COMMAND)


def test_again_changes_nothing() -> None:
    """A second invocation; the same Job applied again, as it is written, by kubectl or a GitOps
    tool, which leaves what it does not know: no immutable field changes.
    """
    made = admit(job(GOOD), CLIENT)
    assert bare(admit(made, CLIENT)) == bare(made)
    applied = copy.deepcopy(made)
    pod(applied)["containers"][0]["command"] = COMMAND
    again = admit(applied, CLIENT, operation="UPDATE", old=made)
    assert bare(again) == bare(made)


@pytest.mark.parametrize("given", [job(), job({"other": "x"}), job({}, on_pod={})])
def test_other_jobs_are_left_alone(given: dict[str, Any]) -> None:
    assert bare(admit(given, CLIENT)) == bare(given)
    elsewhere = {**given, "metadata": {**given["metadata"], "namespace": "other"}}
    assert bare(admit(elsewhere, {})) == bare(elsewhere)


def test_a_job_from_before_the_policy_stays() -> None:
    """Otherwise its immutable template would forbid each update, and its deletion."""
    given = job(GOOD)
    assert bare(admit(given, CLIENT, operation="UPDATE", old=given)) == bare(given)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (job({SEMAPHORE: "my-api"}), "both needed"),
        (job({LIMIT: "5"}), "both needed"),
        (job({**GOOD, SEMAPHORE: "a/b"}), "etcdsem.io/semaphore: use"),
        (job({**GOOD, SEMAPHORE: "--help"}), "etcdsem.io/semaphore: use"),
        (job({**GOOD, LIMIT: "0"}), "whole number"),
        (job({**GOOD, LIMIT: "5; rm"}), "whole number"),
        (job({**GOOD, "etcdsem.io/limits": "5"}), "unknown annotation"),
        (job({**GOOD, "etcdsem.io/container": "x"}), "etcdsem.io/container: name"),
        (job(GOOD, command=[]), "has no command"),
        (cron_job({**GOOD, LIMIT: "x"}), "whole number"),
        (cron_job({}, GOOD), "belong to its jobTemplate"),
    ],
)
def test_what_cannot_be_done_is_refused(given: dict[str, Any], why: str) -> None:
    """With one sentence that says what to change."""
    with pytest.raises(Refused, match=why):
        admit(given, CLIENT)


def test_no_job_runs_without_its_lease() -> None:
    """A namespace without the label would not be changed; so it is refused there."""
    with pytest.raises(Refused, match="needs the label"):
        admit(job(GOOD, namespace="other"), {})


def test_a_cron_job_passes_its_annotations_on() -> None:
    """Its controller copies those of the jobTemplate to each Job."""
    given = cron_job(GOOD)
    assert bare(admit(given, CLIENT)) == bare(given)


def test_the_image_is_that_of_the_overlays() -> None:
    (images,) = yaml.safe_load_all(
        (KUBERNETES / "components" / "images" / "kustomization.yaml").read_text()
    )
    (tag,) = [one["newTag"] for one in images["images"] if one["name"] == "etcdsem"]
    assert policies()[0]["spec"]["variables"][0] == {
        "name": "image",
        "expression": f"'etcdsem:{tag}'",
    }
