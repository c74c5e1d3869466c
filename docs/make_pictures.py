"""``make pictures``: draw docs/top.svg and docs/demo.svg from the real output of the commands.

It uses a temporary etcd, real leases and a real run of ``etcdsem demo``. The pictures load nothing
from other hosts: rich's web fonts are removed, and the reader's own monospace font is used.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from etcdsem import Client, EtcdSemError, Semaphore, connect, server
from etcdsem.cli.show.live_view import Screen
from etcdsem.cli.show.top_layout import View, draw

WIDTH = 92
SCENE = (  # name, limit, holders, waiters, seconds between waiters
    ("gpu", 4, 4, 5, 1.6),
    ("licence-seats", 10, 7, 0, 0.0),
    ("maps-api", 8, 8, 2, 0.8),
    ("nightly-backup", 1, 1, 1, 0.4),
    ("reports", 3, 0, 0, 0.0),
    ("uploads", 2, 2, 0, 0.0),
)
LOWERED = ("uploads", 1)


def main(folder: Path) -> None:
    """Draw both pictures into a folder."""
    logging.getLogger("etcdsem").setLevel(logging.CRITICAL)  # hide the errors of waiters at the end
    with server.start() as etcd:
        (folder / "top.svg").write_text(top(etcd.endpoint))
    (folder / "demo.svg").write_text(demo())


def top(endpoint: str) -> str:
    """`etcdsem top` while six semaphores are in use."""
    with connect(endpoint) as client:
        for name, limit, holders, waiters, pause in SCENE:
            wanted = max(1, holders + waiters)
            semaphores = [Semaphore(limit, name, client=client) for _ in range(wanted)]
            for semaphore in semaphores[:holders]:
                semaphore.acquire()
            for semaphore in semaphores[holders : holders + waiters]:
                threading.Thread(target=_wait, args=(semaphore,), daemon=True).start()
                time.sleep(pause)
        client.resize(*LOWERED)
        _until_all_wait(client)
        seen = client.overview()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    view = View(seen, "127.0.0.1:2379 /etcdsem", time.strftime("%H:%M:%S"))
    console.print(draw(view, Screen(WIDTH, 12, blocks=True)))
    return _svg(console, "etcdsem top")


def _wait(semaphore: Semaphore) -> None:
    try:
        semaphore.acquire()
    except EtcdSemError:
        pass  # the client was closed after the picture was taken


def _until_all_wait(client: Client) -> None:
    wanted = sum(waiters for _, _, _, waiters, _ in SCENE)
    until = time.monotonic() + 60
    while sum(one.waiting for one in client.overview()) < wanted and time.monotonic() < until:
        time.sleep(0.1)


def demo() -> str:
    """Draw `etcdsem demo` while it runs, and its summary."""
    shown = _on_a_terminal([sys.executable, "-m", "etcdsem", "demo"], WIDTH, 40)
    head, _, end = shown.partition("what the service saw")
    frames = [one for one in re.split(r"(?:\r?\x1b\[2K(?:\x1b\[1A)?)+", head) if "queue:" in one]
    busy = max(frames, key=lambda one: (one.count("job "), -abs(frames.index(one) - 12)))
    intro = re.sub(r"\x1b\[\?25[lh]", "", head).split("\n")[:2]
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for part in (
        "$ etcdsem demo",
        *intro,
        "",
        busy.strip("\r\n"),
        "",
        f"what the service saw{end}",
    ):
        text = re.sub(r"http://127\.0\.0\.1:\d+", "http://127.0.0.1:8080", part)
        text = re.sub(r"(?<!/)127\.0\.0\.1:\d+", "127.0.0.1:2379", text)
        console.print(Text.from_ansi(re.sub(r"\x1b\[\?\d+[lh]", "", text).replace("\r", "")))
    return _svg(console, "etcdsem demo")


def _on_a_terminal(command: list[str], columns: int, lines: int) -> str:
    """Run a command on a terminal of this size and return its output."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdout=slave,
        stderr=slave,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # on Linux: the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(master)
    if process.wait() != 0:
        raise RuntimeError(f"{command[-1]} ended with {process.returncode}")
    return seen.decode()


def _svg(console: Console, title: str) -> str:
    drawn = console.export_svg(title=title, unique_id=title.replace(" ", "-"))
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<!--.*?-->\s*", "", drawn, flags=re.DOTALL)
    drawn = _TEXT.sub(_without_spaces, drawn)
    return "".join(f"{line.rstrip()}\n" for line in drawn.splitlines())


_TEXT = re.compile(r'x="([\d.]+)"( y="[\d.]+") textLength="([\d.]+)"([^>]*)>([^<]*)<')
_SPACE = "&#160;"
_CELL = 12.2  # rich's width of a character


def _without_spaces(found: re.Match[str]) -> str:
    """Replace spaces at both ends with an offset and a length: some viewers drop them."""
    x, y, length, rest, text = found.groups()
    cells = text.replace(_SPACE, " ")
    before = len(cells) - len(cells.lstrip(" "))
    after = len(cells) - len(cells.rstrip(" "))
    text = cells.strip(" ").replace(" ", _SPACE)
    left, long = float(x) + before * _CELL, float(length) - (before + after) * _CELL
    return f'x="{left:.1f}"{y} textLength="{long:.1f}"{rest}>{text}<'


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
