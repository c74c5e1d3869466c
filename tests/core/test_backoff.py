"""How long a retry loop pauses."""

from __future__ import annotations

from etcdsem.core.backoff import Backoff


def test_pauses_double_up_to_the_longest() -> None:
    """In the middle of the jitter."""
    backoff = Backoff(0.05, 0.3)
    assert [backoff.take(0.5) for _ in range(5)] == [0.05, 0.1, 0.2, 0.3, 0.3]


def test_jitter_is_half_to_one_and_a_half() -> None:
    """It changes the pause that is taken, not those that follow."""
    backoff = Backoff(1.0, 8.0)
    assert backoff.take(0.0) == 0.5
    assert backoff.take(1.0) == 3.0
    assert backoff.pause == 4.0


def test_a_success_begins_anew() -> None:
    """The next failure is followed by the shortest pause."""
    backoff = Backoff(1.0, 8.0)
    backoff.take(0.5)
    backoff.reset()
    assert backoff.take(0.5) == 1.0
