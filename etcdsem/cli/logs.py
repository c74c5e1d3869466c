"""Routing of the library's log records while a command runs."""

from __future__ import annotations

import logging
import os

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


def log_to_stderr() -> None:
    """Print the library's warnings, such as an unreachable etcd, as messages on stderr."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger = logging.getLogger("etcdsem")
    logger.addHandler(Lines(logging.WARNING))
    logger.propagate = False
