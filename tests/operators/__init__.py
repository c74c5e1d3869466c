"""Tests of what an operator sees and does."""
