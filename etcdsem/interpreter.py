"""Whether and how another Python interpreter can be started, for a helper process."""

from __future__ import annotations

import os
import sys

_RUN = "import sys; sys.path[:] = {path!r}; {code}"
_NAMES = ("python", "pypy", "graalpy")


def why_not() -> str:
    """Why ``sys.executable`` is not a Python that can be started; empty if it is one.

    A frozen program or an application server would start another copy of itself with ``-c CODE``.
    """
    if getattr(sys, "frozen", False):
        return f"this program was frozen (sys.frozen), so {sys.executable} is not a Python"
    if not sys.executable:
        return "sys.executable is not set, as when Python is embedded in another program"
    if not os.path.basename(sys.executable).lower().startswith(_NAMES):
        return f"sys.executable is {sys.executable}, which is not a Python"
    return ""


def python(code: str, *arguments: str) -> list[str]:
    """The command that runs `code` in a new Python that can import the same modules."""
    path = [os.path.abspath(one) for one in sys.path]
    return [sys.executable, "-c", _RUN.format(path=path, code=code), *arguments]
