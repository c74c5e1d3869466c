"""Tests of the package as a whole, of its small modules, and of the tests' own tools."""
