"""``etcdsem run --metrics-file``: metrics of one run, for node_exporter's textfile collector.

1. The file is written once, at the end, however the run ended, and replaced atomically. Only after
   SIGKILL does the file of the previous run remain, recognizable by its end time.
2. If the path is found to be unwritable before the run joins the queue, that is an error. At the
   end it is only a note, and the exit code remains the command's.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from etcdsem.cli import exit_codes
from etcdsem.cli.output import say
from etcdsem.clock import boot_time
from etcdsem.errors import EtcdSemError, InvalidSetting

if TYPE_CHECKING:
    from etcdsem.cli.run.request import LeaseRequest
    from etcdsem.metrics import Family


def check_metrics_file(path: str | None) -> str | None:
    """Return the path if it appears to be writable, else raise InvalidSetting."""
    if path is None:
        return None
    directory = os.path.dirname(path) or "."
    if os.path.isdir(path) or not os.path.basename(path):
        raise InvalidSetting(
            f"--metrics-file {path!r} is a directory: give a file in it, such as job.prom"
        )
    if not os.path.isdir(directory):
        raise InvalidSetting(f"--metrics-file {path!r}: directory {directory!r} does not exist")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InvalidSetting(f"--metrics-file {path!r}: directory {directory!r} is not writable")
    return path


class JobMetrics:
    """Records one run, as a context manager, and writes the file when the block ends."""

    def __init__(self, path: str | None, request: LeaseRequest) -> None:
        self._path = path
        self._request = request
        self._began = boot_time()
        self._started = time.time()
        self._granted: float | None = None
        self._ended: float | None = None
        self._lost = False
        self.code: int = exit_codes.NOT_DONE
        """The exit code, once it is known."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, EtcdSemError):
            self.code = exit_codes.code_for(error)
        if self._path is not None:
            self._write(self._path)

    def granted(self) -> None:
        """Record that the lease was granted."""
        self._granted = boot_time()

    def ended(self, *, lost: bool) -> None:
        """Record that the command has ended; `lost`: its lease was lost before that."""
        self._ended = boot_time()
        self._lost = lost

    def _write(self, path: str) -> None:
        from etcdsem.metrics import write_textfile

        try:
            write_textfile(path, self._families())
        except OSError as error:
            say(f"note: cannot write the metrics file {path}: {error.strerror}")

    def _families(self) -> Iterator[Family]:
        from etcdsem.metrics import Family

        now = boot_time()
        waited = (self._granted if self._granted is not None else now) - self._began
        held = 0.0
        if self._granted is not None:
            held = (self._ended if self._ended is not None else now) - self._granted
        own = _prometheus_labels(self._request)
        each = [{"name": name, **own} for name in self._request.names]
        numbers: tuple[tuple[str, float, str], ...] = (
            ("granted", self._granted is not None, "1 if the last run got a lease, else 0."),
            ("lost", self._lost, "1 if the last run lost its lease before it ended, else 0."),
            ("exit_code", self.code, "Exit code of the last run, as listed in docs/cli.md."),
            ("wait_seconds", waited, "Time the last run waited in the queue, in seconds."),
            ("held_seconds", held, "Time the last run held its lease, in seconds."),
            ("start_time_seconds", self._started, "Start of the last run, in Unix time."),
            ("end_time_seconds", time.time(), "End of the last run, in Unix time."),
        )
        gauge: Literal["gauge"] = "gauge"
        for name, value, text in numbers:
            yield Family(f"etcdsem_job_{name}", gauge, text, [(one, float(value)) for one in each])


def _prometheus_labels(request: LeaseRequest) -> dict[str, str]:
    """Return the run's labels, named like pod labels in kube-state-metrics: ``label_<key>``."""
    return {
        "label_" + re.sub("[^A-Za-z0-9_]", "_", key): value for key, value in request.labels.items()
    }
