"""The blocking twins of the asyncio library's public modules."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.make_blocking import MODULES, PACKAGE, blocking, twin


@pytest.mark.skipif(find_spec("ruff") is None, reason="needs ruff: pip install -e '.[dev]'")
@pytest.mark.parametrize("name", MODULES)
def test_the_twin_is_fresh(name: str) -> None:
    """Has `etcdsem/aio` changed? Run `python -m tests.make_blocking`, and commit both."""
    assert (PACKAGE / "sync" / f"{name}.py").read_text() == twin(name)


def test_nothing_asynchronous_is_left() -> None:
    """Words, lines that are for asyncio only, and docstrings."""
    source = (
        "@needs_loop  # asyncio only\n"
        "async def acquire(self) -> Lease:\n"
        '    """For an ``async with`` block."""\n'
        "    self._to_register = False\n"
        "    async with self as lease:\n"
        "        return await self._run((await lease.status()).holders)\n"
    )
    assert blocking(source) == (
        "def acquire(self) -> Lease:\n"
        '    """For a ``with`` block."""\n'
        "    with self as lease:\n"
        "        return self._run((lease.status()).holders)\n"
    )
