"""The package as a whole: which way imports go, what an import costs, what is public."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import etcdsem
from etcdsem.server import EtcdServer

PACKAGE = Path(etcdsem.__file__).parent

PLAIN = {"errors", "model", "validation"}
LIBRARY = {*PLAIN, "client_lock", "clock", "core", "drivers", "exit_hooks", "facade"}

MAY: dict[str, set[str]] = {
    "errors": set(),
    "model": set(),
    "validation": {"errors", "model"},
    "core": PLAIN,
    "etcd": {*PLAIN, "client_lock", "clock", "core"},
    "clock": set(),
    "client_lock": {"clock", "exit_hooks"},
    "exit_hooks": {"clock"},
    "interpreter": set(),
    "posix": set(),
    "prefix_mirror": {*PLAIN, "core", "sync"},
    "intervals": {*PLAIN, "core"},
    "process_stats": {"core"},
    "metrics": {"model", "process_stats", "core"},
    "renewal_helper": {"clock", "errors", "interpreter", "core"},
    "renewal_helper_process": {"core", "posix", "renewal_helper", "sync"},
    "drivers": {*PLAIN, "client_lock", "clock", "core", "etcd", "process_stats", "renewal_helper"},
    "facade": {*PLAIN, "core", "drivers", "interpreter", "intervals"},
    "sync": LIBRARY,
    "aio": LIBRARY,
    "server": {"clock", "errors", "interpreter"},
    "testing": {*PLAIN, "clock", "core", "drivers", "sync", "aio"},
    "cli": {
        *PLAIN,
        "",
        "clock",
        "interpreter",
        "prefix_mirror",
        "intervals",
        "posix",
        "sync",
        "aio",
        "metrics",
        "server",
        "testing",
    },
    "__main__": {"cli"},
    "": {*PLAIN, "sync"},
}
"""The layers, by the first name below etcdsem ("": etcdsem itself), and which others each may
import. A layer may always import itself."""

OUTSIDE = {
    "grpc": set(),
    "hpack": {"etcd"},
    "google": {"etcd"},
    "grpc_tools": {"etcd"},
    "click": {"cli"},
    "rich": {"cli"},
    "pytest": {"testing"},
}
"""Packages that only these layers may import."""

EXCEPTIONS = {
    "cli.endpoint": {
        "client_lock",
        "core.commands",
        "core.error_mapping",
        "etcd.connection",
        "etcd.dialing",
        "etcd.rpc",
        "etcd.settings",
        "etcd.stream_thread",
    },
    "renewal_helper": {"etcd.settings"},
    "testing.base": {"etcd.settings"},
}
"""What breaks the rule today, below etcdsem: to be removed, none to be added."""

IMPURE = {"time", "random", "uuid", "secrets", "threading", "asyncio", "socket", "queue"}


def module_name(path: Path) -> str:
    """A source's name, as Python imports it."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str, source: str) -> Iterator[str]:
    """The modules that a source imports, also inside functions and for the type checker only.

    A name that etcdsem itself re-exports counts as the module that defines it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                is_package = SOURCES[module].name == "__init__.py"
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield below if below in SOURCES else defined_in(base, alias.name)


def defined_in(module: str, name: str) -> str:
    """Where a name that a module offers comes from: another module if etcdsem re-exports it."""
    return REEXPORTED.get(name, module) if module == "etcdsem" else module


REEXPORTED = {
    alias.asname or alias.name: node.module
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}


def layer_of(module: str) -> str:
    """``core`` of ``etcdsem.core.keys``."""
    return module.partition(".")[2].partition(".")[0]


def forbidden(module: str, source: str) -> set[str]:
    """The modules that a source imports and that its layer may not."""
    layer = layer_of(module)
    found = set()
    for imported in imports(module, source):
        top = imported.partition(".")[0]
        allowed = (
            layer_of(imported) in MAY[layer] | {layer}
            if top == "etcdsem"
            else (layer in OUTSIDE.get(top, {layer}))
        )
        if not allowed:
            found.add(imported)
    return found


def test_each_module_is_in_a_layer() -> None:
    """A new module at the top needs a line in MAY, and an old line goes with its module."""
    assert {layer_of(module) for module in SOURCES} == set(MAY)


def test_imports_go_one_way() -> None:
    """errors, model <- core <- drivers <- facade <- sync, aio <- testing <- cli; etcd <- drivers.

    An exception that is not needed any more fails too: remove it.
    """
    found = {module: forbidden(module, path.read_text()) for module, path in SOURCES.items()}
    known = {
        f"etcdsem.{module}": {f"etcdsem.{one}" for one in imported}
        for module, imported in EXCEPTIONS.items()
    }
    assert {module: wrong for module, wrong in found.items() if wrong} == known


@pytest.mark.parametrize(
    ("module", "line", "imported"),
    [
        ("core.keys", "import etcdsem.sync", "etcdsem.sync"),
        ("core.keys", "import etcdsem", "etcdsem"),
        ("core.keys", "from etcdsem import sync", "etcdsem.sync"),
        ("core.keys", "from etcdsem import aio as loops", "etcdsem.aio"),
        ("core.keys", "from etcdsem import Semaphore", "etcdsem.sync"),
        ("core.keys", "from etcdsem import __version__", "etcdsem"),
        ("core.decisions", "from .. import facade", "etcdsem.facade"),
        ("core.decisions", "from ..etcd import rpc", "etcdsem.etcd.rpc"),
        ("core.keys", "def late():\n    from etcdsem import server", "etcdsem.server"),
        ("core.keys", "if TYPE_CHECKING:\n    from etcdsem.cli import run", "etcdsem.cli.run"),
        ("core", "from ..facade import client", "etcdsem.facade.client"),
        ("model", "from .core import keys", "etcdsem.core.keys"),
        ("facade", "import hpack", "hpack"),
        ("sync", "from etcdsem.testing import memory", "etcdsem.testing"),
        ("server", "import click", "click"),
        ("cli.dev", "import grpc", "grpc"),
        ("cli.dev", "def late():\n    from google.protobuf import message", "google.protobuf"),
        ("cli.dev", "from etcdsem.core import transactions", "etcdsem.core.transactions"),
        ("cli.dev", "from etcdsem import facade", "etcdsem.facade"),
    ],
)
def test_a_wrong_import_is_seen(module: str, line: str, imported: str) -> None:
    """Each form of an import, put into a source that has no such import."""
    module = f"etcdsem.{module}"
    source = SOURCES[module].read_text()
    assert forbidden(module, f"{source}\n{line}\n") == forbidden(module, source) | {imported}
    assert imported not in forbidden(module, source)


MOST_LINES = 400
"""Of a module."""

MOST_LINES_OF_A_FUNCTION = 40


def too_long() -> Iterator[str]:
    """Modules, and functions as ``module:name``."""
    for module, path in SOURCES.items():
        source = path.read_text()
        if source.count("\n") > MOST_LINES:
            yield module
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    yield f"{module}:{node.name}"


def test_nothing_is_too_long_to_read() -> None:
    """Split what has grown too long."""
    assert not list(too_long())


PAIRS = (
    ("drivers.threads", "drivers.aio"),
    ("drivers.threads", "drivers.aio_clock"),
    ("testing.inmemory", "testing.aio"),
    ("etcd.aio_streams", "drivers.aio"),
)
"""Modules that offer the same to threads and to event loops, beside those of `sync` and `aio`."""


def test_a_class_name_means_one_thing() -> None:
    """Only blocking and asyncio counterparts have the same name."""
    modules: dict[str, list[str]] = {}
    for module, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name, []).append(module.partition(".")[2])
    for name, places in modules.items():
        pair = {place.replace("sync.", "aio.") for place in places}
        known = any({*places} == {*one} for one in PAIRS)
        assert len(pair) == 1 or known, (name, places)


ONE_STATE = {
    f"etcdsem.core.{name}"
    for name in (
        *("grants", "name_lease", "semaphore", "session"),
        *("slot_audit", "slots", "waiters", "watches"),
    )
}
"""The state of a client and its semaphores: its parts refer to the whole, for the type checker."""


def test_imports_have_no_cycle() -> None:
    """Imports within functions and for the type checker included, but for `ONE_STATE`."""

    def place(module: str) -> str:
        return "the state" if module in ONE_STATE else module

    graph: dict[str, set[str]] = {}
    for module, path in SOURCES.items():
        imported = {place(one) for one in imports(module, path.read_text()) if one in SOURCES}
        graph.setdefault(place(module), set()).update(imported - {place(module)})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_core_is_pure() -> None:
    """The core has no clock, thread, socket or random number of its own."""
    for module, path in SOURCES.items():
        if layer_of(module) == "core":
            used = {one.partition(".")[0] for one in imports(module, path.read_text())}
            assert not IMPURE & used, module


def loaded_by(code: str) -> set[str]:
    """The modules that are loaded after some code has run, in a new interpreter."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.smoke
def test_an_import_loads_nothing_heavy() -> None:
    """Importing etcdsem, and asking for help, loads neither hpack nor protobuf nor rich."""
    heavy = {"grpc", "hpack", "ssl", "google.protobuf", "rich", "multiprocessing", "asyncio"}
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


@pytest.mark.smoke
def test_a_first_connection_loads_little(etcd: EtcdServer, name: str) -> None:
    """Of other packages only protobuf and hpack; of Python's, no TLS and no asyncio."""
    work = f"""
import etcdsem
with etcdsem.connect({etcd.endpoint!r}) as client:
    with etcdsem.Semaphore(1, {name!r}, client=client) as sem:
        pass
"""
    loaded = loaded_by(work)
    foreign = {one.partition(".")[0] for one in loaded if one[0] != "_"}
    foreign -= set(sys.stdlib_module_names)
    startup = {one.partition(".")[0] for one in loaded_by("")}  # an editable install's, for one
    assert foreign - startup <= {"etcdsem", "google", "hpack", "durationpy"}
    assert "google" in foreign
    assert not {"ssl", "asyncio", "multiprocessing", "http"} & loaded


def test_public_names_exist_and_are_documented() -> None:
    """Each public name is there, with a docstring."""
    for name in etcdsem.__all__:
        thing = getattr(etcdsem, name)
        assert isinstance(thing, str) or thing.__doc__, name


@pytest.mark.parametrize(("old", "now"), [("Start", "Permit"), ("Later", "Denied")])
def test_deprecated_names(old: str, now: str) -> None:
    """They warn, and are the classes of today; they are not among the public names."""
    with pytest.warns(DeprecationWarning, match=f"etcdsem.{old} is now called etcdsem.{now}"):
        assert getattr(etcdsem, old) is getattr(etcdsem, now)
    assert old not in etcdsem.__all__
    with pytest.raises(AttributeError, match="module 'etcdsem' has no attribute 'Soon'"):
        etcdsem.Soon  # type: ignore[attr-defined]  # noqa: B018
