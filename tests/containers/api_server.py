"""As much of a Kubernetes API server as kubectl needs to see and restart one StatefulSet's pods.

The pods are the player's containers (`kubelet.py`): ready if their readiness probe succeeds now.
A deleted pod is stopped; then the StatefulSet's current template makes it again. As with the update
strategy OnDelete, nothing else restarts a pod.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.containers.kubelet import Kubelet
from tests.containers.pods import Pod

RESOURCES = {
    "/api/v1": ("v1", "pods", "Pod"),
    "/apis/apps/v1": ("apps/v1", "statefulsets", "StatefulSet"),
}
VERBS = ["get", "list", "watch", "delete"]


class Members:
    """The pods of a StatefulSet, and its controller. `healthy_at_deletion` is what happened."""

    def __init__(self, kubelet: Kubelet, name: str) -> None:
        self._kubelet = kubelet
        self.set = copy.deepcopy(dict(kubelet.get("StatefulSet", name)))
        self.healthy_at_deletion: list[int] = []
        self._pods: dict[str, tuple[Pod, str]] = {}
        for pod in kubelet.stateful_set(name):
            self._pods[pod.name.split("/")[0]] = pod, self.revision

    @property
    def revision(self) -> str:
        """That of the current template."""
        return hashlib.sha256(json.dumps(self.set["spec"]["template"]).encode()).hexdigest()[:10]

    def objects(self, kind: str) -> dict[str, Any]:
        """All objects of a kind by name, as the API shows them."""
        if kind == "statefulsets":
            status = {"observedGeneration": 1, "updateRevision": self.revision}
            metadata = {**self.set["metadata"], "generation": 1}
            name = metadata["name"]
            return {name: {**self.set, "metadata": metadata, "status": status}}
        return {name: self._shown(name, *pod) for name, pod in list(self._pods.items())}

    def _shown(self, name: str, pod: Pod, revision: str) -> Any:
        ready = str(self._kubelet.is_ready(pod, self.set["spec"]["template"]))
        namespace = self.set["metadata"]["namespace"]
        labels = {"controller-revision-hash": revision}
        metadata = {"name": name, "namespace": namespace, "labels": labels, "uid": pod.container.id}
        status = {"conditions": [{"type": "Ready", "status": ready}]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}

    def delete(self, name: str) -> Any:
        """Stop a pod and make it again, by the current template."""
        pods = self.objects("pods")
        self.healthy_at_deletion.append(
            sum(one["status"]["conditions"][0]["status"] == "True" for one in pods.values())
        )
        pod, _ = self._pods.pop(name)
        threading.Thread(target=self._again, args=(name, pod, self.revision)).start()
        return pods[name]

    def _again(self, name: str, pod: Pod, revision: str) -> None:
        pod.container.stop(timeout=30)
        pod.container.remove()
        self._pods[name] = self._kubelet.start_member(self.set, name), revision


class _Handler(BaseHTTPRequestHandler):
    members: Members

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        if url.path in ("/api", "/apis"):
            self._send(_groups(url.path))
        elif url.path in RESOURCES:
            self._send(_resources(url.path))
        elif (parts := url.path.split("/namespaces/")) and len(parts) == 2:
            kind, _, name = parts[1].partition("/")[2].partition("/")
            name = name or query.get("fieldSelector", "").removeprefix("metadata.name=")
            self._answer(RESOURCES[parts[0]], kind, name, query, single=f"/{name}" in url.path)
        else:
            self._send({"kind": "Status", "status": "Failure", "code": 404}, 404)

    def do_DELETE(self) -> None:
        self._send(self.members.delete(urlsplit(self.path).path.rpartition("/")[2]))

    def _answer(
        self, resource: tuple[str, str, str], kind: str, name: str, query: dict[str, str],
        *, single: bool,
    ) -> None:  # fmt: skip
        version, _, word = resource
        if "watch" in query:
            self._watch(kind, name, None if "sendInitialEvents" not in query else (version, word))
            return
        found = {key: value for key, value in self.members.objects(kind).items() if key == name}
        if not single:
            items = {"items": list(found.values()), "metadata": {"resourceVersion": "1"}}
            self._send({"apiVersion": version, "kind": f"{word}List", **items})
        elif found:
            self._send(found[name])
        else:
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            self._send({**missing, "reason": "NotFound", "code": 404, "message": "not found"}, 404)

    def _watch(self, kind: str, name: str, streamed: tuple[str, str] | None) -> None:
        """The object as it is now, again and again, until the client goes away. Newer kubectl has
        no list before: a bookmark tells it that it has seen all there is.
        """
        self._send(None)
        seen = self.members.objects(kind).get(name)
        with contextlib.suppress(OSError):
            if streamed is not None:
                if seen:
                    self._event("ADDED", seen)
                self._event("BOOKMARK", _initial_events_end(*streamed))
            while True:
                now = self.members.objects(kind).get(name)
                if now:
                    self._event("MODIFIED", now)
                elif seen:
                    self._event("DELETED", seen)
                seen = now
                time.sleep(0.2)  # as often as the player probes

    def _event(self, what: str, one: Any) -> None:
        self.wfile.write(json.dumps({"type": what, "object": one}).encode() + b"\n")
        self.wfile.flush()

    def _send(self, answer: Any, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if answer is not None:
            self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _initial_events_end(version: str, kind: str) -> Any:
    annotations = {"k8s.io/initial-events-end": "true"}
    metadata = {"resourceVersion": "1", "annotations": annotations}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _groups(path: str) -> Any:
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    version = {"groupVersion": "apps/v1", "version": "v1"}
    group = {"name": "apps", "versions": [version], "preferredVersion": version}
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}


def _resources(path: str) -> Any:
    version, plural, kind = RESOURCES[path]
    one = {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind}
    listed = [{**one, "verbs": VERBS}]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": listed}


@contextlib.contextmanager
def serving(members: Members) -> Iterator[str]:
    """Serve them; gives the address for `kubectl --server`."""
    handler = type("Handler", (_Handler,), {"members": members})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
