# Generated from etcdsem/aio/bound.py by tests/make_blocking.py: edit that file.
"""The calls that semaphores and rate limits have in common."""

from __future__ import annotations

from etcdsem.model import Duration
from etcdsem.sync.binding import Binding


class Bound(Binding):
    """A semaphore or a rate limit with the client that it uses."""

    def register(self) -> None:
        """Write the limit, or the rate, to etcd if it is new, else check that it is the same.

        A limit that was resized since it was registered is accepted as it is.

        Raises:
            InconsistentLimit: another limit, or rate, is registered.
            WrongKind: the name belongs to a rate limit and this is a semaphore, or vice versa.
        """
        self._register()

    def pause(self, *, reason: str | None = None) -> bool:
        """Grant no leases (no permits of a rate limit) to anyone until `resume`. Current holders
        are unaffected. Waiters keep their place, and a try without waiting finds it full.

        Args:
            reason: at most 253 printable characters, shown to operators.

        Returns:
            False if it was already paused; then nothing was changed. A pause by `penalize` is
            replaced.
        """
        return self._run(self._pausing(self._state(), reason), "pause")

    def penalize(self, duration: Duration, *, reason: str | None = None) -> bool:
        """Pause it for a time, for everybody: what to do when a server answers that there are too
        many requests. Nobody has to end this: etcd does, even if this program dies. Permits that
        were granted before are not taken back.

        Args:
            duration: seconds, ``"30s"`` or a timedelta, from now; at most 365 days. etcd counts
                whole seconds, and at least its shortest lease (2 s by default), so it may last up
                to 2 s longer.
            reason: at most 253 printable characters, shown to operators.

        Returns:
            False if it is already paused for at least as long; then nothing was changed. A shorter
            pause by `penalize` is replaced.
        """
        return self._run(self._penalizing(self._state(), duration, reason), "pause")

    def resume(self) -> bool:
        """Grant again. False if it was not paused; then nothing was changed."""
        return self._run(self._resuming(self._state()), "resume")


__all__ = ["Bound"]
