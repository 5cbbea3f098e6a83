"""A network namespace without uplink, joined to the host by one pair of interfaces with an address at each end."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAMESPACES: Final = Path("/run/netns")
_LIMIT: Final = 64
_PREFIX: Final = "lathe-"


class NetworkError(Exception):
    """The namespace cannot be made."""


@dataclass(frozen=True)
class Network:
    """An isolated network; nothing in it reaches further than the host."""

    index: int
    """Decides its addresses, so that several can exist at once."""
    owner: int
    """Process that it is removed with; 0 for one that stays until it is removed by hand."""

    @property
    def name(self) -> str:
        """Of the namespace."""
        return f"{_PREFIX}{self.index}-{self.owner}"

    @property
    def link(self) -> str:
        """Of the host's interface."""
        return f"{_PREFIX}h{self.index}"

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"10.99.{self.index}.1"

    @property
    def host(self) -> str:
        """Of the host, as the cluster sees it."""
        return f"10.99.{self.index}.2"

    @property
    def services(self) -> str:
        """Range of the cluster's Services."""
        return f"10.{128 + self.index}.0.0/17"

    @property
    def pods(self) -> str:
        """Range of the cluster's pods."""
        return f"10.{128 + self.index}.128.0/17"

    @property
    def inside(self) -> tuple[str, ...]:
        """Command that runs another one in the namespace.

        `ip netns exec` would mount /sys anew and so hide the cgroups from a kubelet.
        """
        return ("nsenter", f"--net={_NAMESPACES / self.name}")


def make(owner: int) -> Network:
    """A new network; those of processes that are gone are removed first.

    Raises:
        NetworkError: no rights (root is needed), or none of the address ranges is free.
    """
    if os.geteuid() != 0:
        raise NetworkError("a test cluster lives in a network namespace of its own, which only root can make")
    for name in _names():
        *_, pid = name.split("-")
        if pid != "0" and not Path(f"/proc/{pid}").exists():
            _ip("netns", "delete", name)
    for index in range(_LIMIT):
        network = Network(index, owner)
        # Creating the interface is what claims the index: it fails where another process was first.
        if _try("link", "add", network.link, "type", "veth", "peer", "name", f"{_PREFIX}c{index}"):
            _set_up(network)
            return network
    raise NetworkError(f"all {_LIMIT} networks are in use; remove one by `ip link delete {_PREFIX}h0`")


def remove(network: Network) -> None:
    """The namespace and its interfaces; nothing where they are gone."""
    _try("link", "delete", network.link)
    _try("netns", "delete", network.name)


def _set_up(network: Network) -> None:
    peer = f"{_PREFIX}c{network.index}"
    _ip("netns", "add", network.name)
    _ip("link", "set", peer, "netns", network.name)
    _ip("address", "add", f"{network.host}/24", "dev", network.link)
    _ip("link", "set", network.link, "up")
    for cidr in (network.services, network.pods):
        _ip("route", "replace", cidr, "via", network.address, "dev", network.link)
    _ip("-n", network.name, "link", "set", "lo", "up")
    _ip("-n", network.name, "address", "add", f"{network.address}/24", "dev", peer)
    _ip("-n", network.name, "link", "set", peer, "up")
    # The API server wants a default route to find its own address; the host forwards nothing.
    _ip("-n", network.name, "route", "add", "default", "via", network.host, "dev", peer)
    subprocess.run([*network.inside, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)


def _names() -> list[str]:
    return sorted(p.name for p in _NAMESPACES.glob(f"{_PREFIX}*-*")) if _NAMESPACES.exists() else []


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NetworkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _try(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], check=False, capture_output=True).returncode == 0
