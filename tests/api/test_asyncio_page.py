"""The page about asyncio: each of its programs runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

PAGE = Path(__file__).parents[2] / "docs" / "asyncio.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")


def snippets() -> list[str]:
    """The programs on the page."""
    text = PAGE.read_text() if PAGE.exists() else ""
    return re.findall(r"<!-- snippet -->\n```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", range(len(snippets())))
def test_its_programs_run(etcd: EtcdServer, number: int) -> None:
    """Without an error, and without a word on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", snippets()[number]],
        env={**os.environ, **etcd.env()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_there_are_programs() -> None:
    """The page has not lost its marks."""
    assert len(snippets()) == 5
