"""Kubernetes' admission policies, evaluated offline.

By `cel-expr-python`, an implementation of CEL, with what Kubernetes adds to the language as far as
our policies use it; or, if ETCDSEM_ADMISSION names the program of `tests/operators/admission.go`,
by the plugins of kube-apiserver itself.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from google.protobuf import struct_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict

from tests.helpers.manifests import KUBERNETES, Object

FILES = [KUBERNETES / "base" / "annotations" / f"{name}.yaml" for name in ("mutate", "validate")]


@functools.cache
def policies() -> tuple[Any, ...]:
    """The mutating policy, its binding, the validating policy, and its binding."""
    return tuple(one for file in FILES for one in yaml.safe_load_all(file.read_text()))


class Refused(Exception):
    """The server would refuse the object, with this message."""


def admit(
    one: Object, labels: Mapping[str, str], *, operation: str = "CREATE", old: Object | None = None
) -> Any:
    """What becomes of an object in a namespace with these labels; raises Refused."""
    if "ETCDSEM_ADMISSION" in os.environ:
        return _by_the_server(one, labels, operation, old)
    made: dict[str, Any] = copy.deepcopy(dict(one))
    job = made["spec"]["jobTemplate"] if made["kind"] == "CronJob" else made
    for each in (job, job["spec"]["template"]):
        each.setdefault("metadata", {})  # the server has one always
    request = {"operation": operation, "kind": {"kind": made["kind"]}}
    given = {"object": made, "oldObject": old or {}, "request": request}
    mutate, binding, validate, _ = policies()
    selector = binding["spec"]["matchResources"]["namespaceSelector"]["matchLabels"]
    if selector.items() <= labels.items() and _applies(mutate, given):
        variables = _variables(mutate, given)
        (mutation,) = mutate["spec"]["mutations"]
        patches = _evaluate(mutation["jsonPatch"]["expression"], {**given, "variables": variables})
        for patch in patches:
            _apply(given["object"], patch)
    if _applies(validate, given):
        variables = _variables(validate, given)
        for validation in validate["spec"]["validations"]:
            if not _evaluate(validation["expression"], {**given, "variables": variables}):
                raise Refused(validation["message"])
    return given["object"]


def _applies(policy: Any, given: Mapping[str, Any]) -> bool:
    spec = policy["spec"]
    request = given["request"]
    return any(
        f"{request['kind']['kind'].lower()}s" in rule["resources"]
        and request["operation"] in rule["operations"]
        for rule in spec["matchConstraints"]["resourceRules"]
    ) and all(_evaluate(one["expression"], given) for one in spec["matchConditions"])


def _variables(policy: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """One that cannot be evaluated is missing: an error only if it is used, as in the server."""
    found: dict[str, Any] = {}
    for one in policy["spec"]["variables"]:
        try:
            found[one["name"]] = _evaluate(one["expression"], {**given, "variables": found})
        except ValueError:
            continue
    return found


def _evaluate(expression: str, given: Mapping[str, Any]) -> Any:
    cel = pytest.importorskip("cel_expr_python.cel", reason="there is no CEL (cel-expr-python)")
    names = ("object", "oldObject", "request", "variables")
    environment = cel.NewEnv(_pool(), variables=dict.fromkeys(names, cel.Type.DYN))
    value = environment.compile(expression).eval(data={"variables": {}, **given})
    if value.type() == cel.Type.ERROR:
        raise ValueError(value.plain_value())
    return value.plain_value()


@functools.cache
def _pool() -> DescriptorPool:
    """Kubernetes' type JSONPatch."""
    pool = DescriptorPool()
    struct = FileDescriptorProto()
    struct_pb2.DESCRIPTOR.CopyToProto(struct)
    pool.Add(struct)
    file = FileDescriptorProto(name="patch", syntax="proto3", dependency=[struct.name])
    message = file.message_type.add(name="JSONPatch")
    for number, name in enumerate(("op", "path"), start=1):
        message.field.add(name=name, number=number, type="TYPE_STRING", label="LABEL_OPTIONAL")
    message.field.add(
        name="value", number=3, type="TYPE_MESSAGE", label="LABEL_OPTIONAL",
        type_name=".google.protobuf.Value",
    )  # fmt: skip
    pool.Add(file)
    return pool


def _apply(one: Any, patch: Any) -> None:
    """What `add` of RFC 6902 does to members of objects."""
    assert patch.op == "add"
    *folders, last = patch.path.split("/")[1:]
    for name in folders:
        one = one[int(name) if isinstance(one, list) else name]
    assert isinstance(one, dict)
    one[last] = _whole(MessageToDict(patch)["value"])


def _whole(value: Any) -> Any:
    """With whole numbers as such: protobuf has only floats."""
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _by_the_server(
    one: Object, labels: Mapping[str, str], operation: str, old: Object | None
) -> Any:
    namespace = {"apiVersion": "v1", "kind": "Namespace"}
    metadata = {"name": one["metadata"]["namespace"], "labels": labels}
    asked = {
        "operation": operation,
        "namespace": {**namespace, "metadata": metadata},
        "object": one,
    }
    done = subprocess.run(
        [os.environ["ETCDSEM_ADMISSION"], *map(str, FILES)],
        input=json.dumps(asked if old is None else {**asked, "old": old}),
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise Refused(answer["error"])
    return answer["object"]
