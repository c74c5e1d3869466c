"""A kubelet for the manifests: runs their pods with Docker, as they are written.

It does what the manifests ask for, and no more: Downward API, `$(VARIABLE)`, config maps, secrets,
emptyDir and claims, init containers in order, native sidecars with their startup probe, which are
started again if they end, httpGet and exec probes, shared process namespaces, security contexts and
memory limits. Pods that fail are the business of `job_controller.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.containers.pods import Pod
from tests.helpers.docker_etcd import docker_client

Object = Mapping[str, Any]


class Kubelet:
    """One node, with a network of its own. `secrets` are folders by name; images are mapped."""

    def __init__(
        self, objects: Sequence[Object], images: Mapping[str, str], folder: Path,
        secrets: Mapping[str, Path] | None = None,
    ) -> None:  # fmt: skip
        self._objects = objects
        self._images = images
        self._folder = folder
        self._secrets = secrets or {}
        self._clients: list[Any] = []  # one for each thread: their connections are not shared
        self._of_thread = threading.local()
        self._network = self._docker.networks.create(f"kubelet-{folder.name}-{time.time_ns()}")
        self._all: list[Any] = []
        self._pods: dict[str, Pod] = {}
        self._started: list[Pod] = []

    @property
    def _docker(self) -> Any:
        """This thread's client."""
        if not hasattr(self._of_thread, "client"):
            self._of_thread.client = docker_client()
            self._clients.append(self._of_thread.client)
        return self._of_thread.client

    def get(self, kind: str, name: str, namespace: str | None = None) -> Any:
        """An object, by kind and name, in any namespace or in this one."""
        return next(
            one
            for one in self._objects
            if (one["kind"], one["metadata"]["name"]) == (kind, name)
            and namespace in (None, one["metadata"]["namespace"])
        )

    def _template(self, kind: str, name: str) -> Any:
        """The pod template of an object, which knows its namespace."""
        one = self.get(kind, name)
        spec = one["spec"]["jobTemplate"]["spec"] if kind == "CronJob" else one["spec"]
        return {"namespace": one["metadata"]["namespace"], **spec["template"]}

    # -- what makes pods

    def stateful_set(self, name: str) -> list[Pod]:
        """Start its pods, all at once, and wait until they are ready."""
        one = self.get("StatefulSet", name)
        started = [self.start_member(one, f"{name}-{n}") for n in range(one["spec"]["replicas"])]
        for pod in started:
            self._probe_until(pod, self._main(one["spec"]["template"]), "readinessProbe")
        return started

    def start_member(self, one: Object, pod: str) -> Pod:
        """Start one pod of a stateful set, with its own name, address and claim."""
        namespace, spec = one["metadata"]["namespace"], one["spec"]
        template = {"namespace": namespace, **spec["template"]}
        alias = f"{pod}.{spec['serviceName']}.{namespace}.svc"
        self._pods[pod] = self._start(template, pod, self._main(template), alias=alias)
        return self._pods[pod]

    def scale_to_zero(self) -> None:
        """Stop the pods of the stateful set; their claims stay."""
        for name in list(self._pods):
            self._pods.pop(name).container.stop(timeout=30)

    def containers(self, name: str) -> list[Pod]:
        """The containers so far of the pods of a job, in the order of their start."""
        return [pod for pod in self._started if pod.name.startswith(f"{name}-")]

    def is_ready(self, pod: Pod, template: Any) -> bool:
        """Does its readiness probe succeed now?"""
        return self._probe(pod, self._main(template), "readinessProbe")

    def deployment(self, name: str) -> Pod:
        """Start one pod of it, and wait until it is ready."""
        template = self._template("Deployment", name)
        started = self._start(template, f"{name}-0", self._main(template))
        self._probe_until(started, self._main(template), "readinessProbe")
        return started

    def pod(self, name: str) -> Pod:
        """A pod of a stateful set."""
        return self._pods[name]

    @staticmethod
    def _main(template: Any) -> Any:
        return template["spec"]["containers"][0]

    def job(self, name: str, *, kind: str = "Job", index: int = 0) -> tuple[int, str]:
        """Run one pod of a job to its end: exit code and log of its main container, or of the init
        container that fails.
        """
        template = self._template(kind, name)
        pod = f"{name}-{index}-{time.time_ns() % 10**6}"
        extra = {"JOB_COMPLETION_INDEX": str(index), "job": name}
        sidecars = []
        shared: Pod | None = None
        pause = self._pause() if template["spec"].get("shareProcessNamespace") else None
        for one in template["spec"].get("initContainers", ()):
            started = self._start(template, pod, one, extra=extra, pause=pause)
            if one.get("restartPolicy") == "Always":
                self._probe_until(started, one, "startupProbe")
                sidecars.append(started)
                shared = started
            else:
                code = started.end(120)
                if code != 0:
                    return code, started.log()
        main = self._start(
            template, pod, self._main(template), extra=extra, shared=shared, pause=pause
        )
        code = self._end(main, sidecars)
        for sidecar in reversed(sidecars):
            sidecar.container.stop(timeout=template["spec"]["terminationGracePeriodSeconds"])
            assert sidecar.end() == 0 or code != 0, sidecar.log()
        return code, main.log()

    @staticmethod
    def _end(main: Pod, sidecars: Sequence[Pod], seconds: float = 600.0) -> int:
        """The exit code of the main container. A sidecar that ends before it is started again."""
        until = time.monotonic() + seconds
        while sidecars and main.status == "running" and time.monotonic() < until:
            for sidecar in sidecars:
                if sidecar.status == "exited":
                    sidecar.container.start()
            time.sleep(0.2)
        return main.end(max(until - time.monotonic(), 1.0))

    # -- containers

    def _start(
        self, template: Any, pod: str, one: Any, *, alias: str = "", shared: Pod | None = None,
        extra: Mapping[str, str] | None = None, pause: Any = None,
    ) -> Pod:  # fmt: skip
        own = {**template["spec"].get("securityContext", {}), **one.get("securityContext", {})}
        memory = one.get("resources", {}).get("limits", {}).get("memory")
        container = self._docker.containers.create(
            self._images[re.sub(r":[^:/]*$", "", one["image"])],
            one.get("args", []),
            entrypoint=one.get("command"),
            environment=self._environment(one, pod, template["namespace"], extra or {}),
            user=f"{own['runAsUser']}:{own.get('runAsGroup', 0)}" if "runAsUser" in own else None,
            read_only=own.get("readOnlyRootFilesystem", False),
            cap_drop=own.get("capabilities", {}).get("drop", []),
            security_opt=["no-new-privileges"] * (own.get("allowPrivilegeEscalation") is False),
            mem_limit=memory and memory.removesuffix("i").lower(),
            volumes=self._mounts(template, pod, one),
            hostname=None if shared else pod,
            pid_mode=f"container:{pause.id}" if pause else None,
            **(
                {"network_mode": f"container:{shared.container.id}"}
                if shared
                else {"network": self._network.name}
            ),
        )
        self._all.append(container)
        if alias:
            self._network.disconnect(container)
            self._network.connect(container, aliases=[alias])
        container.start()
        started = Pod(f"{pod}/{one['name']}", container)
        self._started.append(started)
        return started

    def _pause(self) -> Any:
        """Process 1 of a pod that shares its process namespace."""
        container = self._docker.containers.create(
            self._images["busybox"], ["infinity"], entrypoint=["/pause"], network_mode="none"
        )
        self._all.append(container)
        container.start()
        return container

    def _environment(
        self, one: Any, pod: str, namespace: str, extra: Mapping[str, str]
    ) -> dict[str, str]:
        fields = {
            "metadata.name": pod,
            "metadata.namespace": namespace,
            "spec.nodeName": "this-node",
            "metadata.labels['batch.kubernetes.io/job-name']": extra.get("job", ""),
        }
        known: dict[str, str] = {}
        for source in one.get("envFrom", ()):
            known |= self.get("ConfigMap", source["configMapRef"]["name"], namespace)["data"]
        for entry in one.get("env", ()):
            source = entry.get("valueFrom", {})
            if "configMapKeyRef" in source:
                key = source["configMapKeyRef"]
                data = self.get("ConfigMap", key["name"], namespace)["data"]
                known[entry["name"]] = data[key["key"]]
            elif "fieldRef" in source:
                known[entry["name"]] = fields[source["fieldRef"]["fieldPath"]]
            else:
                value = re.sub(r"\$\((\w+)\)", lambda m: known.get(m[1], m[0]), entry["value"])
                known[entry["name"]] = value
        return {**{key: value for key, value in extra.items() if key != "job"}, **known}

    def _mounts(self, template: Any, pod: str, one: Any) -> dict[str, dict[str, str]]:
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", ())}
        mounts = {}
        for mount in one.get("volumeMounts", ()):
            volume = volumes.get(mount["name"], {})
            source = self._source(volume, mount["name"], pod, template["namespace"])
            mode = "ro" if mount.get("readOnly") else "rw"
            mounts[str(source)] = {"bind": mount["mountPath"], "mode": mode}
        return mounts

    def _source(self, volume: Any, name: str, pod: str, namespace: str) -> Path:
        """The folder behind a volume. Anybody may read and write in it, as in an emptyDir."""
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if not volume:  # of the template of a stateful set
            claim = f"{name}-{pod}"
        folder = self._folder / (f"claim-{claim}" if claim else f"{pod}-{name}")
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        for one in (volume, *volume.get("projected", {}).get("sources", ())):
            if "configMap" in one:
                files = self.get("ConfigMap", one["configMap"]["name"], namespace)["data"]
                for file, content in files.items():
                    (folder / file).write_text(content)
        secret = volume.get("secret", {})
        if secret:
            source = self._secrets.get(secret["secretName"])
            assert source is not None or secret.get("optional"), secret
            for path in source.iterdir() if source is not None else ():
                (folder / path.name).write_bytes(path.read_bytes())
                (folder / path.name).chmod(0o644)
        return folder

    # -- probes

    def address(self, pod: Pod) -> str:
        """The pod's."""
        pod.container.reload()
        return str(
            pod.container.attrs["NetworkSettings"]["Networks"][self._network.name]["IPAddress"]
        )

    def _probe_until(self, pod: Pod, one: Any, which: str, seconds: float = 120.0) -> None:
        until = time.monotonic() + seconds
        while not self._probe(pod, one, which):
            assert time.monotonic() < until, f"{pod!r}: {which} never succeeds: {pod.log()[-2000:]}"
            assert pod.status == "running", f"{pod!r} ended: {pod.log()[-2000:]}"
            time.sleep(0.2)

    def _probe(self, pod: Pod, one: Any, which: str) -> bool:
        if "exec" in one[which]:
            return pod.exec(*one[which]["exec"]["command"])[0] == 0
        ports = {port["name"]: port["containerPort"] for port in one.get("ports", ())}
        probe = one[which]["httpGet"]
        return self._ok(self.address(pod), ports.get(probe["port"], probe["port"]), probe["path"])

    @staticmethod
    def _ok(address: str, port: int, path: str) -> bool:
        connection = http.client.HTTPConnection(address, port, timeout=5)
        try:
            connection.request("GET", path)
            return 200 <= connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def remove(self) -> None:
        """Remove all that was made."""
        import docker

        for container in self._all:
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True, v=True)
        self._network.remove()
        for client in self._clients:
            client.close()


@contextlib.contextmanager
def node(
    objects: Sequence[Object], images: Mapping[str, str], folder: Path,
    secrets: Mapping[str, Path] | None = None,
) -> Iterator[Kubelet]:  # fmt: skip
    """A node that is cleaned up at the end."""
    kubelet = Kubelet(objects, images, folder, secrets)
    try:
        yield kubelet
    finally:
        kubelet.remove()
