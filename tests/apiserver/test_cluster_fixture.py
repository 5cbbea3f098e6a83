"""The cluster that the other tests of this folder stand on."""

from pathlib import Path

import pytest
from support.eventually import eventually

from devcluster.controlplane import KubectlError


def test_controllers_work_on_what_is_applied(control_plane, namespace):
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "one", "namespace": namespace},
        "spec": {
            "template": {
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "example.local/none:1"}]}
            }
        },
    }
    control_plane.apply(job)
    selector = "-l=batch.kubernetes.io/job-name=one"
    eventually(lambda: control_plane.get("pods", "-n", namespace, selector)["items"])


def test_an_account_may_do_only_what_it_was_given(control_plane, namespace):
    control_plane.kubectl("-n", namespace, "create", "serviceaccount", "nobody")
    kubeconfig = control_plane.account(namespace, "nobody")
    with pytest.raises(KubectlError, match="forbidden"):
        control_plane.kubectl("-n", namespace, "get", "pods", kubeconfig=kubeconfig)


def test_kserve_makes_a_deployment_of_an_inference_service(kserve_plane, namespace):
    runtime = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "plain", "namespace": namespace},
        "spec": {
            "supportedModelFormats": [{"name": "plain", "version": "1"}],
            "protocolVersions": ["v2"],
            "containers": [{"name": "kserve-container", "image": "example.local/plain:1"}],
        },
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "one", "namespace": namespace},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "plain"},
                    "protocolVersion": "v2",
                    "runtime": "plain",
                    "storageUri": "pvc://models/one",
                }
            }
        },
    }
    kserve_plane.apply(runtime)
    kserve_plane.apply(service)
    found = eventually(lambda: kserve_plane.get("deployments", "-n", namespace)["items"])
    assert [d["metadata"]["name"] for d in found] == ["one-predictor"]


def test_its_network_has_no_way_out(control_plane):
    """One interface to the host, which forwards nothing, and no other."""
    interfaces = Path(f"/proc/{control_plane.processes.pids['etcd']}/net/dev").read_text().splitlines()[2:]
    names = {line.split(":")[0].strip() for line in interfaces}
    assert {n for n in names if not n.startswith(("tun", "gre", "sit", "ip"))} == {
        f"lathe-c{control_plane.network.index}",
        "lo",
    }
