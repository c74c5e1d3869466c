"""The faults of `tests/mutants.py` can still be put in, and their tests are there."""

from __future__ import annotations

from pathlib import Path

from tests import mutants
from tests.mutants import ROOT, Copy, Mutant


def test_every_fault_can_be_put_in() -> None:
    """The text that a fault replaces stands in its file exactly once.

    Has the code changed? Choose the new text, and run `python -m tests.mutants --only FILE`.
    """
    assert mutants.problems() == []


def test_what_cannot_be_put_in_is_told() -> None:
    """The text is gone, or stands there twice, or the test is gone."""
    good = mutants.MUTANTS[0]
    assert mutants.problems([good]) == []
    for bad in ({"old": "no such text"}, {"old": "def "}, {"tests": "unit/test_mutants.py::gone"}):
        assert len(mutants.problems([good._replace(**bad)])) == 1


def test_a_fault_is_caught_or_survives(tmp_path: Path) -> None:
    """It is put into the copy, and taken out again; the checkout is left alone."""
    copy = Copy(tmp_path)
    copy.check()
    test = "core/test_leases.py::test_a_slow_clock_loses_it_before_etcd_does"
    fault = Mutant("", "core/leases.py", "return 0.1 + 0.01 * ttl", "return 0.0", test)
    file = tmp_path / "etcdsem" / "core" / "leases.py"
    before = file.read_text()
    assert copy.caught(fault)
    assert file.read_text() == before == (ROOT / "etcdsem" / "core" / "leases.py").read_text()
    assert not copy.caught(fault._replace(new="return 0.01 * ttl + 0.1"))
