"""Messages about an etcd that does not answer: one when that is noticed, one when it is over."""

from __future__ import annotations

import math
from collections.abc import Callable

from etcdsem.cli.output import span
from etcdsem.intervals import since_refresh


class Outage:
    """An outage of etcd, as seen by somebody who looks regularly."""

    def __init__(self, late: float, tell: Callable[[str], object]) -> None:
        """`late`: seconds after etcd's last answer at which the next one is overdue."""
        self._late = late
        self._tell = tell
        self._looks = 0  # at which it was overdue
        self._longest = 0.0

    def look(self, silent: float, consequence: Callable[[], str]) -> None:
        """Report the begin or the end of an outage.

        Args:
            silent: seconds since etcd's last answer.
            consequence: returns what happens if the outage lasts.
        """
        if silent > self._late:
            self._looks += 1
            self._longest = silent
            if self._looks == 2:  # at the first, this process may just have been continued
                self._tell(f"etcd has not answered for {span(silent)}: {consequence()}")
            return
        if self._looks >= 2:
            self._tell(f"etcd answers again, after {span(self._longest)}")
        self._looks = 0

    def look_at_lease(
        self, ttl: float, left: float, bound: float | None, consequence: Callable[[], str]
    ) -> None:
        """The same for the refreshes of a lease that ends in `left` seconds.

        `bound` is when it ends however often it is refreshed: then an outage changes nothing.
        """
        if 0 < left < math.inf and (bound is None or left < bound - 0.1):
            self.look(since_refresh(ttl, left), consequence)
