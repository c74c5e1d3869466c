"""``etcdsem dev``: run a temporary etcd in the foreground, and print how to reach it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from types import FrameType

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.options import WholeNumber
from etcdsem.cli.signals import inherited_mask

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """A signal to stop arrived."""

    def __init__(self, number: int) -> None:
        self.number = number


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--port", type=WholeNumber(1, 65535), help="Client port.  [default: a free port]")
@click.option("--data-dir", help="Keep the data in this directory.  [default: a temporary one]")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def dev(port: int | None, data_dir: str | None, command: tuple[str, ...]) -> int:
    """Start a temporary etcd on this machine, for trying out only.

    The etcd 3.5.1 that 'etcdsem[server]' installs has known bugs: do not use it in production.

    Prints the `export` lines for etcdsem and etcdctl, and runs until Ctrl-C. With a COMMAND, runs
    it with these variables set, and exits with its exit code.

    \b
    Examples:
      etcdsem dev
      etcdsem dev -- bash
      etcdsem dev -- pytest -q
    """
    from etcdsem import server
    from etcdsem.errors import EtcdUnavailable

    def stop(number: int, _frame: FrameType | None) -> None:
        raise _Stopped(number)

    for one in _STOPPING:
        signal.signal(one, stop)
    try:
        with server.start(port=port, data_dir=data_dir) as etcd:
            if command:
                return _run(command, etcd.env())
            _announce(etcd)
            while True:
                signal.pause()
    except (server.EtcdNotFound, EtcdUnavailable) as error:
        click.echo(f"etcdsem: {error}", err=True)
        return exit_codes.UNAVAILABLE
    except _Stopped as stopped:
        return exit_codes.by_signal(stopped.number)


def _announce(etcd: object) -> None:
    from etcdsem.server import EtcdServer

    assert isinstance(etcd, EtcdServer)
    for variable, value in etcd.env().items():
        click.echo(f"export {variable}={shlex.quote(value)}")
    sys.stdout.flush()
    click.echo(
        f"# etcd {etcd.version} runs until Ctrl-C. In another shell, paste the lines above, then:\n"
        "#   etcdsem run my-api -l 2 -- sleep 5 &\n"
        "#   etcdsem status my-api\n"
        "#   etcdctl get --prefix /etcdsem/\n"
        f"# For trying out only{_reason(etcd.version)}.",
        err=True,
    )


def _reason(version: str) -> str:
    """Return why, if it is the etcd of the extra `server`."""
    from etcdsem.cli.doctor import etcd_versions

    bundled = etcd_versions.parse(version) == etcd_versions.BUNDLED
    return f": etcd {version} has known bugs (see: etcdsem doctor)" if bundled else ""


def _run(command: tuple[str, ...], variables: dict[str, str]) -> int:
    try:
        with inherited_mask():
            process = subprocess.Popen(command, env={**os.environ, **variables})
    except FileNotFoundError:
        click.echo(f"etcdsem: {command[0]}: not found", err=True)
        return exit_codes.NOT_FOUND
    except OSError as error:
        if error.errno in exit_codes.NO_ROOM:
            raise exit_codes.CannotStart(f"a process for {command[0]}", error.strerror) from error
        click.echo(f"etcdsem: {command[0]}: cannot be executed: {error.strerror}", err=True)
        return exit_codes.CANNOT_EXECUTE
    while True:
        try:
            code = process.wait()
        except _Stopped as stopped:
            if stopped.number != signal.SIGINT:  # the terminal sent SIGINT to the command too
                process.send_signal(stopped.number)
        else:
            return code if code >= 0 else exit_codes.by_signal(-code)
