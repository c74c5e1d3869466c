"""How long the command line takes to begin: ``python -m tests.benchmarks.start``.

`etcdsem run x -- true` is compared with what Python itself takes, each run in turn, medians. Then,
with ``--imports``, which modules take how much of it.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from etcdsem.server import EtcdServer
from tests.benchmarks.book import Book
from tests.benchmarks.measure import fresh_etcd, machine

PROGRAM = str(Path(sys.executable).parent / "etcdsem")
COMMANDS: dict[str, list[str]] = {
    "python": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import etcdsem"],
    "help": [PROGRAM, "--help"],
    "run": [PROGRAM, "run", "x", "--limit", "1", "--", "true"],
}
TITLES = {
    "python": "`python -c pass`",
    "import": "`python -c 'import etcdsem'`",
    "help": "`etcdsem --help`",
    "child": "`etcdsem run x -- ...`, until the command's first instruction",
    "run": "`etcdsem run x -- true`, all of it",
}
BEFORE = "the same with another etcdsem (`--before`)"


def took(command: list[str], environment: dict[str, str]) -> float:
    """Seconds from its start to its end."""
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def until_child(environment: dict[str, str]) -> float:
    """Seconds from the start of `run` until the command that it runs does something."""
    command = [PROGRAM, "run", "x", "--limit", "1", "--", "date", "+%s.%N"]
    began = time.time()
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return float(said.stdout) - began


def _environment(etcd: EtcdServer) -> dict[str, str]:
    """Where etcd is; and with compiled modules, which an installed package has."""
    kept = {name: it for name, it in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **etcd.env()}


def measure(etcd: EtcdServer, times: int, before: str | None = None) -> dict[str, float]:
    """The medians, in seconds. `before`: the path of another etcdsem, run in turn."""
    environment = _environment(etcd)
    commands = dict(COMMANDS)
    if before is not None:
        commands["before"] = [before, *COMMANDS["run"][1:]]
    found: dict[str, list[float]] = {name: [] for name in (*commands, "child")}
    for number in range(times + 1):
        for name, command in commands.items():
            found[name].append(took(command, environment))
        found["child"].append(until_child(environment))
        if number == 0:
            found = {name: [] for name in found}  # now the files are in memory
    return {name: statistics.median(values) for name, values in found.items()}


def imports(etcd: EtcdServer, most: int = 25) -> str:
    """What `run` imports, and how long each module takes by itself."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", PROGRAM, *COMMANDS["run"][1:]],
        env=_environment(etcd),
        stderr=subprocess.PIPE,
        check=True,
        text=True,
    )
    lines = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)", done.stderr)
    parts = sorted(((int(alone), name) for alone, _, name in lines), reverse=True)
    total = sum(alone for alone, _ in parts)
    head = f"{total / 1000:.0f} ms in {len(parts)} modules (slower than without being timed)"
    return "\n".join([head, *(f"{us / 1000:7.1f} ms  {name}" for us, name in parts[:most])])


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.start", description=__doc__)
    parser.add_argument("--times", type=int, default=15, help="runs of each, default 15")
    parser.add_argument("--imports", action="store_true", help="which modules take how long")
    parser.add_argument("--before", help="the path of another etcdsem, to compare with")
    parser.add_argument("--json", type=Path, help="add it to this file")
    options = parser.parse_args()
    titles = {**TITLES, "before": BEFORE} if options.before else TITLES
    with fresh_etcd() as etcd:
        found = measure(etcd, options.times, options.before)
        for name, title in titles.items():
            print(f"{found[name]:6.3f} s  {title}")
        if options.imports:
            print(imports(etcd))
    table = [["", "s"], *([title, f"{found[name]:.3f}"] for name, title in titles.items())]
    facts = {"machine": machine(), "times": options.times}
    Book(options.json).put("start", {**facts, **found, "table": table})


if __name__ == "__main__":
    main()
