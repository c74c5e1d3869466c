"""The simulator, a driver of the core on virtual time, and its tests: docs/simulation.md."""
