"""The operator as a process on the test's cluster, and what kubelets and servers would do there."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from devcluster import programs
from devcluster.controlplane import Cluster
from support.eventually import eventually
from support.world import DIGEST, finished

Json = dict[str, Any]

CHART = Path(__file__).parents[2] / "charts" / "lathe"
SYSTEM = "lathe-system"
SOURCE = {"uri": "pvc://files/train.npz", "inputs": [{"name": "image", "field": "x"}], "target": "y"}


def helm(*arguments: str, kubeconfig: Path | None = None) -> str:
    """Standard output of Helm."""
    program = next(p for p in programs.CHART_TOOLS if p.name == "helm")
    environment = os.environ | ({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})
    done = subprocess.run(
        [programs.path(program), *arguments], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(cluster: Cluster, *values: str, namespace: str = SYSTEM) -> Path:
    """The chart without its Deployment's pods; kubeconfig of the operator's account."""
    settings = [part for value in ("replicas=0", *values) for part in ("--set", value)]
    # Other tests on the same cluster may have applied the CustomResourceDefinitions alone.
    command = ("upgrade", "--install", "--take-ownership", "lathe", str(CHART), "-n", namespace, "--create-namespace")
    helm(*command, *settings, kubeconfig=cluster.kubeconfig)
    eventually(lambda: "lathe" in cluster.kubectl("get", "crd", "optimizedmodels.lathe.dev"))
    cluster.kubectl("wait", "--for=condition=Established", "crd/optimizedmodels.lathe.dev", "--timeout=20s")
    return cluster.account(namespace, "lathe-operator")


class Operator:
    """`python -m lathe_operator` with the rights of its account."""

    def __init__(self, kubeconfig: Path, log: Path, **settings: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LATHE_")}
        environment |= {"KUBECONFIG": str(kubeconfig), "LATHE_STORE_URI": "pvc://store/", "LATHE_RESYNC_SECONDS": "5"}
        environment |= {f"LATHE_{name.upper()}": value for name, value in settings.items()}
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lathe_operator", "--port", "0"], env=environment, stdout=output, stderr=output
            )

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; its exit status."""
        with suppress(ProcessLookupError):
            self.process.send_signal(how)
        return self.process.wait(timeout=20)

    @property
    def runs(self) -> bool:
        return self.process.poll() is None


class Servers:
    """Answers for all model servers of a cluster without nodes: each reports the digest that it is told to."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        """By name of the Service."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                _, _, service, *_ = self.path.split("/")
                digest = outer.digests.get(service)
                self.send_response(404 if digest is None else 200)
                self.end_headers()
                body = {"parameters": {"lathe.digest": {"string_value": digest}}}
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """For the setting `server_url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{{namespace}}/{{service}}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Play:
    """One OptimizedModel in a namespace, and the parts of everybody who is missing."""

    def __init__(self, cluster: Cluster, namespace: str, servers: Servers, name: str = "digits") -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.servers = servers
        self.name = name
        self.patience = 30.0
        """Seconds that something may take."""

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def all(self, kind: str) -> list[Json]:
        return list(self.cluster.get(kind, "-n", self.namespace, "-l", f"lathe.dev/model={self.name}")["items"])

    def apply(self, **spec: Any) -> None:
        """The user's document, with other parts of the spec."""
        base = {
            "model": {"uri": "pvc://files/teacher.pt2", "format": "Pt2"},
            "data": {"train": SOURCE, "evaluation": SOURCE},
            "objective": {"task": "Classification", "metric": "accuracy"},
            "recipe": {"stages": [{"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}]},
            "targets": [{"name": "cpu", "hardware": "X86Vnni"}],
        }
        document = {
            "apiVersion": "lathe.dev/v1alpha1",
            "kind": "OptimizedModel",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": base | spec,
        }
        self.cluster.apply(document, manager="user")

    @property
    def model(self) -> Json:
        return self.cluster.get("om", self.name, "-n", self.namespace)

    @property
    def summary(self) -> str:
        return str(self.model.get("status", {}).get("summary", ""))

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason."""
        found = [c for c in self.model.get("status", {}).get("conditions", []) if c["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")

    def says(self, summary: str, within: float = 20.0) -> None:
        """Wait for the one column."""

        def check() -> bool:
            assert self.summary == summary
            return True

        eventually(check, within=within)

    def revision(self) -> Json:
        """The newest ModelRevision, once the model tells of it."""

        def check() -> Json | None:
            model = self.model
            name = model.get("status", {}).get("observedRevision")
            # Of this generation, not of the one before.
            if name is None or model["status"]["observedGeneration"] != model["metadata"]["generation"]:
                return None
            return next((r for r in self.all("mrev") if r["metadata"]["name"] == name), None)

        return eventually(check, within=self.patience)

    def pod(self) -> Json:
        """The pod of the newest revision's Job, once the Job controller has made it."""
        revision = self.revision()["metadata"]["name"]

        def check() -> Json | None:
            pods = [p for p in self.all("pods") if p["metadata"]["labels"].get("lathe.dev/revision") == revision]
            return next((p for p in pods if "batch.kubernetes.io/job-name" in p["metadata"]["labels"]), None)

        return eventually(check, within=self.patience)

    def pod_says(self, pod: Json, **status: Any) -> None:
        """The kubelet writes a pod's status."""
        patch = json.dumps({"status": status})
        self.kubectl("patch", "pod", pod["metadata"]["name"], "--subresource=status", "--type=merge", "-p", patch)

    def pod_ends(self, pod: Json, exit_code: int = 0, message: str = "", reason: str = "") -> None:
        """Its container ends."""
        ended = {"exitCode": exit_code, "reason": reason or ("Completed" if exit_code == 0 else "Error")}
        state = {
            "terminated": {
                **ended,
                "message": message,
                "startedAt": "2026-01-31T12:00:00Z",
                "finishedAt": "2026-01-31T12:01:00Z",
            }
        }
        container = {
            "name": "optimizer",
            "image": "i",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": state,
        }
        self.pod_says(pod, phase="Succeeded" if exit_code == 0 else "Failed", containerStatuses=[container])

    def job_reports(self, revision: Json, segment: int = 0, **status: Any) -> None:
        """What `lathe job` writes."""
        meta = revision["metadata"]
        document = {
            "apiVersion": "lathe.dev/v1alpha1",
            "kind": "ModelRevision",
            "metadata": {"name": meta["name"], "namespace": self.namespace},
            "status": status,
        }
        command = ("apply", "--server-side", "--subresource=status", f"--field-manager=lathe-job-{segment}", "-f", "-")
        self.kubectl(*command, stdin=json.dumps(document))

    def optimizes(self) -> Json:
        """The one Job of the newest revision runs to its end; the revision."""
        pod = self.pod()
        revision = self.revision()
        self.job_reports(revision, **finished(revision))
        self.pod_ends(pod)
        return revision

    def serves(self, digest: str = DIGEST) -> None:
        """The pods of every server come up, and report a digest."""
        eventually(lambda: self.all("isvc"), within=self.patience)
        for service in self.all("isvc"):
            front = f"{service['metadata']['name']}-predictor"
            self.servers.digests[front] = digest

            def pods(front: str = front) -> list[Json]:
                selector = f"serving.kserve.io/inferenceservice={front.removesuffix('-predictor')}"
                return list(self.cluster.get("pods", "-n", self.namespace, "-l", selector)["items"])

            for pod in eventually(pods, within=self.patience):
                ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-31T12:00:00Z"}
                self.pod_says(pod, phase="Running", conditions=[ready])
