"""KServe's controller beside the cluster, in Standard mode: no Knative, no Istio, no Gateway."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from devcluster import programs
from devcluster.controlplane import Cluster, KubectlError

Json = dict[str, Any]

NAMESPACE: Final = "kserve"
_WEBHOOKS: Final = "https://127.0.0.1:9443"
_HEALTH: Final = "http://127.0.0.1:18081/readyz"
_SLOW: Final = 120.0


def install(cluster: Cluster, storage_initializer: str = "kserve/storage-initializer:v0.20.0") -> None:
    """CRDs, configuration and roles, then the controller under its own account, then its webhooks.

    Args:
        cluster: a running control plane.
        storage_initializer: image that fetches models from object stores.

    Raises:
        StartError: the controller does not come up.
    """
    config = programs.kserve_folder() / "config"
    install_crds(cluster, config)
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    cluster.apply(_configuration(config, storage_initializer), *_roles(config))
    start(cluster)
    # Only now: a webhook that does not answer refuses every object.
    authority = base64.b64encode(cluster.ca.read_bytes()).decode()
    cluster.apply(*_webhooks(config, authority))


def install_crds(cluster: Cluster, config: Path) -> None:
    """The kinds alone."""
    folder = config / "crd" / "full"
    files = [*folder.glob("serving.kserve.io_*.yaml"), *(folder / "clusterstoragecontainer").glob("serving*.yaml")]
    found = [d for f in sorted(files) for d in _documents(f)]
    cluster.apply(*found)
    for crd in found:
        cluster.kubectl("wait", "--for=create", f"crd/{crd['metadata']['name']}", "--timeout=30s")

    def established() -> bool:
        names = [f"crd/{crd['metadata']['name']}" for crd in found]
        try:
            cluster.kubectl("wait", "--for=condition=Established", "--timeout=1s", *names)
        except KubectlError:
            # Right after an apply there are no conditions yet, which `wait` takes for an error.
            return False
        return True

    cluster.processes.wait("kube-apiserver", established, _SLOW)


def start(cluster: Cluster) -> None:
    """The controller; also after it was stopped."""
    certificates = cluster.folder / "kserve" / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True, exist_ok=True)
    cluster.identities.certificate("kserve-webhook", "localhost", "127.0.0.1")
    for kind in ("crt", "key"):
        shutil.copy(cluster.identities.folder / f"kserve-webhook.{kind}", certificates / f"tls.{kind}")
    kubeconfig = cluster.account(NAMESPACE, "kserve-controller-manager")
    command = [
        str(programs.path(programs.KSERVE_MANAGER)),
        "-metrics-addr=127.0.0.1:18080",
        "-health-probe-addr=127.0.0.1:18081",
        "-webhook-port=9443",
        "-leader-elect=false",
    ]
    environment = {
        "POD_NAMESPACE": NAMESPACE,
        "TMPDIR": str(cluster.folder / "kserve"),
        "KUBECONFIG": str(kubeconfig),
    }
    cluster.processes.start("kserve-manager", command, environment)
    asked = [*cluster.network.inside, "curl", "-sf", _HEALTH]

    def ready() -> bool:
        return subprocess.run(asked, check=False, capture_output=True).returncode == 0

    cluster.processes.wait("kserve-manager", ready, _SLOW)


def _configuration(config: Path, storage_initializer: str) -> Json:
    (found,) = _documents(config / "configmap" / "inferenceservice.yaml")
    data = found["data"]
    del data["_example"]
    ingress = json.loads(data["ingress"])
    ingress |= {
        "disableIngressCreation": True,
        "disableIstioVirtualHost": True,
        "ingressDomain": "svc.cluster.local",
    }
    initializer = json.loads(data["storageInitializer"]) | {"image": storage_initializer}
    data["deploy"] = json.dumps({"defaultDeploymentMode": "Standard"})
    data["ingress"] = json.dumps(ingress)
    data["storageInitializer"] = json.dumps(initializer)
    found["metadata"]["namespace"] = NAMESPACE
    return found


def _roles(config: Path) -> Iterator[Json]:
    names = ("service_account", "role", "leader_election_role", "role_binding", "leader_election_role_binding")
    for name in names:
        for found in _documents(config / "rbac" / f"{name}.yaml"):
            if not found["kind"].startswith("Cluster"):
                found["metadata"]["namespace"] = NAMESPACE
            for subject in found.get("subjects", []):
                subject["namespace"] = NAMESPACE
            yield found


def _webhooks(config: Path, authority: str) -> Iterator[Json]:
    for found in _documents(config / "webhook" / "manifests.yaml"):
        for hook in found["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            hook["clientConfig"] = {"url": _WEBHOOKS + path, "caBundle": authority}
        yield found


def _documents(file: Path) -> list[Json]:
    return [d for d in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader) if d]
