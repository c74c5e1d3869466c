"""docs/schemas describes each JSON output; real output, on a real etcd, is checked against it."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import jsonschema
import pytest
from referencing import Registry, Resource

from etcdsem.cli.main import cli
from tests.cli.crowded import NAMES
from tests.cli.driver import Cli, ran

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "schemas"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the docs are not beside the tests")

UNITS = re.compile(
    r"\b(seconds|bytes|slots?|blocks?|permits?|waiters?|keys|threads|cores|measurements|revision"
    r"|per second|share|process ID|place|priority|exit code)\b",
    re.IGNORECASE,
)
"""What the description of a number says it counts."""

SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all within it."""
    if isinstance(schema, dict):
        if {"type", "$ref", "anyOf", "oneOf"} & schema.keys():
            yield schema
        for key, value in schema.items():
            if key in ("properties", "$defs"):
                for one in value.values():
                    yield from parts(one)
            else:
                yield from parts(value)
    elif isinstance(schema, list):
        for one in schema:
            yield from parts(one)


def strict(schema: Any) -> Any:
    """The same schema without fields that it does not describe."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        closed["additionalProperties"] = False
    return closed


def validator(name: str, form: Callable[[Any], Any] = strict) -> jsonschema.protocols.Validator:
    """One that checks an output."""
    found: Registry[Any] = Registry().with_resources(
        (f"{one}.json", Resource.from_contents(form(schema))) for one, schema in SCHEMAS.items()
    )
    return jsonschema.Draft202012Validator(
        form(SCHEMAS[name]),
        registry=found,
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


def check(name: str, data: Any) -> Any:
    """The schema describes this, each field of it."""
    validator(name).validate(data)
    return data


def told(etcd: EtcdServer | None, *arguments: str, code: int = 0) -> Any:
    """The JSON of a command, after it was checked against the command's schema."""
    done = ran(etcd, *arguments, "--json")
    assert done.returncode == code, done.stderr
    return check(arguments[0], json.loads(done.stdout))


# ---------------------------------------------------------------- the schemas themselves


def commands() -> list[str]:
    """Those with --json."""
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return [
        name
        for name, command in found.items()
        if command is not None and any("--json" in one.opts for one in command.params)
    ]


def test_each_command_has_one_that_the_docs_name() -> None:
    assert {*commands(), "leases", "parts"} == {*SCHEMAS}
    page = (ROOT / "docs" / "cli.md").read_text()
    assert {*re.findall(r"\(schemas/(\w+)\.json\)", page)} == {*SCHEMAS}


@pytest.mark.parametrize("name", SCHEMAS)
def test_it_is_a_schema_and_describes_each_field(name: str) -> None:
    """With the unit of each number; all fields are always there, and further ones are allowed."""
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for one in parts(schema):
        if "properties" in one:
            assert one["required"] == list(one["properties"])
            assert "additionalProperties" not in one
            for field, value in one["properties"].items():
                assert value.get("description") or "$ref" in value, field
        kinds = {*([one["type"]] if isinstance(one.get("type"), str) else one.get("type", ()))}
        if kinds & {"number", "integer"}:
            assert UNITS.search(one["description"]), one["description"]
        if "$ref" in one:
            file, _, path = one["$ref"].partition("#/$defs/")
            assert path in SCHEMAS[file.removesuffix(".json")]["$defs"]


def documented(first: str) -> list[str]:
    """The fields of the object in the row of docs/cli.md that begins with this, in order."""
    page = (ROOT / "docs" / "cli.md").read_text()
    found = re.search(rf"^\| {re.escape(first)}.*? \| [^`]*`(.*?)`", page, re.MULTILINE)
    assert found, first
    text = re.sub(r'"[^"]*": "[^"]*"', lambda pair: pair[0].split(":")[0], found[1][1:-1])
    while (shorter := re.sub(r"\[[^][{}]*\]|\{[^][{}]*\}", "", text)) != text:
        text = shorter  # without what is within
    return re.findall(r'"(\w+)"', text)


@pytest.mark.parametrize(
    "name",
    [
        "ls",
        "top",
        "status",
        "hold",
        "doctor",
        "bench",
        "pause",
        "resume",
        "drain",
        "close",
        "export",
    ],
)
def test_the_page_lists_the_same_fields(name: str) -> None:
    given = f"[`{name}" if name != "resume" else "[`pause"
    assert documented(given) == list(SCHEMAS[name]["properties"])


@pytest.mark.parametrize(
    ("first", "part"),
    [
        ("S, a semaphore", "semaphore"),
        ("P, a pause", "pause"),
        ("H, a holder", "holder"),
        ("W, a waiter", "waiter"),
        ("F, a finding", "finding"),
        ("M, an endpoint", "member"),
        ("L, a latency", "latency"),
    ],
)
def test_the_page_lists_the_same_parts(first: str, part: str) -> None:
    assert documented(first) == list(SCHEMAS["parts"]["$defs"][part]["properties"])


def test_the_check_notices(crowded: EtcdServer) -> None:
    """A field that is missing, new, or of another type; users of the schema accept a new one."""
    data = told(crowded, "status", "gpu")
    for part in (data, data["holders"][0], data["waiters"][0]):
        for key, value in list(part.items()):
            for wrong in (object(), None):
                part.pop(key)
                if wrong is None:
                    part[f"{key}_too"] = part[key] = value
                assert not validator("status").is_valid(data), key
                part.pop(f"{key}_too", None)
                part[key] = value
            part[key] = [["something else"]]
            assert not validator("status").is_valid(data), key
            part[key] = value
    check("status", data)
    data["holders"][0]["new"] = 1
    assert not validator("status").is_valid(data)
    validator("status", lambda schema: schema).validate(data)


# ---------------------------------------------------------------- real output


def test_looking(crowded: EtcdServer) -> None:
    """Each kind and state of semaphores and rate limits."""
    assert len(told(crowded, "ls")["semaphores"]) > len(NAMES)
    done = ran(crowded, "top", "--json", "--count", "2", "--interval", "100ms")
    looks = [check("top", json.loads(line)) for line in done.stdout.splitlines()]
    assert len(looks) == 2
    found = {name: told(crowded, "status", name) for name in NAMES}
    assert found["gpu"]["next_free"] is None
    assert found["gpu"]["used"] == 3
    assert found["blocks"]["used"] == found["blocks"]["held"] * 4 == 4
    assert found["blocks"]["next_free"] == 0
    assert 3600 < found["mail"]["next_free"] <= 7210  # after the one that waits
    used = {one["name"]: one["used"] for one in looks[0]["semaphores"]}
    assert {name: used[name] for name in NAMES} == {name: found[name]["used"] for name in NAMES}
    assert told(crowded, "rate", "blocks")["free"] == 996
    told(crowded, "rate", "mail")
    ran(crowded, "pause", "mail")
    assert told(crowded, "rate", "mail")["next_free"] is None
    assert told(crowded, "status", "mail")["next_free"] is None
    assert told(crowded, "limit", "unreadable")["limit"] is None
    assert told(crowded, "limit", "gpu")["limit"] == 4
    assert told(crowded, "export", "gpu")["semaphores"] == {"gpu": 4}


def test_changing(crowded: EtcdServer) -> None:
    assert told(crowded, "limit", "unreadable", "7")["old"] is None
    told(crowded, "limit", "over", "+1")
    told(crowded, "rate", "fast", "10/1s")
    told(crowded, "rate", "fast", "20/1s")
    assert [told(crowded, "pause", "x" * 128)["changed"] for _ in range(2)] == [True, False]
    assert [told(crowded, "resume", "x" * 128)["changed"] for _ in range(2)] == [True, False]
    crowded.etcdctl("put", "/etcdsem/odd/max_leases", "2 paused")  # by hand: by nobody, no time
    assert told(crowded, "pause", "odd")["paused"]["since"] is None
    assert told(crowded, "drain", "paused", "-w", "0", code=75)["holders"]
    assert told(crowded, "drain", "unreadable")["holders"] == []
    assert told(crowded, "close", "gpu", code=1)["closed"] is False
    place = told(crowded, "status", "gpu")["waiters"][0]["lease"]
    assert told(crowded, "evict", "gpu", "--lease", place)["waiter"]["priority"] == 7
    assert told(crowded, "evict", "gpu", "--slot", "0")["holder"]["weight"] == 2
    crowded.etcdctl("put", "/etcdsem/odd/leases/00000", "by hand")
    assert told(crowded, "evict", "odd", "--slot", "0")["evicted"] == "junk"
    assert told(crowded, "close", "gpu", "--force")["closed"] is True


def test_a_held_lease(
    etcd: EtcdServer, name: str, start: Callable[..., Cli], tmp_path: Path
) -> None:
    """`hold`: printed, in the file and on the port; `run`: in the command's environment."""
    path = tmp_path / "ready"
    holder = start(
        etcd, "hold", name, "-l", "5", "--weight", "2", "--json", "--ready-file", str(path),
        "--ready-port", "127.0.0.1:0",
    )  # fmt: skip
    port = holder.expect(r"port (\d+)", err=True)[1]
    check("hold", json.loads(holder.expect(r"\{.*\}")[0]))
    check("hold", json.loads(path.read_text()))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
        check("hold", json.load(answer))
    shell = shutil.which("sh")
    assert shell is not None
    show = [shell, "-c", 'printf %s "$ETCDSEM_LEASES"']
    for names in ([name], [f"{name}=5", f"{name}-b=2"]):
        done = ran(etcd, "run", *names, "--", *show)
        assert len(check("leases", json.loads(done.stdout))) == len(names)


def test_doctor_and_bench(crowded: EtcdServer) -> None:
    """Also without an answer."""
    done = ran(crowded, "doctor", "--json")
    assert check("doctor", json.loads(done.stdout))["code"] == done.returncode
    done = ran(crowded, "doctor", "gpu", "--json")
    assert check("doctor", json.loads(done.stdout))["members"][0]["reached"] is True
    told(crowded, "bench", "--seconds", "1", "--clients", "2")
    away = {"ETCDSEM_ENDPOINTS": "127.0.0.1:1"}
    done = ran(None, "doctor", "--json", env=away)
    assert check("doctor", json.loads(done.stdout))["code"] == done.returncode == 69
