"""etcd, the API server and the controllers: everything of Kubernetes that decides, without a node."""

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from devcluster import identities, network, programs
from devcluster.identities import Identities
from devcluster.network import Network
from devcluster.processes import Processes

Json = dict[str, Any]

API_PORT: Final = 6443
_ETCD: Final = "http://127.0.0.1:2379"
_ETCD_PEER: Final = "http://127.0.0.1:2380"
_SLOW: Final = 60.0
_LIFE: Final = "24h"


class KubectlError(Exception):
    """kubectl ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Cluster:
    """A running control plane."""

    folder: Path
    network: Network
    processes: Processes
    identities: Identities
    kubeconfig: Path
    """Of an administrator."""

    @property
    def url(self) -> str:
        """Of the API server."""
        return self.identities.server

    @property
    def ca(self) -> Path:
        """Certificate of its authority."""
        return self.identities.ca

    def kubectl(self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
        """Standard output of kubectl, as an administrator or by another kubeconfig.

        Raises:
            KubectlError: it ended with an error.
        """
        command = [str(programs.path(_KUBECTL)), *arguments]
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig or self.kubeconfig)}
        done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin, env=environment)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Json:
        """An object or list, as JSON."""
        found: Json = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def apply(self, *objects: Json, manager: str = "devcluster") -> None:
        """Server-side apply."""
        stdin = "\n---\n".join(json.dumps(o) for o in objects)
        arguments = ("apply", "--server-side", "--force-conflicts", f"--field-manager={manager}", "-f", "-")
        self.kubectl(*arguments, stdin=stdin)

    def account(self, namespace: str, name: str) -> Path:
        """A kubeconfig of a service account."""
        token = self.kubectl("-n", namespace, "create", "token", name, f"--duration={_LIFE}").strip()
        return self.identities.bearer(f"{namespace}-{name}", token)

    def stop(self) -> None:
        """End all programs and remove the network."""
        self.processes.stop_all()
        network.remove(self.network)


def start(folder: Path, *, bound: bool) -> Cluster:
    """A control plane in a network of its own.

    Args:
        folder: for certificates, data and logs; emptied by nobody.
        bound: whether everything ends with this process.

    Raises:
        StartError, BuildError, NetworkError: what is missing.
    """
    for program in programs.CONTROL_PLANE:
        programs.path(program)
    net = network.make(os.getpid() if bound else 0)
    processes = Processes(folder / "log", net.inside, bound=bound)
    ids = identities.create(folder / "pki", f"https://{net.address}:{API_PORT}")
    admin = ids.client("admin", "admin", "system:masters")
    cluster = Cluster(folder, net, processes, ids, admin)
    try:
        _etcd(cluster)
        _api_server(cluster)
        _controllers(cluster)
        _default_account(cluster)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _etcd(cluster: Cluster) -> None:
    urls = {
        "listen-client-urls": _ETCD,
        "advertise-client-urls": _ETCD,
        "listen-peer-urls": _ETCD_PEER,
        "initial-advertise-peer-urls": _ETCD_PEER,
        "initial-cluster": f"default={_ETCD_PEER}",
    }
    # Nothing of a test has to survive a power cut.
    command = [str(_program("etcd")), f"--data-dir={cluster.folder / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn"]
    cluster.processes.start("etcd", [*command, *(f"--{k}={v}" for k, v in urls.items())])


def _api_server(cluster: Cluster) -> None:
    net, ids = cluster.network, cluster.identities
    first = next(ip_network(net.services).hosts())
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    ids.certificate("apiserver", *names, "localhost", "127.0.0.1", net.address, str(first))
    ids.certificate("apiserver-kubelet", common_name="apiserver-kubelet", group="system:masters")
    pki = ids.folder
    options = {
        "etcd-servers": _ETCD,
        "bind-address": net.address,
        "advertise-address": net.address,
        "secure-port": API_PORT,
        "cert-dir": cluster.folder / "apiserver",
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "client-ca-file": ids.ca,
        "service-cluster-ip-range": net.services,
        "allow-privileged": "true",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-key-file": pki / "sa.pub",
        "service-account-signing-key-file": pki / "sa.key",
        "kubelet-client-certificate": pki / "apiserver-kubelet.crt",
        "kubelet-client-key": pki / "apiserver-kubelet.key",
        "kubelet-certificate-authority": ids.ca,
        "kubelet-preferred-address-types": "InternalIP",
    }
    cluster.processes.start("kube-apiserver", [_program("kube-apiserver"), *_flags(options)])
    cluster.processes.wait("kube-apiserver", lambda: works(cluster, "--raw", "/readyz"), _SLOW)


def _controllers(cluster: Cluster) -> None:
    config = cluster.identities.client("kcm", "system:kube-controller-manager")
    net, pki = cluster.network, cluster.identities.folder
    options = {
        "kubeconfig": config,
        "authentication-kubeconfig": config,
        "authorization-kubeconfig": config,
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
        "use-service-account-credentials": "true",
        "service-account-private-key-file": pki / "sa.key",
        "root-ca-file": cluster.ca,
        "allocate-node-cidrs": "true",
        "cluster-cidr": net.pods,
        "service-cluster-ip-range": net.services,
        "controllers": "*,-cloud-node-lifecycle-controller,-service-lb-controller,-node-route-controller",
    }
    cluster.processes.start("kube-controller-manager", [_program("kube-controller-manager"), *_flags(options)])


def _default_account(cluster: Cluster) -> None:
    def there() -> bool:
        return works(cluster, "-n", "default", "serviceaccount", "default")

    cluster.processes.wait("kube-controller-manager", there, _SLOW)


def works(cluster: Cluster, *arguments: str) -> bool:
    """Whether `kubectl get` with these arguments succeeds."""
    try:
        cluster.kubectl("get", *arguments)
    except KubectlError:
        return False
    return True


def _flags(options: dict[str, object]) -> Iterable[str]:
    return (f"--{name}={value}" for name, value in options.items())


def _program(name: str) -> Path:
    return programs.path(next(p for p in programs.ALL if p.name == name))


_KUBECTL: Final = next(p for p in programs.CONTROL_PLANE if p.name == "kubectl")
