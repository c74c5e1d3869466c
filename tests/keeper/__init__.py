"""Tests of the keeper process."""
