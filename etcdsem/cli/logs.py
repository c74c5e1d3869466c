"""Routing of the library's log records while a command runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from etcdsem.cli.output import say


def quiet_library() -> None:
    """Discard the library's log, since commands print messages of their own.

    With ETCDSEM_DEBUG set, log everything to stderr.
    """
    logger = logging.getLogger("etcdsem")
    if os.environ.get("ETCDSEM_DEBUG"):
        logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)d %(name)s %(message)s")
    else:
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


class _Lines(logging.Handler):
    """Prints log records as messages on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def log_to_stderr() -> None:
    """Print the library's warnings, such as an unreachable etcd, as messages on stderr."""
    logger = logging.getLogger("etcdsem")
    logger.addHandler(_Lines(logging.WARNING))
    logger.propagate = False


@contextmanager
def warnings_printed() -> Iterator[None]:
    """Print the library's warnings on stderr during this block, whatever is done with its log."""
    logger = logging.getLogger("etcdsem")
    if any(isinstance(handler, _Lines) for handler in logger.handlers):
        yield
        return
    handler, propagate = _Lines(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
