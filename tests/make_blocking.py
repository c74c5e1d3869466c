"""Writes the blocking twins of the asyncio library's public modules.

    python -m tests.make_blocking

The signatures and docstrings of both libraries have one source: the modules of `etcdsem.aio` named
in `MODULES`. Their twins in `etcdsem.sync` are committed; a test checks that they are fresh.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "etcdsem"

MODULES = ("bound", "connect", "multi", "operator_calls", "rate_limit", "semaphore")

MARK = "  # asyncio only"
"""Lines that end with this have no counterpart."""

WORDS = {
    r"\basync def\b": "def",
    r"\basync with\b": "with",
    r"\bawait (?=[\w(])": "",
    r"\bAsyncDecorator\b": "Decorator",
    r"\bAbstractAsyncContextManager\b": "AbstractContextManager",
    r"\b__aenter__\b": "__enter__",
    r"\b__aexit__\b": "__exit__",
    r"\betcdsem\.aio\.(?=\w+ import)": "etcdsem.sync.",
    r"an ``with": "a ``with",
}

HEADER = "# Generated from etcdsem/aio/{}.py by tests/make_blocking.py: edit that file.\n"


def blocking(source: str) -> str:
    """The blocking twin of a module's source, not yet formatted."""
    lines = [line for line in source.splitlines(keepends=True) if MARK not in line]
    text = "".join(line for line in lines if line.strip() != "self._to_register = False")
    for pattern, word in WORDS.items():
        text = re.sub(pattern, word, text)
    return text


def twin(name: str) -> str:
    """The formatted twin of a module in `MODULES`."""
    text = HEADER.format(name) + blocking((PACKAGE / "aio" / f"{name}.py").read_text())
    for command in (["check", "--fix", "--quiet", "--select=I"], ["format", "--quiet"]):
        shown = f"--stdin-filename={PACKAGE / 'sync' / f'{name}.py'}"
        ruff = [sys.executable, "-m", "ruff", *command, shown, "-"]
        run = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True)
        text = run.stdout
    return text


def main() -> None:
    """Write all of them."""
    for name in MODULES:
        (PACKAGE / "sync" / f"{name}.py").write_text(twin(name))


if __name__ == "__main__":
    main()
