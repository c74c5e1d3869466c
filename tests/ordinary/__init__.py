"""Ordinary programs, without faults: they must not lose a slot, nor run a body without a lease."""
