"""A Job controller for the player (`kubelet.py`): pods for each index, retries, failure policies.

As Kubernetes documents it: `completions`, `parallelism`, `backoffLimit`, `backoffLimitPerIndex`,
`podFailurePolicy` by exit codes, and the back-off between retries. No node is lost here, so
conditions of pods never match.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.containers.kubelet import Kubelet

BACK_OFF = 10.0
"""Seconds before the first retry; each further one takes twice as long."""


class JobController:
    """Runs one Job. `codes` are the exit codes of its pods, in the order of their ends."""

    def __init__(self, kubelet: Kubelet, name: str, *, back_off: float = BACK_OFF) -> None:
        self._kubelet = kubelet
        self._name = name
        self._spec = kubelet.get("Job", name)["spec"]
        self._back_off = back_off
        self._lock = threading.Lock()
        self.codes: list[int] = []
        self.succeeded: set[int] = set()
        self._failures = 0  # that count
        self._reason = ""

    def run(self) -> None:
        """Run it to its end."""
        indexes = range(self._spec.get("completions", 1))
        with ThreadPoolExecutor(self._spec.get("parallelism", 1)) as pool:
            list(pool.map(self._run_index, indexes))

    @property
    def status(self) -> dict[str, Any]:
        """As in the Job's own: the number of pods that succeeded and failed, and its condition."""
        failed = [code for code in self.codes if code != 0]
        done = {"succeeded": len(self.succeeded), "failed": len(failed)}
        if self._reason:
            return {**done, "condition": "Failed", "reason": self._reason}
        complete = len(self.succeeded) == self._spec.get("completions", 1)
        return {**done, "condition": "Complete" if complete else "Running"}

    def _run_index(self, index: int) -> None:
        retries = 0
        while not self._reason:
            code, _ = self._kubelet.job(self._name, index=index)
            with self._lock:
                self.codes.append(code)
                if code == 0:
                    self.succeeded.add(index)
                    return
                again = self._counted(index, self._action(code), retries)
            if not again:
                return
            time.sleep(self._back_off * 2**retries)
            retries += 1

    def _action(self, code: int) -> str:
        for rule in self._spec.get("podFailurePolicy", {}).get("rules", ()):
            wanted = rule.get("onExitCodes")
            if wanted and (code in wanted["values"]) == (wanted["operator"] == "In"):
                return str(rule["action"])
        return "Count"

    def _counted(self, index: int, action: str, retries: int) -> bool:
        """Is the index tried again?"""
        if action == "FailJob":
            self._reason = "PodFailurePolicy"
        elif action == "Count":
            self._failures += 1
            per_index = self._spec.get("backoffLimitPerIndex")
            if per_index is None and self._failures > self._spec.get("backoffLimit", 6):
                self._reason = "BackoffLimitExceeded"
            elif per_index is not None and retries >= per_index:
                self._reason = "FailedIndexes"
        return not self._reason
