"""``etcdsem bench``: measure how fast etcd is for semaphores, and find what limits it."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.arguments import optional_name_argument
from etcdsem.cli.json_output import echo_json, json_option
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import WholeNumber, connect, connection_options
from etcdsem.cli.output import clean, echo, say, write_stderr
from etcdsem.cli.signals import Signals, Stopped
from etcdsem.cli.worker import Worker
from etcdsem.errors import EtcdSemError, InvalidSetting, SemaphoreClosed

if TYPE_CHECKING:
    from etcdsem import Client
    from etcdsem.cli.bench.bench_runner import BenchResults, BenchRunner, Latency, Throughput
    from etcdsem.cli.doctor.finding import Finding

_CLEANUP_TIMEOUT = 10.0
"""Seconds for cleaning up after a signal to stop."""

_LATENCIES: Final = (
    ("read", "read", "read"),
    ("write", "write", "write"),
    ("grant", "lease", "lease grant"),
    ("event", "event", "put until a watcher sees it"),
)
"""Latencies of BenchResults: attribute, key in JSON, name for people."""

_RATES: Final = (
    ("pairs", "two_transactions", "two transactions"),
    ("cycles", "cycles", "acquire and release with free slots"),
)
"""Rates of BenchResults by number of clients: attribute, key in JSON, name for people."""


@click.command(short_help="Measure etcd and find what limits its throughput.")
@optional_name_argument
@click.option(
    "--seconds",
    default=15.0,
    show_default=True,
    type=click.FloatRange(1, 600),
    help="Total duration.",
)
@click.option(
    "--clients",
    default=16,
    show_default=True,
    type=WholeNumber(1, 200),
    help="Number of threads in concurrent measurements.",
)
@json_option
@connection_options
@click.pass_context
def bench(
    ctx: click.Context, /, name: str | None, seconds: float, clients: int, as_json: bool
) -> int:
    """Measure etcd and find what limits its throughput.

    Measures reads, writes, leases and watch events one at a time, and transactions and semaphores
    with many clients at a time. Then reports what limits them, and how to improve it.

    This puts load on etcd: it writes as fast as etcd allows, for 15 seconds by default, and slows
    down other users of this etcd. All keys lie below <prefix>/bench-<random>/ (or <prefix>/NAME/,
    which must not be a semaphore yet) and are removed at the end, even after Ctrl-C.

    \b
    Exit codes:
      0  measured           69  etcd is unreachable
      64 NAME is in use     77  login or permission denied
      128+N stopped by signal N; its keys were removed

    \b
    Examples:
      etcdsem bench
      etcdsem bench --seconds 60 --clients 64
      etcdsem bench --json | jq .rates.hand_overs
    """
    from etcdsem.cli.bench.bench_report import bench_findings
    from etcdsem.validation import check_name

    if name is not None:
        check_name(name)
    try:
        results = _measure(ctx, name, seconds, clients)
    except Stopped as stopped:
        say("stopped; its keys were removed")
        return exit_codes.by_signal(stopped.number)
    findings = bench_findings(results)
    if as_json:
        echo_json(_data(results, findings))
    else:
        _show(results, findings)
    return exit_codes.OK


def _measure(ctx: click.Context, name: str | None, seconds: float, clients: int) -> BenchResults:
    from etcdsem.cli.bench.bench_runner import BenchRunner

    signals = Signals()
    signals.install()
    quiet_library()
    with connect(ctx) as client, connect(ctx) as rival:
        if name is not None:
            _must_be_new(client, name)
        name = name or f"bench-{secrets.token_hex(3)}"
        runner = BenchRunner(client, rival, name, seconds, clients)
        where = ",".join(map(str, client.settings.endpoints))
        say(
            f"putting load on etcd at {where} for about {seconds:g} s, with keys below "
            f"{client.prefix}/{name}/; stop it with Ctrl-C"
        )
        _watch(runner, signals)
    return runner.results


def _must_be_new(client: Client, name: str) -> None:
    try:
        client.status(name, ttl=False)
    except SemaphoreClosed:
        return
    raise InvalidSetting(f"{name} is a semaphore: give a name that is not in use, or no name")


def _watch(runner: BenchRunner, signals: Signals) -> None:
    """Measure in a thread, so that a signal interrupts only between two calls."""
    from etcdsem.cli.endpoint import CallFailed

    worker = Worker(runner.measure, signals, name="etcdsem-bench")
    shown = sys.stderr is not None and sys.stderr.isatty()
    try:
        while not worker.done:
            if shown:
                write_stderr(f"\r\x1b[K{runner.phase}")
            signals.stop(0.2)
    finally:
        runner.over.set()
        worker.join(_CLEANUP_TIMEOUT)
        if shown:
            write_stderr("\r\x1b[K")
    try:
        worker.result()
    except CallFailed as failure:
        raise failure.public(f"measure {runner.phase}") from failure
    except (EtcdSemError, AssertionError):
        raise
    except BaseException as failure:
        raise AssertionError("while measuring") from failure


# ---------------------------------------------------------------- for people


def _show(results: BenchResults, findings: list[Finding]) -> None:
    from etcdsem.cli.doctor.finding import print_findings
    from etcdsem.cli.output import table

    rows = [
        [
            f"round trip to {endpoint.member.endpoint}{_role(endpoint.member.leads)}",
            *_cells(endpoint.answer),
        ]
        if not endpoint.member.error
        else [f"{endpoint.member.endpoint} does not answer", "-", "-"]
        for endpoint in results.endpoints
    ]
    rows += [[title, *_cells(getattr(results, one))] for one, _, title in _LATENCIES]
    table(["one at a time", "median", "99 %"], rows, frozenset({"median", "99 %"}))
    echo("")
    heads = ["a second", "1 client", *([f"{results.clients} clients"] * (results.clients > 1))]
    rows = [[title, *map(_number, getattr(results, one))] for one, _, title in _RATES]
    if results.hand_overs is not None:
        over = _number(results.hand_overs)
        rows.append(["hand-overs at limit 1", *(["-", over] if len(heads) == 3 else [over])])
    table(heads, rows, frozenset(heads[1:]))
    echo("")
    print_findings(findings)


def _role(leads: bool) -> str:
    return " (leader)" if leads else ""


def _cells(latency: Latency | None) -> list[str]:
    if latency is None:
        return ["-", "-"]
    return [f"{latency.median * 1000:.2f} ms", f"{latency.high * 1000:.2f} ms"]


def _number(rate: Throughput) -> str:
    return f"{rate.each_second:,.0f}"


# ---------------------------------------------------------------- for scripts


def _latency_data(one: Latency | None) -> dict[str, Any] | None:
    return None if one is None else {"median": one.median, "p99": one.high, "n": one.samples}


def _data(results: BenchResults, findings: list[Finding]) -> dict[str, Any]:
    def rates(some: list[Throughput]) -> dict[str, float]:
        return {str(one.threads): round(one.each_second, 1) for one in some}

    disk = results.disk
    hand_overs = results.hand_overs
    return {
        "seconds": results.seconds,
        "clients": results.clients,
        "endpoints": [
            {
                "endpoint": clean(endpoint.member.endpoint),
                "reached": not endpoint.member.error,
                "leader": endpoint.member.leads,
                "answer": _latency_data(endpoint.answer),
            }
            for endpoint in results.endpoints
        ],
        "latency": {key: _latency_data(getattr(results, one)) for one, key, _ in _LATENCIES},
        "rates": {
            **{key: rates(getattr(results, one)) for one, key, _ in _RATES},
            "hand_overs": None if hand_overs is None else round(hand_overs.each_second, 1),
        },
        "client_cores": max((one.cores for one in results.pairs + results.cycles), default=None),
        "etcd": {
            "wal_fsync": disk.fsync,
            "wal_fsync_share": disk.busy,
            "backend_commit": disk.commit,
            "peer_round_trip": disk.peers,
            "cores": disk.cores,
        },
        "findings": [one._asdict() for one in findings],
    }
