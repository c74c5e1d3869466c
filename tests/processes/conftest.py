"""Fixtures for tests of processes."""

from tests.test_processes import workers

__all__ = ["workers"]
