"""The package as a whole: which way imports go, what an import costs, what is public."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import etcdsem

PACKAGE = Path(etcdsem.__file__).parent

# Who may import whom, by the first part below etcdsem (a layer may always import itself).
MAY = {
    "errors": set[str](),
    "model": {"errors"},
    "core": {"errors", "model"},
    "etcd": {"errors", "model", "core"},
    "endings": set[str](),
    "counting": {"core"},
    "metrics": {"counting", "core"},
    "shell": {"errors", "keeper", "model", "core", "etcd", "counting"},
    "several": {"errors", "model", "core", "shell"},
    "pacing": {"errors", "model", "core", "shell"},
    "keeper": {"errors", "core", "shell"},
    "keeper_process": {"core", "keeper", "sync"},
    "sync": {
        "decorators",
        "errors",
        "model",
        "core",
        "etcd",
        "counting",
        "shell",
        "several",
        "pacing",
        "endings",
    },
    "decorators": set[str](),
    "loop_check": {"errors"},
    "aio": {
        "decorators",
        "errors",
        "model",
        "core",
        "etcd",
        "counting",
        "loop_check",
        "shell",
        "several",
        "pacing",
        "endings",
    },
    "server": {"errors"},
    "testing": {"errors", "model", "core", "etcd", "sync", "aio", "server"},
}
IMPURE = {"time", "random", "uuid", "secrets", "threading", "asyncio", "socket", "queue"}
FOREIGN = {"grpc", "google", "grpc_tools"}


def imports(path: Path) -> Iterator[str]:
    """The modules that a source imports, but for those that only a type checker sees."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def sources(layer: str) -> list[Path]:
    """The sources of a layer."""
    single = PACKAGE / f"{layer}.py"
    return [single] if single.exists() else sorted((PACKAGE / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", MAY)
def test_imports_go_one_way(layer: str) -> None:
    """errors, model <- core <- sync, testing; and the etcd layer is for shells only."""
    found = sources(layer)
    assert found
    for path in found:
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "etcdsem" and len(parts) > 1:
                assert parts[1] in MAY[layer] | {layer}, f"{path.name} imports {module}"
            if layer != "etcd":
                assert parts[0] not in FOREIGN, f"{path.name} imports {module}"


def test_the_core_is_pure() -> None:
    """The core has no clock, thread, socket or random number of its own."""
    for path in sources("core"):
        assert not IMPURE & {module.split(".")[0] for module in imports(path)}, path


def loaded_by(code: str) -> set[str]:
    """The modules that are loaded after some code has run, in a new interpreter."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.smoke
def test_an_import_loads_nothing_heavy() -> None:
    """Importing etcdsem, and asking for help, loads neither gRPC nor protobuf nor rich."""
    heavy = {"grpc", "google.protobuf", "rich", "multiprocessing", "asyncio"}
    heavy |= {"prometheus_client", "etcdsem.metrics"}
    assert not (heavy | {"click"}) & loaded_by("import etcdsem")
    helped = """
import sys
from etcdsem.cli.main import main
sys.argv = ['etcdsem', '--help']
try:
    main()
except SystemExit:
    pass
"""
    assert not heavy & loaded_by(helped)


def test_public_names_exist_and_are_documented() -> None:
    """Each public name is there, with a docstring."""
    for name in etcdsem.__all__:
        thing = getattr(etcdsem, name)
        assert isinstance(thing, str) or thing.__doc__, name
