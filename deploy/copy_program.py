#!/usr/bin/env python3
"""etcdsem-copy DIR: copy etcdsem, its Python and all that they need into a folder, ready to run in
any other image, even one without Python, C library or shell.

    /etcdsem/ld.so --library-path /etcdsem/lib /etcdsem/bin/python3 -I -m etcdsem run ...
    /etcdsem/etcdsem run ...         the same, if the image has a /bin/sh

1. An init container runs it on a volume that the main container also mounts. DIR may have any name,
   and a different one in the other container.
2. The dynamic loader and the C library are copied too and named explicitly. So nothing is loaded
   from the other image, and the command that `etcdsem run` starts sees nothing of the copy: no
   variable is set, in particular not LD_LIBRARY_PATH.
3. Existing files are overwritten, for an init container that runs again.

``etcdsem-copy --warm`` compiles the modules that will be used, when the image is built.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

LEFT_OUT = (
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "distutils"),
    *("site-packages", "dist-packages", "config-*", "_tkinter*", "turtle.py", "pydoc_data"),
)
"""Parts of the standard library that no job needs."""

USED = (
    *(
        "etcdsem",
        "etcdsem.aio",
        "etcdsem.cli.main",
        "etcdsem.cli.run.command",
        "etcdsem.cli.run.hold",
        "etcdsem.cli.run.check",
        "etcdsem.cli.bounded_server",
    ),
    *("etcdsem.cli.show.status", "etcdsem.etcd.stream_thread", "etcdsem.etcd.aio_streams", "ssl"),
    *("rich.console", "rich.table", "ctypes", "encodings.idna", "http.server"),
    "prometheus_client",  # an extra: may be missing
)

LAUNCHER = """#!/bin/sh
here="${0%/*}"
exec "$here/ld.so" --library-path "$here/lib" "$here/bin/python3" -I -m etcdsem "$@"
"""


def main() -> int:
    """Run the command line."""
    if sys.argv[1:] == ["--warm"]:
        for module in USED:
            with contextlib.suppress(ModuleNotFoundError):
                __import__(module)
        return 0
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: etcdsem-copy DIR", file=sys.stderr)
        return 64
    try:
        size = copy_to(Path(sys.argv[1]))
    except OSError as error:
        print(f"etcdsem-copy: {error}", file=sys.stderr)
        return 1
    print(f"etcdsem-copy: {size / 1e6:.0f} MB in {sys.argv[1]}")
    return 0


def copy_to(target: Path) -> int:
    """Copy everything and return the size in bytes."""
    library = target / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    _copy_tree(Path(sysconfig.get_path("stdlib")), library, LEFT_OUT)
    _copy_tree(Path(sysconfig.get_path("platlib")), library / "site-packages", ("pip", "pip-*"))
    python = target / "bin" / "python3"
    _copy_file(Path(sys.executable).resolve(), python)
    loader = _loader()
    _copy_file(loader, target / "ld.so")
    for needed in _needed(loader, [python.resolve(), *library.rglob("*.so*")]):
        _copy_file(needed, target / "lib" / needed.name)
    launcher = target / "etcdsem"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def _copy_tree(source: Path, target: Path, left_out: Iterable[str]) -> None:
    ignore = shutil.ignore_patterns(*left_out)
    shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True, copy_function=_copy_file)


def _copy_file(source: str | Path, target: str | Path) -> None:
    """Copy content (following links), mode, and time (which .pyc files are checked against)."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).unlink(missing_ok=True)
    shutil.copyfile(source, target)
    shutil.copystat(source, target)


def _loader() -> Path:
    """The dynamic loader that runs this process."""
    found = re.search(r"(/\S*/ld-(?:linux|musl)\S*)$", Path("/proc/self/maps").read_text(), re.M)
    if found is None:
        raise OSError("no dynamic loader found: this Python is statically linked, or not on Linux")
    return Path(found[1])


def _needed(loader: Path, programs: Iterable[Path]) -> set[Path]:
    """The shared libraries that the programs load, as reported by the loader."""
    found: dict[str, Path] = {}
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    environment["LD_LIBRARY_PATH"] = str(Path(sys.base_prefix) / "lib")
    for program in programs:
        listed = subprocess.run(
            [str(loader), "--list", str(program)],
            capture_output=True, text=True, check=False, env=environment,
        ).stdout  # fmt: skip
        for name, path in re.findall(r"^\s*(\S+) => (/\S+)", listed, re.M):
            found.setdefault(name, Path(path))
    return {path for name, path in found.items() if not name.startswith("/")} | _at_thread_ends()


def _at_thread_ends() -> set[Path]:
    """The library that glibc loads only when a thread ends. Without it, Python crashes at exit if
    it has daemon threads (`hold`, `exporter`).
    """
    with contextlib.suppress(OSError):  # musl does not need it
        ctypes.CDLL("libgcc_s.so.1")
    mapped = re.findall(r"(/\S*/libgcc_s\.so\.1)$", Path("/proc/self/maps").read_text(), re.M)
    return set(map(Path, mapped))


if __name__ == "__main__":
    sys.exit(main())
