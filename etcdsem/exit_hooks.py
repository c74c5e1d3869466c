"""Work to do when a process ends, however it ends.

1. `atexit` runs it when the interpreter ends, after all non-daemon threads have ended.
2. A child that `multiprocessing` forks ends with ``os._exit``, which bypasses `atexit`. There it
   runs after the child's own work. `multiprocessing` does not wait for threads before that, and a
   thread may still work under a lease, so this module waits for them.
3. It waits for our own threads, which end once their client is closed: a sub-interpreter that ends
   before one of its daemon threads aborts the whole process (Python before 3.13).
4. A process that calls ``os._exit`` itself, or is killed, runs nothing: its leases end by their
   TTL.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable

from etcdsem.clock import boot_time

JOIN_TIME = 1.0
"""Seconds to wait for our own threads. They end by themselves."""

_functions: list[Callable[[], object]] = []
_seen_to = 0  # the PID for which `see_to_child` has been called
_over = 0  # the PID of the process that has begun to end


def at_end(function: Callable[[], object]) -> None:
    """Run a function when the process ends. It may be called twice."""
    if not _functions:
        atexit.register(_run)
    _functions.append(function)


def over() -> bool:
    """Have the functions run? Then start nothing new: nothing would end it."""
    return _over == os.getpid()


def end_daemon_thread() -> None:
    """End this thread if it is a daemon thread of a process that is ending.

    Call this before raising an error that only says so. Python reports any exception of a thread
    but SystemExit. (In a thread that was not started by `threading` that could end the process.)
    """
    thread = threading.current_thread()
    if over() and thread.daemon and not isinstance(thread, threading._DummyThread):
        raise SystemExit


def _run() -> None:
    global _over
    _over = os.getpid()
    if sys.is_finalizing():
        return  # a sub-interpreter that was not ended explicitly: no thread runs any more
    for function in reversed(_functions):
        function()
    _join_ours()


def _join_ours() -> None:
    until = boot_time() + JOIN_TIME
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith("etcdsem-"):
            with contextlib.suppress(RuntimeError):  # another thread is just starting it
                thread.join(max(0.01, until - boot_time()))


def see_to_child() -> None:
    """Arrange the end of a forked child. Call it when this process first gets work for its end."""
    global _seen_to
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or _seen_to == os.getpid():
        return
    _seen_to = os.getpid()
    from multiprocessing import util

    # Below 0: after its own children were joined, and its queues were written.
    util.Finalize(None, _begin, exitpriority=-50)


def _begin() -> None:
    """Called when the child's own work is done; its threads, if any, are waited for."""
    if not _threads():
        _run()
        return
    try:
        threading.Thread(target=_when_alone, name="etcdsem-end", daemon=False).start()
    except RuntimeError:
        pass  # not a forked child: its interpreter is ending, and atexit will run it


def _threads() -> list[threading.Thread]:
    """The other threads that must end first."""
    ours = {threading.current_thread(), threading.main_thread()}
    return [one for one in threading.enumerate() if not (one.daemon or one in ours)]


def _when_alone() -> None:
    while others := _threads():
        for one in others:
            one.join()
    _run()
