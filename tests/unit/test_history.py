"""The judge of histories, judged: what is right passes, what is wrong is told."""

from __future__ import annotations

from tests.helpers.history import Change, judge

BASE = "/etcdsem/x"


def put(revision: int, key: str, lease: int = 0, value: bytes = b"{}", created: int = 0) -> Change:
    return Change(revision, "put", f"{BASE}/{key}", value, created or revision, lease)


def gone(revision: int, key: str) -> Change:
    return Change(revision, "delete", f"{BASE}/{key}", b"", 0, 0)


START = [
    put(1, "max_leases", value=b"2"),
    put(2, "waiters/a/000000000000000a", 10),
    put(3, "waiters/b/000000000000000b", 11),
    put(4, "waiters/c/000000000000000c", 12),
]


def test_one_transaction_may_serve_the_first_two() -> None:
    """FILL gives all free slots away at once."""
    both = [put(5, "leases/00001", 11), put(5, "leases/00000", 10)]
    left = [gone(5, "waiters/a/000000000000000a"), gone(5, "waiters/b/000000000000000b")]
    verdict = judge([*START, *both, *left], "x")
    assert verdict.wrong == []
    assert verdict.handed_over == 2


def test_order_limit_and_line() -> None:
    """Somebody passed over, one too many, one who never stood in line."""
    second = [put(5, "leases/00000", 11), gone(5, "waiters/b/000000000000000b")]
    assert "came before" in judge([*START, *second], "x").wrong[0]
    three = [put(5, f"leases/0000{n}", 10 + n) for n in range(3)]
    left = [gone(5, f"waiters/{n}/000000000000000{n}") for n in "abc"]
    assert "3 held, the limit is 2" in judge([*START, *three, *left], "x").wrong[0]
    assert "overtook" in judge([*START, put(5, "leases/00000", 99)], "x").wrong[0]
