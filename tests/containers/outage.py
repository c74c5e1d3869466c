"""An outage of etcd while the pods of an indexed Job work and wait, with the example `parallel`:

    python -m tests.containers.outage                  20 pods, limit 5, 80 s without etcd
    python -m tests.containers.outage --pods 5 --limit 2 --seconds 12 --work 8 --lease-timeout 9s

Fails unless the Job completes, no index fails, and etcd's history never shows more holders than the
limit. CI runs a small one (`test_outage.py`).
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from etcdsem import Semaphore, connect
from tests.containers import images
from tests.containers.job_controller import BACK_OFF, JobController
from tests.containers.kubelet import node
from tests.containers.reached import Reached
from tests.helpers.history import assert_clean
from tests.helpers.manifests import Object, in_namespace, rendered
from tests.helpers.waiting import eventually


class Plan(NamedTuple):
    """What is to happen. Durations in seconds."""

    pods: int = 20
    limit: int = 5
    seconds: float = 80.0
    work: float = 40.0  # longer than a lease lasts without etcd
    lease_timeout: str = "30s"
    back_off: float = BACK_OFF


class Outcome(NamedTuple):
    """What happened."""

    status: dict[str, Any]
    codes: list[int]
    most_held: int


def manifests(plan: Plan) -> tuple[Object, ...]:
    """The dev overlay, and the example of this size."""
    (example,) = [one for one in rendered("examples") if one["metadata"]["name"] == "parallel"]
    job = copy.deepcopy(dict(example))
    job["spec"] |= {"completions": plan.pods, "parallelism": plan.pods}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["args"] = [
        *("run", "outage", f"--limit={plan.limit}", f"--lease-timeout={plan.lease_timeout}"),
        *("--kill-after=2s", "--ready-file=/run/etcdsem/ready"),
        *("--", "python3", "-c", f"import time; time.sleep({plan.work})"),
    ]
    return (*rendered("overlays/dev"), *in_namespace((job,), "etcdsem"))


def run(plan: Plan, folder: Path) -> Outcome:
    """Run the Job, and take etcd away once its first pods have ended, and others work and wait."""
    with node(manifests(plan), images.of_manifests(), folder) as kubelet:
        (member,) = kubelet.stateful_set("etcd")
        controller = JobController(kubelet, "parallel", back_off=plan.back_off)
        running = threading.Thread(target=controller.run)
        running.start()
        eventually(lambda: len(controller.codes) >= plan.limit, 300, what="the first pods end")
        with connect(f"{kubelet.address(member)}:2379") as client:
            sem = Semaphore(None, "outage", client=client)
            eventually(lambda: len(sem.holders()) == plan.limit, 60, what="the next ones work")
        _outage(member.container, plan.seconds)
        running.join()
        etcd = Reached(f"{kubelet.address(member)}:2379")
        return Outcome(controller.status, controller.codes, assert_clean(etcd, "outage").most_held)


def _outage(etcd: Any, seconds: float) -> None:
    etcd.kill()
    print(f"etcd is away for {seconds:g} s", flush=True)
    time.sleep(seconds)  # as long as it is to last
    etcd.start()


def problems(plan: Plan, outcome: Outcome) -> list[str]:
    """What may not be."""
    found = []
    if outcome.status["condition"] != "Complete" or outcome.status["succeeded"] != plan.pods:
        found.append(f"the Job is not complete: {outcome.status}")
    if outcome.most_held > plan.limit:
        found.append(f"{outcome.most_held} held at once, and the limit is {plan.limit}")
    unexpected = set(outcome.codes) - {0, 70}
    if unexpected:
        found.append(f"pods ended with {sorted(unexpected)}")
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s [options]")
    for field, default in Plan._field_defaults.items():
        flag = f"--{field.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"[{default}]")
    plan = Plan(**vars(parser.parse_args()))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(plan, Path(folder))
    print(f"{time.monotonic() - began:.0f} s: {outcome}")
    found = problems(plan, outcome)
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
