"""`python -m devcluster build|up|down`: a cluster to try things out on; its kubeconfig is printed."""

import argparse
import json
import shutil
import sys

from devcluster import controlplane, kserve, network, programs
from devcluster.network import Network
from devcluster.processes import Processes


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="devcluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build every program into the cache")
    up = commands.add_parser("up", help="start a cluster, unless it runs")
    up.add_argument("--no-kserve", action="store_true", help="Kubernetes alone")
    commands.add_parser("down", help="stop what `up` has started")
    arguments = parser.parse_args()
    match arguments.command:
        case "build":
            build()
        case "up":
            start(with_kserve=not arguments.no_kserve)
        case _:
            stop()


def build() -> None:
    """Every program that is not in the cache yet."""
    for program in programs.ALL:
        sys.stdout.write(f"{programs.path(program)}\n")


def start(*, with_kserve: bool) -> None:
    """A cluster that stays until `stop`."""
    folder = programs.cache() / "up"
    kubeconfig = folder / "pki" / "admin.kubeconfig"
    if _running().pids:
        sys.stdout.write(f"already running: export KUBECONFIG={kubeconfig}\n")
        return
    stop()
    cluster = controlplane.start(folder, bound=False)
    (folder / "network.json").write_text(json.dumps({"index": cluster.network.index, "owner": 0}))
    if with_kserve:
        kserve.install(cluster)
    sys.stdout.write(f"export KUBECONFIG={kubeconfig} PATH={programs.path(programs.CONTROL_PLANE[3]).parent}:$PATH\n")


def stop() -> None:
    """End what `start` began, by its process ids, and forget its data."""
    folder = programs.cache() / "up"
    _running().stop_all()
    where = folder / "network.json"
    if where.exists():
        network.remove(Network(**json.loads(where.read_text())))
    shutil.rmtree(folder, ignore_errors=True)


def _running() -> Processes:
    return Processes.adopt(programs.cache() / "up" / "log", ())


if __name__ == "__main__":
    main()
