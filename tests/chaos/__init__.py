"""Chaos on a real cluster: docs/chaos.md says which fault is injected where."""
