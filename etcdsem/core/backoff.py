"""Pauses between attempts: each is twice as long as the one before, up to a maximum."""

from __future__ import annotations


class Backoff:
    """The pauses of one retry loop, in seconds. `pause` is the next one, before jitter."""

    __slots__ = ("_longest", "_shortest", "pause")

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self.pause = shortest

    def take(self, chance: float) -> float:
        """Take the next pause. `chance`, from 0 to 1, scales it to between 0.5 and 1.5 times."""
        taken = self.pause * (0.5 + chance)
        self.pause = min(2 * self.pause, self._longest)
        return taken

    def reset(self) -> None:
        """Start again with the shortest pause, after a successful attempt."""
        self.pause = self._shortest
