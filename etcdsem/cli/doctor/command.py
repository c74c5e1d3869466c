"""``etcdsem doctor``: find problems with etcd, the connection and the semaphores, and advise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.arguments import optional_name_argument
from etcdsem.cli.doctor.finding import print_findings
from etcdsem.cli.json_output import echo_json, json_option
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import echo

if TYPE_CHECKING:
    from etcdsem.cli.doctor.finding import Finding
    from etcdsem.cli.doctor.probes import Member, ProbeResults


@click.command(short_help="Check etcd, the connection to it, and the semaphores.")
@optional_name_argument
@json_option
@click.option(
    "--verbose", is_flag=True, help="List each known bug of etcd's version, as --json does."
)
@connection_options
@click.pass_context
def doctor(ctx: click.Context, /, name: str | None, as_json: bool, verbose: bool) -> int:
    """Check etcd, the connection to it, and all semaphores or only NAME.

    Checks each endpoint's version, alarms and space, the speed of reads and writes, the user's
    permissions, compaction, encryption and clocks. Says how to fix each problem.

    Changes nothing, except that it writes one key of its own, <prefix>/~doctor (with NAME:
    <prefix>/NAME/doctor), and removes it.

    \b
    Exit codes:
      0  nothing worse than a warning      69 no endpoint answers
      1  problems were found               77 login or permission denied

    \b
    Examples:
      etcdsem doctor
      etcdsem doctor gpu                   if your role covers only gpu
      etcdsem doctor --json | jq -r '.findings[] | select(.level == "problem").do'
    """
    from etcdsem.cli.doctor.checks import run_checks
    from etcdsem.cli.doctor.probes import probe
    from etcdsem.validation import check_name

    if name is not None:
        check_name(name)
    quiet_library()
    with connect(ctx) as client:
        results = probe(client, name)
    findings = run_checks(results, verbose=verbose or as_json)
    code = _code(results, findings)
    if as_json:
        echo_json(_data(results, findings, code))
    else:
        _show(findings)
    return code


def _code(results: ProbeResults, findings: list[Finding]) -> int:
    if any(member.denied for member in results.members) or results.denied:
        return exit_codes.NO_PERMISSION
    if not results.reached:
        return exit_codes.UNAVAILABLE
    return exit_codes.NOT_DONE if any(one.level == "problem" for one in findings) else exit_codes.OK


def _show(findings: list[Finding]) -> None:
    print_findings(findings)
    counts = [sum(one.level == level for one in findings) for level in ("problem", "warning")]
    echo("")
    echo(f"problems: {counts[0]}   warnings: {counts[1]}")


def _data(results: ProbeResults, findings: list[Finding], code: int) -> dict[str, Any]:
    return {
        "code": code,
        "findings": [one._asdict() for one in findings],
        "members": [_member_data(one) for one in results.members],
        "seconds": {"network": results.network, "read": results.read, "write": results.write},
        "revision": results.head or None,
        "compacted_revision": results.compacted,
    }


def _member_data(one: Member) -> dict[str, Any]:
    return {
        "endpoint": one.endpoint,
        "reached": not one.error,
        "version": one.version or None,
        "leader": one.leads,
        "learner": one.learner,
        "db_size": one.db_size,
        "db_size_in_use": one.db_in_use,
    }
