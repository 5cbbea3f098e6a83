"""A real control plane for the tests of this folder: one for each test process, in a network of its own."""

import os
from collections.abc import Iterator
from itertools import count

import pytest

from devcluster import controlplane, kserve
from devcluster.controlplane import Cluster

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """etcd, API server and controllers; no node, so that the pods of a Job are never run."""
    cluster = controlplane.start(tmp_path_factory.mktemp("cluster"), bound=True)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def kserve_plane(control_plane: Cluster) -> Cluster:
    """The same with KServe's kinds, controller and webhooks."""
    kserve.install(control_plane)
    return control_plane


@pytest.fixture
def namespace(control_plane: Cluster) -> Iterator[str]:
    """A namespace for one test, with everything in it deleted afterwards."""
    name = f"t{os.getpid()}-{next(_NUMBERS)}"
    control_plane.kubectl("create", "namespace", name)
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")
