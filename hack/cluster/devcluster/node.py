"""A node for the cluster: containerd, kubelet, kube-proxy, scheduler and names, so that pods really run."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from devcluster import images, programs
from devcluster.controlplane import Cluster, KubectlError, works

Json = dict[str, Any]

NAME: Final = "lathe-node"
PACKAGES: Final = ("containerd", "runc", "ctr")
_SLOW: Final = 90.0
_DNS_INDEX: Final = 10
_GONE: Final = (KubectlError, subprocess.CalledProcessError, OSError)
"""Cleaning up goes on whatever is already gone."""


class NodeError(Exception):
    """The node cannot be made on this machine."""


@dataclass(frozen=True)
class Node:
    """The one node of a cluster."""

    cluster: Cluster

    @property
    def folder(self) -> Path:
        """Of everything that belongs to it."""
        return self.cluster.folder / "node"

    @property
    def socket(self) -> Path:
        """Of containerd."""
        return self.folder / "containerd.sock"

    def ctr(self, *arguments: str) -> str:
        """Standard output of containerd's own client, in Kubernetes' namespace."""
        command = ["ctr", "-a", str(self.socket), "-n", "k8s.io", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def stop(self) -> None:
        """Remove all pods, then everything that the node has started or mounted."""
        cluster = self.cluster
        for kinds in ("inferenceservices", "deployments,jobs,replicasets", "pods"):
            with suppress(*_GONE):
                cluster.kubectl("delete", kinds, "--all", "-A", "--wait=false", "--grace-period=1")
        _until(lambda: not self._tasks(), 30.0)
        for name in ("coredns", "kube-proxy", "kubelet"):
            if name in cluster.processes.pids:
                cluster.processes.stop(name)
        for task in self._tasks():
            with suppress(*_GONE):
                self.ctr("tasks", "rm", "-f", task)
        if "containerd" in cluster.processes.pids:
            cluster.processes.stop("containerd")
        _unmount_below(cluster.folder)

    def _tasks(self) -> list[str]:
        with suppress(*_GONE):
            return self.ctr("tasks", "ls", "-q").split()
        return []


def start(cluster: Cluster) -> Node:
    """A node with the label `pool=cpu`.

    Raises:
        NodeError: a Debian package is missing.
        StartError: something does not come up.
    """
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    if missing:
        raise NodeError(f"{', '.join(missing)} not found: apt-get install containerd runc containernetworking-plugins")
    node = Node(cluster)
    node.folder.mkdir(parents=True, exist_ok=True)
    try:
        _containerd(node)
        _scheduler(cluster)
        _kubelet(node)
        _proxy(node)
        _names(node)
    except BaseException:
        node.stop()
        raise
    return node


def _containerd(node: Node) -> None:
    folder, pods = node.folder, ip_network(node.cluster.network.pods)
    (folder / "cni").mkdir(exist_ok=True)
    network = {
        "cniVersion": "0.4.0",
        "name": "lathe",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(folder / "ipam"),
                    "ranges": [[{"subnet": str(next(pods.subnets(new_prefix=24)))}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    (folder / "cni" / "10-lathe.conflist").write_text(json.dumps(network))
    # restrict_oom_score_adj: without the right to lower it, runc fails with no word of the reason.
    (folder / "containerd.toml").write_text(f"""
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{node.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
""")
    node.cluster.processes.start("containerd", ["containerd", "-c", folder / "containerd.toml"])

    def answers() -> bool:
        with suppress(*_GONE):
            node.ctr("version")
            return True
        return False

    node.cluster.processes.wait("containerd", answers, _SLOW)
    images.pause(programs.path(programs.PAUSE), folder / "pause.tar")
    images.host(folder / "host.tar", (f"{sys.prefix}/bin", "/usr/local/bin", "/usr/bin", "/bin"))
    for archive in ("pause.tar", "host.tar"):
        node.ctr("images", "import", str(folder / archive))


def _scheduler(cluster: Cluster) -> None:
    config = cluster.identities.client("scheduler", "system:kube-scheduler")
    flags = [f"--{name}={config}" for name in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")]
    command = [str(_program("kube-scheduler")), *flags, "--bind-address=127.0.0.1", "--leader-elect=false"]
    cluster.processes.start("kube-scheduler", command)


def _kubelet(node: Node) -> None:
    cluster, folder = node.cluster, node.folder
    address = cluster.network.address
    cluster.identities.certificate("kubelet-server", NAME, address, "127.0.0.1")
    config = cluster.identities.client("kubelet", f"system:node:{NAME}", "system:nodes")
    (folder / "resolv.conf").write_text(f"nameserver {_dns(cluster)}\n")
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(cluster.ca)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(cluster.identities.folder / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(cluster.identities.folder / "kubelet-server.key"),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "clusterDNS": [_dns(cluster)],
        "clusterDomain": "cluster.local",
        "resolvConf": str(folder / "resolv.conf"),
        "healthzBindAddress": "127.0.0.1",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # Images come by import only, and could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "volumePluginDir": str(folder / "plugins"),
        "podLogsDir": str(folder / "podlogs"),
    }
    (folder / "kubelet.json").write_text(json.dumps(settings))
    command = [
        str(_program("kubelet")),
        f"--config={folder / 'kubelet.json'}",
        f"--kubeconfig={config}",
        f"--hostname-override={NAME}",
        f"--node-ip={address}",
        f"--root-dir={folder / 'kubelet'}",
        f"--cert-dir={folder / 'kubelet' / 'pki'}",
    ]
    cluster.processes.start("kubelet", command)

    def ready() -> bool:
        if not works(cluster, "node", NAME):
            return False
        found = cluster.get("node", NAME)["status"].get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in found)

    cluster.processes.wait("kubelet", ready, _SLOW)
    cluster.kubectl("label", "node", NAME, "pool=cpu", "--overwrite")


def _proxy(node: Node) -> None:
    cluster = node.cluster
    config = cluster.identities.client("kube-proxy", "system:kube-proxy")
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": cluster.network.pods,
        "hostnameOverride": NAME,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": {"kubeconfig": str(config)},
        # Limits of the kernel that belong to the machine, not to a namespace of it.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    (node.folder / "proxy.json").write_text(json.dumps(settings))
    cluster.processes.start("kube-proxy", [str(_program("kube-proxy")), f"--config={node.folder / 'proxy.json'}"])


def _names(node: Node) -> None:
    """CoreDNS as a process of the node, behind a Service without a selector."""
    cluster = node.cluster
    meta = {"namespace": "kube-system"}
    rules = [
        {
            "apiGroups": [""],
            "resources": ["services", "pods", "namespaces", "endpoints"],
            "verbs": ["list", "watch"],
        },
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    protocols = (("dns", "UDP"), ("dns-tcp", "TCP"))
    cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "coredns", **meta}},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": "coredns"}, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", **meta}],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", **meta},
            "spec": {
                "clusterIP": _dns(cluster),
                "ports": [{"name": n, "port": 53, "protocol": p, "targetPort": 1053} for n, p in protocols],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "kube-dns-1", "labels": {"kubernetes.io/service-name": "kube-dns"}, **meta},
            "addressType": "IPv4",
            "ports": [{"name": n, "port": 1053, "protocol": p} for n, p in protocols],
            "endpoints": [{"addresses": [cluster.network.address], "conditions": {"ready": True}}],
        },
    )
    config = cluster.account("kube-system", "coredns")
    (node.folder / "Corefile").write_text(
        f".:1053 {{\n bind {cluster.network.address}\n errors\n"
        f" kubernetes cluster.local in-addr.arpa {{\n  kubeconfig {config}\n }}\n}}\n"
    )
    cluster.processes.start("coredns", [str(_program("coredns")), "-conf", node.folder / "Corefile"])


def _dns(cluster: Cluster) -> str:
    return str(ip_network(cluster.network.services)[_DNS_INDEX])


def _program(name: str) -> Path:
    return programs.path(next(p for p in programs.NODE if p.name == name))


def _unmount_below(folder: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)


def _until(check: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.2)
