"""A revision, the volumes that its Jobs mount, and `lathe job` run on them as a pod does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from devcluster.controlplane import Cluster
from lathe_operator.plan.observed import Observed
from lathe_operator.plan.resolve import parse, resolve
from lathe_operator.plan.revision import revision
from lathe_operator.settings import Settings
from support.operators import install
from support.projects import CLASSES, SIZE, images
from support.servers import build

MEMORY = "4Gi"
STATIC = {
    "name": "int8",
    "type": "Quantize",
    "quantize": {"method": "Static"},
    "resources": {"memory": MEMORY},
}
EXPORT = {"name": "onnx", "type": "Export", "export": {"opset": 20}}
SETTINGS = Settings(store_uri="pvc://lathe-store/kept", files_uri="pvc://lathe-files/")
Json = dict[str, Any]


def spec() -> Json:
    """Of a model that is quantised by the first Job and exported by the second."""
    source = {"inputs": [{"name": "image", "field": "x"}], "target": "y"}
    return {
        "model": {"uri": "file:model.onnx", "format": "Onnx"},
        "data": {
            "train": {"uri": "file:train.npz", **source},
            "calibration": {"from": "Train", "samples": 64},
            "evaluation": {"uri": "test.npz", **source},
        },
        "objective": {"task": "Classification", "metric": "accuracy"},
        "recipe": {"stages": [STATIC, EXPORT]},
        "gates": [{"name": "accuracy", "metric": "accuracy", "maxDrop": "0.05", "minSamples": 100}],
        "targets": [{"name": "cpu", "hardware": "X86Avx2"}],
    }


def revision_of(document: Json, namespace: str, settings: Settings = SETTINGS) -> Json:
    """What the operator makes of a spec."""
    raw = {
        "apiVersion": "lathe.dev/v1alpha1",
        "kind": "OptimizedModel",
        "metadata": {"name": "patterns", "namespace": namespace, "uid": "0", "generation": 1},
        "spec": document,
    }
    found = revision(resolve(parse(raw), Observed(raw), settings), raw)
    del found["metadata"]["ownerReferences"]
    return found


@dataclass
class Pod:
    """A folder with all that a Job's pod has: volumes, scratch, the file of its revision, a termination log."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    """Command that runs the container's."""
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in (self.files, self.store, self.scratch):
            path.mkdir(parents=True, exist_ok=True)
        self.log.touch()

    @property
    def volumes(self) -> Path:
        return self.folder / "volumes"

    @property
    def files(self) -> Path:
        return self.volumes / "lathe-files"

    @property
    def store(self) -> Path:
        return self.volumes / "lathe-store" / "kept"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def log(self) -> Path:
        return self.folder / "termination-log"

    @property
    def reason(self) -> str:
        """Why the last Job ended, as Kubernetes reads it."""
        return self.log.read_text()

    def give(self, revision: Json) -> None:
        """Mount a revision."""
        meta = {key: revision["metadata"][key] for key in ("name", "namespace", "uid") if key in revision["metadata"]}
        value = {"apiVersion": revision["apiVersion"], "kind": revision["kind"], "metadata": meta}
        (self.folder / "revision.json").write_text(json.dumps({**value, "spec": revision["spec"]}))

    def account(self, token: str, authority: Path, host: str, port: int) -> None:
        """Mount a service account."""
        folder = self.folder / "account"
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(token)
        (folder / "ca.crt").write_bytes(authority.read_bytes())
        self.environment |= {
            "LATHE_ACCOUNT": str(folder),
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": str(port),
        }

    @property
    def variables(self) -> dict[str, str]:
        """Environment of its container."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.scratch),
            "TMPDIR": str(self.scratch),
            "OMP_NUM_THREADS": "1",
            "LATHE_VOLUMES": str(self.volumes),
            "LATHE_SCRATCH": str(self.scratch),
            "LATHE_TERMINATION_LOG": str(self.log),
            **self.environment,
        }

    def start(self, segment: int, *arguments: str) -> subprocess.Popen[str]:
        """Start the Job of a segment."""
        command = [*self.before, sys.executable, "-m", "lathe_cli.main", "job", str(self.folder / "revision.json")]
        process = subprocess.Popen(
            [*command, "--segment", str(segment), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.variables,
            cwd=self.folder,
        )
        self.processes.append(process)
        return process

    def end(self) -> None:
        """Leave nothing running, whatever became of the test."""
        for process in self.processes:
            process.kill()
            with process:
                pass

    def run(self, segment: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the Job of a segment to its end."""
        process = self.start(segment, *arguments)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def with_kinds(cluster: Cluster) -> Cluster:
    """The cluster, with Lathe's kinds."""
    install(cluster)
    for kind in ("modelrevisions", "optimizedmodels"):
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{kind}.lathe.dev", "--timeout=20s")
    return cluster


def make_classifier(path: Path, hidden: int = 0) -> None:
    """An ONNX classifier of `support.projects.images`; `hidden` numbers of every sample are computed for nothing."""
    patterns = np.random.default_rng(1234).standard_normal((CLASSES, SIZE * SIZE)).astype(np.float32)
    weights = {"patterns": np.ascontiguousarray(patterns.T)}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "patterns"], ["scores"]),
    ]
    if hidden:
        weights["idle"] = np.zeros((SIZE * SIZE, hidden), np.float32)
        nodes += [
            helper.make_node("MatMul", ["flat", "idle"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
        ]
    nodes.append(helper.make_node("Add", ["scores", "zero"], ["logits"]) if hidden else _same("scores", "logits"))
    inputs, outputs = (("image", "FP32", (-1, 1, SIZE, SIZE)),), (("logits", "FP32", (-1, CLASSES)),)
    build(path, nodes, inputs, outputs, weights)


def _same(source: str, target: str) -> Any:
    return helper.make_node("Identity", [source], [target])


def make_pod(folder: Path) -> Pod:
    """A pod with an ONNX classifier and its data on the volume `lathe-files`."""
    pod = Pod(folder)
    make_classifier(pod.files / "model.onnx")
    for name, samples, seed in (("train", 200, 1), ("test", 200, 2)):
        x, y = images(samples, seed)
        np.savez(pod.files / f"{name}.npz", x=x, y=y)
    return pod
