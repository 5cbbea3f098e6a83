"""Lathe on a cluster of its own: before KServe, after KServe, upgraded, and removed."""

import shutil

import pytest
import yaml
from support.eventually import eventually
from support.operators import CHART, SYSTEM, Operator, Play, Servers, helm, install
from support.world import finished

from devcluster import controlplane, kserve

KUSTOMIZE = CHART.parents[1] / "kustomize"


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """Kubernetes without KServe."""
    found = controlplane.start(tmp_path_factory.mktemp("cluster"), bound=True)
    yield found
    found.stop()


@pytest.fixture
def older_chart(tmp_path):
    """The chart as the version before might have been: one field and one column less, one variable of another name."""
    folder = tmp_path / "lathe"
    shutil.copytree(CHART, folder)
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart | {"version": "0.0.9", "appVersion": "0.0.9"}))
    file = folder / "files" / "crds" / "optimizedmodels.lathe.dev.yaml"
    crd = yaml.safe_load(file.read_text())
    (version,) = crd["spec"]["versions"]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["suspend"]
    version["additionalPrinterColumns"] = version["additionalPrinterColumns"][:1]
    file.write_text(yaml.safe_dump(crd))
    return folder


def objects(plane):
    """Everything that the release has made, by kind and name."""
    kinds = "deployments,serviceaccounts,roles,rolebindings,services,poddisruptionbudgets"
    found = plane.kubectl("-n", SYSTEM, "get", kinds, "-l", "app.kubernetes.io/part-of=lathe", "-o", "name")
    return set(found.split())


def test_an_upgrade_keeps_models_and_brings_what_is_new(plane, older_chart):
    command = ("install", "lathe", str(older_chart), "-n", SYSTEM, "--create-namespace", "--set", "replicas=0")
    helm(*command, kubeconfig=plane.kubeconfig)
    plane.kubectl("wait", "--for=condition=Established", "crd/optimizedmodels.lathe.dev", "--timeout=20s")
    plane.kubectl("create", "namespace", "before")
    servers = Servers()
    play = Play(plane, "before", servers)
    eventually(lambda: "optimizedmodels" in plane.kubectl("api-resources", "--api-group=lathe.dev"))
    play.apply()
    uid = play.model["metadata"]["uid"]
    before = objects(plane)

    install(plane)
    assert objects(plane) == before
    assert play.model["metadata"]["uid"] == uid
    shown = plane.kubectl("-n", SYSTEM, "get", "deployment", "lathe-operator", "-o", "yaml")
    assert "lathe-operator:0.1.0" in shown
    eventually(lambda: "SPEEDUP" in plane.kubectl("-n", "before", "get", "om"))
    play.apply(suspend=True)
    assert play.model["spec"]["suspend"] is True

    helm("uninstall", "lathe", "-n", SYSTEM, "--wait", kubeconfig=plane.kubeconfig)
    assert play.model["metadata"]["uid"] == uid, "models outlive the release"
    install(plane)
    assert play.model["metadata"]["uid"] == uid
    plane.kubectl("delete", "namespace", "before", "--wait=false")
    servers.close()


def test_without_kserve_models_are_optimised_and_served_once_it_comes(plane, tmp_path):
    servers = Servers()
    account = install(plane)
    operator = Operator(account, tmp_path / "log", server_url=servers.url)
    try:
        plane.kubectl("create", "namespace", "early")
        play = Play(plane, "early", servers)
        play.apply()
        pod = play.pod()
        revision = play.revision()
        play.job_reports(revision, **finished(revision))
        play.pod_ends(pod)
        play.says("Waiting for KServe")
        assert play.condition("RolledOut") == ("False", "KServeMissing")
        kserve.install(plane)
        install(plane, "runtimes.enabled=auto")
        assert "lathe-runtime" in plane.kubectl("get", "clusterservingruntimes", "-o", "name")
        play.serves()
        play.says("Serving cpu 1/1", within=60)
        assert operator.runs
    finally:
        operator.end()
        servers.close()


def test_every_pod_of_lathe_passes_the_restricted_standard(plane):
    """The API server itself judges, by the label of the namespace."""
    labels = "pod-security.kubernetes.io/enforce=restricted"
    plane.kubectl("label", "namespace", SYSTEM, "early", labels, "--overwrite")
    rendered = helm("template", "lathe", str(CHART), "-n", SYSTEM, "--kube-version", "1.36.0")
    deployment = next(d for d in yaml.safe_load_all(rendered) if d and d["kind"] == "Deployment")
    jobs = plane.get("jobs", "-n", "early")["items"]
    assert jobs
    for namespace, template in [
        (SYSTEM, deployment["spec"]["template"]),
        *(("early", job["spec"]["template"]) for job in jobs),
    ]:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "judged", "namespace": namespace},
            "spec": template["spec"],
        }
        created = plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod))
        assert "created" in created


def test_the_kustomize_folders_are_taken_too(plane):
    """After KServe has come, and in the place of the release."""
    for name in ("base", "with-kserve"):
        text = plane.kubectl("kustomize", str(KUSTOMIZE / name))
        plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    assert "lathe-triton" in plane.kubectl("get", "clusterservingruntimes", "-o", "name")
    shown = plane.kubectl("get", "crd", "optimizedmodels.lathe.dev", "--show-labels")
    assert "managed-by=kustomize" not in shown, "the files of the chart are used as they are"
