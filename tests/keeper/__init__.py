"""Tests of the helper process (keeper)."""
