"""What is still to be done when a process ends, in whichever way it ends.

1. The interpreter's end runs it (`atexit`), after all threads that are no daemons have ended.
2. A child that `multiprocessing` forks ends by ``os._exit``, which `atexit` does not see. There
   it runs after the child's own work. `multiprocessing` does not wait for threads before that,
   and a thread may still work under a lease: so here they are waited for.
3. Threads of ours, which end once their client is closed, are waited for: a sub-interpreter that
   ends before a daemon thread of it aborts the whole process (Python before 3.13).
4. Whatever calls ``os._exit`` by itself, or is killed, runs nothing: leases end by their TTL.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable

from etcdsem.clock import boot_time

JOIN_TIME = 1.0
"""Seconds to wait for threads of ours. They end by themselves."""

_functions: list[Callable[[], object]] = []
_seen_to = 0  # the process that `see_to_child` has seen to
_over = 0  # the process that has begun to end


def at_end(function: Callable[[], object]) -> None:
    """Run a function when the process ends. It may run twice."""
    if not _functions:
        atexit.register(_run)
    _functions.append(function)


def over() -> bool:
    """Has it run? Then nothing new should be begun: nobody would end it."""
    return _over == os.getpid()


def _run() -> None:
    global _over
    _over = os.getpid()
    if sys.is_finalizing():
        return  # a sub-interpreter that nobody has ended: no thread runs any more
    for function in reversed(_functions):
        function()
    _join_ours()


def _join_ours() -> None:
    until = boot_time() + JOIN_TIME
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith("etcdsem-"):
            thread.join(max(0.01, until - boot_time()))


def see_to_child() -> None:
    """To be called when there begins to be something to do at the end of this process."""
    global _seen_to
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or _seen_to == os.getpid():
        return
    _seen_to = os.getpid()
    from multiprocessing import util

    # Below 0: after its own children were joined, and its queues were written.
    util.Finalize(None, _begin, exitpriority=-50)


def _begin() -> None:
    """The child's work is done; its threads, if it has any, are joined after this."""
    if not _threads():
        _run()
        return
    try:
        threading.Thread(target=_when_alone, name="etcdsem-end", daemon=False).start()
    except RuntimeError:
        pass  # no child of a fork: its interpreter is ending, and atexit's turn comes


def _threads() -> list[threading.Thread]:
    """The other threads that the end waits for."""
    ours = {threading.current_thread(), threading.main_thread()}
    return [one for one in threading.enumerate() if not (one.daemon or one in ours)]


def _when_alone() -> None:
    while others := _threads():
        for one in others:
            one.join()
    _run()
