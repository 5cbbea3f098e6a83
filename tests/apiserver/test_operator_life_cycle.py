"""What a user sees of the operator on a real API server with a real KServe; only nodes are played."""

import json
import shutil

import pytest
from support.eventually import eventually
from support.operators import Operator, Play, Servers, install
from support.world import DIGEST

from devcluster.controlplane import KubectlError


@pytest.fixture(scope="module")
def servers():
    found = Servers()
    yield found
    found.close()


@pytest.fixture(scope="module")
def operator(kserve_plane, servers, tmp_path_factory):
    kubeconfig = install(kserve_plane, "runtimes.enabled=true")
    found = Operator(kubeconfig, tmp_path_factory.mktemp("operator") / "log", server_url=servers.url)
    yield found
    assert found.runs, found.log.read_text()
    assert found.end() == 0
    lines = [json.loads(line) for line in found.log.read_text().splitlines()]
    wrong = [x for x in lines if x["level"] == "error" and x["logger"].startswith("lathe_operator")]
    assert wrong == []


@pytest.fixture
def play(operator, kserve_plane, namespace, servers):
    return Play(kserve_plane, namespace, servers)


def serving(play):
    play.apply()
    play.optimizes()
    play.serves()
    play.says("Serving cpu 1/1", within=30)


def test_an_applied_document_ends_as_a_served_model(play):
    play.apply()
    play.says("Optimizing int8 (1 of 2)")
    revision = play.revision()
    running = {"name": "int8", "state": "Running", "percent": 41, "etaSeconds": 118}
    play.job_reports(revision, stages=[running])
    play.says("Optimizing int8 41 % (2m)", within=5)
    play.optimizes()
    play.says("Starting cpu 0/1")
    play.serves()
    play.says("Serving cpu 1/1")
    assert play.condition("Ready") == ("True", "AllConditionsHold")
    columns = play.kubectl("get", "om", "digits").splitlines()[1].split("   ")
    shown = [c.strip() for c in columns if c.strip()]
    assert shown[1:7] == [
        "Serving cpu 1/1",
        revision["spec"]["hash"].removeprefix("sha256:")[:6],
        "99.6 → 99.4 %",
        "27.4x",
        "4.9x",
        "True",
    ]
    assert play.model["status"]["targets"][0]["serving"] == DIGEST
    assert play.kubectl("get", "isvc").count("True") >= 1
    assert len(play.all("jobs")) == 1


def test_a_deleted_model_leaves_nothing(play):
    serving(play)
    play.kubectl("delete", "om", "digits", "--cascade=background")
    kinds = "mrev,jobs,isvc,deployments,services,configmaps,roles,rolebindings,pods"
    eventually(lambda: not play.all(kinds), within=60)


def test_the_stage_pod_may_report_on_its_own_revision_only(play):
    play.apply()
    account = play.pod()["spec"]["serviceAccountName"]
    me = f"--as=system:serviceaccount:{play.namespace}:{account}"
    can = {
        ("patch", f"modelrevisions/{account}", "--subresource=status"): "yes",
        ("patch", "modelrevisions/other", "--subresource=status"): "no",
        ("patch", f"modelrevisions/{account}", "--subresource="): "no",
        ("get", "secrets", "--subresource="): "no",
        ("patch", "optimizedmodels/digits", "--subresource=status"): "no",
    }
    found = {}
    for verb, what, subresource in can:
        try:
            found[verb, what, subresource] = play.kubectl("auth", "can-i", verb, what, subresource, me).strip()
        except Exception:  # noqa: BLE001 (kubectl says no by its exit status)
            found[verb, what, subresource] = "no"
    assert found == can


def test_replicas_and_a_new_recipe_change_what_they_must(play):
    serving(play)
    first = play.revision()["metadata"]["name"]
    play.apply(targets=[{"name": "cpu", "hardware": "X86Vnni", "serving": {"replicas": {"min": 2}}}])
    eventually(lambda: play.all("deployments")[0]["spec"]["replicas"] == 2)
    assert len(play.all("mrev")) == 1
    play.apply(seed=3)
    eventually(lambda: play.revision()["metadata"]["name"] != first)
    play.optimizes()
    play.serves()
    eventually(lambda: play.model["status"]["servingRevision"] != first, within=40)
    eventually(lambda: len(play.all("isvc")) == 1)


def test_a_superseded_job_is_stopped(play):
    play.apply()
    first = play.pod()["metadata"]["labels"]["batch.kubernetes.io/job-name"]
    play.apply(seed=9)
    eventually(lambda: [first] != [j["metadata"]["name"] for j in play.all("jobs")] != [])
    eventually(lambda: len(play.all("jobs")) == 1)
    assert first not in [j["metadata"]["name"] for j in play.all("jobs")]


FAILURES = {
    "bad input": (2, "spec.data.train: x has 9 columns", "", "Refused: spec.data.train: x has 9 columns", "BadInput"),
    "out of memory": (137, "", "OOMKilled", "Stage import ran out of memory", "OutOfMemory"),
}


@pytest.mark.parametrize(("code", "message", "why", "summary", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_job_that_fails_is_explained(play, code, message, why, summary, reason):
    play.apply(jobs={"retries": 0})
    play.pod_ends(play.pod(), code, message, why)
    play.says(summary, within=10)
    assert play.condition("Ready") == ("False", reason)


def test_an_image_that_cannot_be_pulled_shows_within_seconds(play):
    play.apply(jobs={"image": "example.local/nowhere:1"})
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    status = {"name": "optimizer", "image": "example.local/nowhere:1", "imageID": "", "ready": False, "restartCount": 0}
    play.pod_says(play.pod(), phase="Pending", containerStatuses=[{**status, "state": waiting}])
    play.says("Cannot pull image example.local/nowhere:1", within=5)


def test_a_document_that_only_the_operator_can_refuse_is_explained(play):
    play.apply(model={"uri": "file:teacher.pt2", "format": "Pt2"})
    play.says("Cannot reach its files", within=5)
    assert play.condition("InputsResolved") == ("False", "UnreachablePath")


def test_what_the_api_server_refuses_is_told(play):
    """A policy of the cluster is in the way; when it is gone, the work goes on."""
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": f"no-jobs-{play.namespace}"},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": play.namespace}},
                "resourceRules": [
                    {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
                ],
            },
            "validations": [{"expression": "false", "message": "ask the platform team"}],
        },
    }
    binding = {
        **policy,
        "kind": "ValidatingAdmissionPolicyBinding",
        "spec": {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]},
    }
    play.cluster.apply(policy, binding)
    probe = ("create", "job", "probe", "--image=none", "--dry-run=server")

    def denied():
        try:
            play.kubectl(*probe)
        except KubectlError as error:
            return "ask the platform team" in str(error)
        return False

    eventually(denied)
    play.apply()
    eventually(lambda: play.condition("Optimized") == ("False", "RefusedByServer"))
    assert play.summary.startswith("The API server refuses Job digits-")
    ready = next(c for c in play.model["status"]["conditions"] if c["type"] == "Ready")
    assert "ask the platform team" in ready["message"]
    for obj in (binding, policy):
        play.cluster.kubectl("delete", obj["kind"].lower(), obj["metadata"]["name"])
    play.says("Optimizing int8 (1 of 2)", within=60)


def test_a_recipe_kept_elsewhere_is_followed_when_it_comes(play):
    play.apply(recipe={"ref": {"name": "mine"}})
    eventually(lambda: play.condition("RecipeValid")[0] == "False")
    recipe = {
        "apiVersion": "lathe.dev/v1alpha1",
        "kind": "OptimizationRecipe",
        "metadata": {"name": "mine", "namespace": play.namespace},
        "spec": {"stages": [{"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}]},
    }
    play.cluster.apply(recipe)
    play.says("Optimizing int8 (1 of 2)", within=5)


def test_events_come_on_change_only(play):
    serving(play)
    before = play.kubectl("get", "events", "-o", "name").count("\n")
    play.cluster.kubectl("-n", play.namespace, "annotate", "om", "digits", "note=1")
    play.says("Serving cpu 1/1")
    eventually(lambda: play.kubectl("get", "events", "-o", "name").count("\n") == before)


@pytest.mark.parametrize("way", ["client-side", "server-side"])
def test_kubectl_diff_stays_empty_for_a_whole_life(play, tmp_path, way):
    document = tmp_path / "model.yaml"
    play.apply()
    model = play.model
    play.kubectl("delete", "om", "digits")
    clean = {k: model[k] for k in ("apiVersion", "kind", "spec")} | {
        "metadata": {"name": "digits", "namespace": play.namespace}
    }
    document.write_text(json.dumps(clean))
    side = ["--server-side"] if way == "server-side" else []
    assert shutil.which("diff")
    play.kubectl("apply", *side, "-f", str(document))
    play.kubectl("diff", *side, "-f", str(document))
    play.optimizes()
    play.kubectl("diff", *side, "-f", str(document))
    play.serves()
    play.says("Serving cpu 1/1", within=30)
    play.kubectl("diff", *side, "-f", str(document))
    metadata = play.model["metadata"]
    assert "finalizers" not in metadata
    assert set(metadata.get("annotations", {})) <= {"kubectl.kubernetes.io/last-applied-configuration"}
