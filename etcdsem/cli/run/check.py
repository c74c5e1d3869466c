"""``etcdsem check``: would a lease be granted, apart from waiting? For init containers.

A sidecar that fails is restarted forever, so what no retry can help must fail before it starts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.arguments import optional_name_argument
from etcdsem.cli.endpoint import CallFailed, EndpointConnection
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import WholeNumber, connect, connection_options
from etcdsem.cli.output import clean, echo, say
from etcdsem.cli.run.certificate import end_of
from etcdsem.cli.run.pod import LOSS_ACTIONS, require_shared_processes
from etcdsem.errors import InvalidSetting, SemaphoreClosed

if TYPE_CHECKING:
    from etcdsem import Client

_WRITTEN: Final = ("leases", "waiters", "grants")
"""The folders of a semaphore that a client writes to."""


@click.command(short_help="Check that a lease could be acquired.")
@click.option(
    "-l",
    "--limit",
    metavar="N",
    type=WholeNumber(),
    help="The limit, as for `run` and `hold`: registers NAME if it is new.",
)
@click.option(
    "--on-lost",
    type=click.Choice(LOSS_ACTIONS),
    default="terminate",
    help="As for `hold`: with kill-pod, also check that the pod shares its process namespace.",
)
@click.option(
    "--certificate-days",
    metavar="N",
    type=WholeNumber(min=1),
    help="Fail if the client certificate ends within N days; needs no NAME.",
)
@connection_options
@optional_name_argument
@click.pass_context
def check(
    ctx: click.Context, /, name: str | None, limit: int | None, on_lost: str,
    certificate_days: int | None,
) -> int:  # fmt: skip
    """Check that a lease of the semaphore NAME could be acquired, without acquiring one.

    Contacts etcd, registers or checks the limit, and checks the permission to write. Does not
    wait: it succeeds even if all slots are held, or NAME is paused.

    Use it as an init container before a sidecar with `etcdsem hold`: Kubernetes restarts a failing
    sidecar forever, but a failing init container fails the pod.

    \b
    Examples:
      etcdsem check gpu --limit 3
      etcdsem check --certificate-days 30

    \b
    Exit codes:
      0  a lease could be acquired        69 etcd is unreachable
      1  the client certificate ends      77 login or permission denied
      64 usage error                      78 not registered, or with another limit
    """
    if name is None and certificate_days is None:
        raise click.UsageError("Missing argument 'NAME'.")
    if on_lost == "kill-pod":
        require_shared_processes()
    quiet_library()
    with connect(ctx) as client:
        if certificate_days is not None and not _lasts(client.settings.cert, certificate_days):
            return exit_codes.NOT_DONE
        if name is not None:
            _check_semaphore(client, name, limit)
    return exit_codes.OK


def _lasts(certificate: str | None, days: int) -> bool:
    """Say when the client certificate ends; return False if that is within so many days."""
    if certificate is None:
        raise InvalidSetting("there is no client certificate: set --cert (ETCDSEM_CERT)")
    end = end_of(certificate)
    day = time.strftime("%Y-%m-%d", time.gmtime(end))
    told = f"the client certificate {clean(certificate)} ends on {day}"
    if end - time.time() < days * 86400:
        say(f"{told}: renew it")
        return False
    echo(told)
    return True


def _check_semaphore(client: Client, name: str, limit: int | None) -> None:
    from etcdsem import Semaphore

    try:
        semaphore = Semaphore(limit, name, client=client)
    except SemaphoreClosed:
        raise SemaphoreClosed(
            f"{name} is not registered yet: give --limit N to register it"
        ) from None
    _check_permission(client, name)
    echo(f"{clean(name)}: leases can be acquired, limit {semaphore.max_leases}")


def _check_permission(client: Client, name: str) -> None:
    """Raise PermissionDenied if the user may not write the keys of leases.

    etcd checks the permission even for the deletion of a key that does not exist.
    """
    for endpoint in client.settings.endpoints:
        connection = EndpointConnection(client.settings, endpoint)
        try:
            for folder in _WRITTEN:
                connection.delete(f"{client.prefix}/{name}/{folder}/check".encode())
            return
        except CallFailed as failure:
            failed = failure
            if failure.denied:
                break
        finally:
            connection.close()
    raise failed.public(f"check the permission to use {name!r}") from failed
