"""The images of the container tests: none is pulled, all are made of what this machine has.

1. `base_image()` is `FROM scratch` with the Python that runs the tests, pip, a shell and a few
   tools, and the shared libraries that these need. It stands for `python:3.13-slim`.
2. `project_image()` is `deploy/Dockerfile` on it, built by the engine as a user would build it,
   with the wheels that pip fetched or made outside.
3. `bare_image()` has a shell and nothing else: an image without Python.
4. Each tag is a hash of what went in, so an image that is there is not built again.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.helpers.docker_etcd import build_image, etcd_image

ROOT = Path(__file__).parents[2]

TOOLS = ("cat", "chmod", "cp", "env", "ls", "mkdir", "rm", "sleep")
SKIPPED = re.compile(
    r"/(test|tests|idlelib|tkinter|turtledemo|lib2to3|ensurepip/_bundled|site-packages|"
    r"dist-packages|config-[^/]*|__pycache__)(/|$)|_tkinter|\.a$"
)

ON_SCRATCH = b"FROM scratch\nADD root.tar /\nENV PATH=/usr/local/bin:/usr/bin:/bin\n"


def base_image() -> str:
    """The tag of an image with Python, pip, a shell and some tools."""
    return _on_scratch("etcdsem-test-python", _python_files)


def bare_image() -> str:
    """The tag of an image with a shell and some tools, but without Python."""
    return _on_scratch("etcdsem-test-bare", _tool_files)


def etcd_tools_image(folder: Path) -> str:
    """The tag of an image with etcd, etcdctl and etcdutl of a folder."""

    def files() -> dict[str, Path | str]:
        programs = [folder / name for name in ("etcd", "etcdctl", "etcdutl")]
        placed = {f"/usr/local/bin/{path.name}": path for path in programs}
        return {**placed, **_libraries(programs)}

    return _on_scratch("etcdsem-test-etcd-tools", files)


@functools.cache
def project_image() -> str:
    """The tag of the project's own image."""
    base = base_image()
    files = {str(path.relative_to(ROOT)): (path.read_bytes(), 0o644) for path in _sources()}
    digest = hashlib.sha256(base.encode())
    for name, (content, _) in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)

    def with_wheels() -> dict[str, tuple[bytes, int]]:
        return {**files, **_wheelhouse()}

    return build_image(
        "etcdsem-test-project",
        with_wheels,
        key=digest.hexdigest()[:16],
        dockerfile="deploy/Dockerfile",
        build_args={
            "BASE": base,
            "SOURCE": "etcdsem[metrics,yaml]",
            "PIP_ARGS": "--no-index --find-links=wheelhouse",
        },
    )


def of_manifests() -> dict[str, str]:
    """The images that stand for those of the manifests."""
    return {
        "etcdsem": project_image(),
        "quay.io/coreos/etcd": etcd_image(),
        "busybox": bare_image(),
    }


def _sources() -> Iterator[Path]:
    """What the Dockerfile's context holds, by .dockerignore."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        yield ROOT / name
    for name in ("Dockerfile", "copy_program.py"):
        yield ROOT / "deploy" / name
    for path in sorted((ROOT / "etcdsem").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _wheelhouse() -> dict[str, tuple[bytes, int]]:
    """Wheels of the project and of all that it needs, made outside of the engine."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "-q", "-w", folder, f"{ROOT}[metrics,yaml]"],
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )
        return {
            f"wheelhouse/{path.name}": (path.read_bytes(), 0o644) for path in Path(folder).iterdir()
        }


@functools.cache
def _on_scratch(repository: str, files: object) -> str:
    assert callable(files)
    content = {"Dockerfile": (ON_SCRATCH, 0o644), "root.tar": (_tar(files()), 0o644)}
    return build_image(repository, content)


def _tar(files: dict[str, Path | str]) -> bytes:
    """An archive that depends on the files' content alone. A string is a symbolic link."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
        for name, source in sorted(files.items()):
            info = tarfile.TarInfo(name.lstrip("/"))
            if isinstance(source, str):
                info.type, info.linkname = tarfile.SYMTYPE, source
                tar.addfile(info)
                continue
            content = source.read_bytes()
            info.size, info.mode = len(content), 0o755 if os.access(source, os.X_OK) else 0o644
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def _tool_files() -> dict[str, Path | str]:
    tools = {f"/bin/{name}": Path(shutil.which(name) or f"/bin/{name}") for name in TOOLS}
    tools["/pause"] = tools["/bin/sleep"]  # process 1 of a pod that shares its processes
    tools["/bin/sh"] = Path(shutil.which("dash") or shutil.which("sh") or "/bin/sh")
    real = {name: path.resolve() for name, path in tools.items()}
    return {**real, **_libraries(real.values())}


def _python_files() -> dict[str, Path | str]:
    """Python below /usr/local, wherever it is here: it finds its home from where it lies."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    stdlib = Path(sysconfig.get_path("stdlib"))
    files: dict[str, Path | str] = {}
    programs = [Path(os.path.realpath(sys.executable))]
    for path in stdlib.rglob("*"):
        if path.is_file() and not SKIPPED.search(f"/{path.relative_to(stdlib)}"):
            files[f"/usr/local/lib/{version}/{path.relative_to(stdlib)}"] = path
            if path.suffix == ".so":
                programs.append(path)
    files |= _pip(f"/usr/local/lib/{version}/site-packages")
    files[f"/usr/local/bin/{version}"] = programs[0]
    files["/usr/local/bin/python3"] = version
    return {**_tool_files(), **files, **_libraries(programs), "/usr/bin/env": "/bin/env"}


def _pip(target: str) -> dict[str, Path | str]:
    found = importlib.util.find_spec("pip")
    assert found is not None, "the image needs the pip of the environment that runs the tests"
    assert found.origin is not None
    home = Path(found.origin).parent
    return {
        f"{target}/pip/{path.relative_to(home)}": path
        for path in home.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def _libraries(programs: Iterable[Path]) -> dict[str, Path | str]:
    """The shared libraries that programs need, and the loader, at the paths where they are; those
    of Python itself go beside the C library, where they are looked for. So does what the C library
    loads only when a thread is ended.
    """
    standard = re.compile(r"^(/usr)?/lib(64)?/")
    beside = f"/lib/{sysconfig.get_config_var('MULTIARCH') or ''}"
    files: dict[str, Path | str] = {}
    for program in programs:
        listed = subprocess.run(
            ["ldd", str(program)], capture_output=True, text=True, check=False
        ).stdout
        for path in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", listed, re.M):
            place = path if standard.match(path) else f"{beside}/{Path(path).name}"
            files[place] = Path(path).resolve()
    ctypes.CDLL("libgcc_s.so.1")
    mapped = re.findall(r"(/\S*/libgcc_s\.so\.1)$", Path("/proc/self/maps").read_text(), re.M)
    return files | {f"{beside}/libgcc_s.so.1": Path(mapped[0])}
