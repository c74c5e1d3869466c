"""Names that are used once: do all of them leave etcd, and does its database stop growing?

    python -m tests.expiring_names --names 100000

Several processes register names with `expires`, acquire and release once, and go on to the next
name; one in ten names is a rate limit. After each round, when its names are gone, etcd is compacted
and defragmented, as it should be in use. Printed are the keys and leases that are left then, and
the size of the database.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any, NamedTuple

import etcdsem
from etcdsem import RateLimit, Semaphore, validation
from etcdsem.server import EtcdServer


class Found(NamedTuple):
    """What a run found."""

    most: int
    """The most keys that were there at a time."""
    left: tuple[int, ...]
    """Keys and leases that were left, after each round."""
    sizes: tuple[int, ...]
    """The size of etcd's database in bytes, after each round."""


def use(endpoint: str, first: int, names: int, expires: int) -> None:
    """Use names once each."""
    validation.MIN_EXPIRES = 1.0
    with etcdsem.connect(endpoint) as client:
        for number in range(first, first + names):
            if number % 10:
                with Semaphore(1, f"once-{number}", client=client, expires=expires):
                    pass
            else:
                RateLimit(f"once-{number}", 5, "0.5s", client=client, expires=expires).acquire()


def run(etcd: EtcdServer, names: int, *, rounds: int, processes: int, expires: int) -> Found:
    """Use that many names in all, in each round others; wait until they are gone."""
    most, left, sizes = 0, list[int](), list[int]()
    share = names // rounds // processes
    for each in range(rounds):
        began = time.monotonic()
        users = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.expiring_names", "--use", etcd.endpoint),
                    *map(str, ((each * processes + place) * share, share, expires)),
                ]
            )
            for place in range(processes)
        ]
        while any(user.poll() is None for user in users) or keys(etcd):
            most = max(most, keys(etcd))
            time.sleep(0.5)
        if any(user.returncode for user in users):
            raise RuntimeError("a process has failed")
        left.append(keys(etcd) + len(etcd.etcdctl("lease", "list").splitlines()) - 1)
        etcd.etcdctl("compact", "--physical", str(status(etcd)["header"]["revision"]))
        etcd.etcdctl("defrag")
        sizes.append(status(etcd)["dbSize"])
        print(
            f"round {each + 1}: {share * processes} names, all gone after "
            f"{time.monotonic() - began:.0f} s; at most {most} keys at a time; {left[-1]} keys and "
            f"leases left; the database has {sizes[-1]:,} bytes",
            flush=True,
        )
    return Found(most, tuple(left), tuple(sizes))


def keys(etcd: EtcdServer) -> int:
    """The number of keys in etcd."""
    for last in (False, False, True):  # on a busy machine
        try:
            shown = etcd.etcdctl("get", "--prefix", "/etcdsem/", "--count-only", "-w", "fields")
            return int(shown.rpartition(" ")[2])
        except etcdsem.EtcdSemError:
            if last:
                raise
    raise AssertionError("neither an answer nor an error")


def status(etcd: EtcdServer) -> dict[str, Any]:
    """The status of the member."""
    found: dict[str, Any] = json.loads(etcd.etcdctl("endpoint", "status", "-w", "json"))[0]
    return found["Status"]  # type: ignore[no-any-return]


def main() -> None:
    """Run it; exit with 1 if anything is left, or the database has grown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=100_000, help="in all")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--expires", type=int, default=10, metavar="SECONDS")
    parser.add_argument("--use", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.use is not None:
        use(given.use[0], *map(int, given.use[1:]))
        return
    from etcdsem.server import start

    with start() as etcd:
        found = run(
            etcd,
            given.names,
            rounds=given.rounds,
            processes=given.processes,
            expires=given.expires,
        )
    raise SystemExit(any(found.left) or found.sizes[-1] > 1.5 * found.sizes[0])


if __name__ == "__main__":
    main()
