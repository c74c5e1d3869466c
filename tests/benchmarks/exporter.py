"""What a scrape costs, 2 held of each: ``python -m tests.benchmarks.exporter SEMAPHORES``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request

import etcdsem
from etcdsem import Semaphore, server

SCRAPES = 10


def main(count: int) -> None:
    """Print one line for each scrape."""
    with server.start() as etcd, etcdsem.connect(etcd.endpoint) as client:
        for number in range(count):
            sem = Semaphore(5, f"s{number}", client=client)
            sem.acquire()
            sem.acquire()
        exporter = subprocess.Popen(
            [sys.executable, "-m", "etcdsem", "exporter", "--listen", "127.0.0.1:0"],
            env={**os.environ, **etcd.env()},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert exporter.stderr is not None
            (url,) = re.findall(r"http\S+", exporter.stderr.readline())
            for _ in range(SCRAPES):
                began = time.monotonic()
                with urllib.request.urlopen(url) as answer:
                    text = answer.read().decode()
                took = time.monotonic() - began
                (etcds,) = re.findall(r"(?m)^etcdsem_scrape_duration_seconds (\S+)", text)
                print(
                    f"{took * 1000:5.0f} ms, {float(etcds) * 1000:5.1f} ms of it etcd, "
                    f"{len(text):,} bytes"
                )
        finally:
            exporter.terminate()
            exporter.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
