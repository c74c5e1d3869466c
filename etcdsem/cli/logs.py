"""Where the library's log records go while a command runs."""

from __future__ import annotations

import logging
import os

from etcdsem.cli.output import say


def quiet_library() -> None:
    """What the library logs is for programs; what we say is for people."""
    logger = logging.getLogger("etcdsem")
    if os.environ.get("ETCDSEM_DEBUG"):
        logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)d %(name)s %(message)s")
    else:
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def log_to_stderr() -> None:
    """What the library warns of, etcd being away for one, as lines like ours."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger = logging.getLogger("etcdsem")
    logger.addHandler(Lines(logging.WARNING))
    logger.propagate = False
