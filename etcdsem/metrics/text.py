"""Metrics as a text file, for node_exporter's textfile collector."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from etcdsem.metrics.data import snapshot
from etcdsem.metrics.family import Family, families, series


def textfile(of: Iterable[Family]) -> str:
    """Format families in Prometheus' text format, for node_exporter's textfile collector."""
    lines = []
    for family in of:
        if not family.samples:
            continue
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for name, labels, value in series(family):
            pairs = ",".join(
                f'{key}="{_escaped(text, quote=True)}"' for key, text in labels.items()
            )
            number = repr(int(value)) if value.is_integer() else repr(value)
            lines.append(f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def write_textfile(
    path: str | os.PathLike[str],
    of: Iterable[Family] | None = None,
    *,
    namespace: str = "",
) -> None:
    """Write metrics to a file, for a job that ends before it can be scraped.

    The file is replaced atomically, so that node_exporter's textfile collector never reads half
    of it, and is readable by all users. The collector only reads names that end in ``.prom``.

    Args:
        path: path of the file. Its directory must exist.
        of: metrics to write; default: all metrics of this process.
        namespace: prefix of each name, for the default of `of`.

    Raises:
        OSError: the file cannot be written.
    """
    import tempfile  # here, since it imports many modules

    text = textfile(families(snapshot(), namespace=namespace) if of is None else of)
    path = os.fspath(path)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".etcdsem-")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
