"""A cluster whose pods really run, with Lathe installed by its chart.

The images of pods are empty but for a skeleton: they mount the environment of this checkout from the node, read-only.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.eventually import eventually
from support.operators import CHART, SYSTEM, helm

from devcluster import controlplane, images, kserve, node
from devcluster.controlplane import Cluster

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
NAMESPACE = "vision"
USER = 65532


def from_node(*paths: Path) -> tuple[list[Json], list[Json]]:
    """Volumes and mounts of folders that pods find where the node has them."""
    wanted = sorted({Path("/usr"), *paths})
    volumes = [{"name": f"node-{i}", "hostPath": {"path": str(p), "type": "Directory"}} for i, p in enumerate(wanted)]
    mounts = [{"name": f"node-{i}", "mountPath": str(p), "readOnly": True} for i, p in enumerate(wanted)]
    return volumes, mounts


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Kubernetes with one node, and KServe."""
    found = controlplane.start(tmp_path_factory.mktemp("cluster"), bound=True)
    try:
        machine = node.start(found)
        kserve.install(found)
        yield found
        machine.stop()
    finally:
        found.stop()


@pytest.fixture(scope="session")
def files(cluster: Cluster) -> Path:
    """What the claims `lathe-files` and `lathe-store` of the namespace hold, as folders of the node."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    folder = cluster.folder / "volumes"
    for name in ("lathe-files", "lathe-store"):
        place = folder / name
        place.mkdir(parents=True)
        shutil.chown(place, USER, USER)
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "capacity": {"storage": "10Gi"},
                    "accessModes": ["ReadWriteMany"],
                    "hostPath": {"path": str(place)},
                    "storageClassName": "",
                    "claimRef": {"namespace": NAMESPACE, "name": name},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {
                    "accessModes": ["ReadWriteMany"],
                    "storageClassName": "",
                    "volumeName": name,
                    "resources": {"requests": {"storage": "10Gi"}},
                },
            },
        )
    return folder / "lathe-files"


@pytest.fixture(scope="session")
def lathe(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """`helm install`, as a user would, with values for this kind of node."""
    from lathe_runtimes.triton import ensure_triton

    triton = ensure_triton()
    triton.root.chmod(0o755)  # pods run as another user than the one whose cache this is
    volumes, mounts = from_node(ROOT, Path(sys.prefix), Path(sys.base_prefix))
    server_volumes, server_mounts = from_node(triton.root, Path(sys.base_prefix))
    values = {
        "replicas": 1,
        "image": {"repository": images.HOST.rpartition(":")[0], "tag": images.HOST.rpartition(":")[2]},
        "extraVolumes": volumes,
        "extraVolumeMounts": mounts,
        "store": {"uri": "pvc://lathe-store/"},
        "files": {"uri": "pvc://lathe-files/"},
        "jobs": {
            "image": images.HOST,
            "onnxImage": images.HOST,
            "volumes": volumes,
            "volumeMounts": mounts,
            # The Triton of these tests has the python backend only.
            "env": [{"name": "LATHE_TRITON_BACKEND", "value": "python"}],
        },
        "runtimes": {
            "lathe": {"image": images.HOST, "volumes": volumes, "volumeMounts": mounts},
            "triton": {
                "image": images.HOST,
                # KServe refuses to set an interpreter's path among the variables of a container.
                "command": ["env", *(f"{k}={v}" for k, v in triton.environment.items()), str(triton.binary)],
                "args": [f"--backend-directory={triton.backends}"],
                "volumes": server_volumes,
                "volumeMounts": server_mounts,
            },
        },
    }
    file = tmp_path_factory.mktemp("values") / "values.json"
    file.write_text(json.dumps(values))
    command = ("install", "lathe", str(CHART), "-n", SYSTEM, "--create-namespace", "-f", str(file))
    helm(*command, kubeconfig=cluster.kubeconfig)

    def available() -> bool:
        found = cluster.get("deployment", "lathe-operator", "-n", SYSTEM)["status"]
        return found.get("availableReplicas") == 1

    eventually(available, within=60)
    return cluster
