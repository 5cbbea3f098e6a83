"""What is applied: Jobs and servers, field by field where it matters."""

from copy import deepcopy

import pytest
from support.world import World

from lathe_operator.plan import names
from lathe_operator.plan.observed import name_of
from lathe_operator.settings import Settings

SOURCE = {"uri": "pvc://sets/train.npz", "inputs": [{"name": "image", "field": "x"}], "target": "y"}
INT8 = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}
AWARE = {"name": "int8", "type": "Quantize", "quantize": {"method": "QuantizationAware"}}
SPEC = {
    "model": {"uri": "pvc://files/teacher.pt2", "format": "Pt2"},
    "data": {"train": SOURCE, "evaluation": {**SOURCE, "uri": "s3://sets/test.npz"}},
    "objective": {"task": "Classification", "metric": "accuracy"},
    "recipe": {"stages": [INT8]},
    "targets": [{"name": "cpu", "hardware": "X86Vnni"}],
    "store": {"uri": "pvc://store/", "credentials": {"name": "keys"}},
}
SETTINGS = Settings(
    optimizer_image="torch:1",
    optimizer_onnx_image="onnx:1",
    stage_volumes=({"name": "x", "emptyDir": {}},),
    stage_mounts=({"name": "x", "mountPath": "/x"},),
    stage_env=({"name": "A", "value": "1"},),
)


def first_job(**changes):
    world = World({**deepcopy(SPEC), **changes}, SETTINGS)
    world.settle()
    return world.the("Job")


def pod(**changes):
    return first_job(**changes)["spec"]["template"]["spec"]


def container(**changes):
    return pod(**changes)["containers"][0]


def test_a_stage_pod_keeps_the_restricted_standard_and_can_write_to_its_scratch_only():
    found = pod()
    assert found["securityContext"]["runAsNonRoot"] is True
    (main,) = found["containers"]
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert {e["name"]: e["value"] for e in main["env"] if e["name"] in ("HOME", "TMPDIR")} == {
        "HOME": "/mnt/lathe/scratch",
        "TMPDIR": "/mnt/lathe/scratch",
    }


def test_every_claim_that_is_named_is_mounted_under_its_name():
    found = pod()
    claims = {v["persistentVolumeClaim"]["claimName"] for v in found["volumes"] if "persistentVolumeClaim" in v}
    assert claims == {"files", "sets", "store"}
    mounts = {m["mountPath"] for m in found["containers"][0]["volumeMounts"]}
    assert {f"/mnt/lathe/volumes/{claim}" for claim in claims} <= mounts


def test_what_the_chart_adds_is_there():
    found = pod()
    assert {"name": "x", "emptyDir": {}} in found["volumes"]
    assert {"name": "x", "mountPath": "/x"} in found["containers"][0]["volumeMounts"]
    assert {"name": "A", "value": "1"} in found["containers"][0]["env"]
    assert found["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]


SPARSE = {"name": "sparse", "type": "Prune", "prune": {"method": "GlobalMagnitude", "sparsity": "0.5"}}
ONNX = {"uri": "pvc://files/model.onnx", "format": "Onnx"}
IMAGES = {
    "a network of torch": ({}, "torch:1"),
    "an ONNX file that is quantised": ({"model": ONNX}, "onnx:1"),
    "an ONNX file whose weights are pruned": ({"model": ONNX, "recipe": {"stages": [SPARSE]}}, "onnx:1"),
    "an ONNX file that is trained": ({"model": ONNX, "recipe": {"stages": [AWARE]}}, "torch:1"),
    "an image of the user's": ({"jobs": {"image": "mine:2"}}, "mine:2"),
}


@pytest.mark.parametrize(("changes", "image"), IMAGES.values(), ids=IMAGES)
def test_the_smallest_image_that_can_do_it_is_taken(changes, image):
    assert container(**changes)["image"] == image


def test_bad_input_is_not_tried_again_and_a_lost_node_does_not_count():
    rules = first_job()["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [2]
    assert rules[0]["action"] == "FailJob"
    assert rules[1]["action"] == "Ignore"


def test_limits_and_times_come_from_the_document():
    stage = {**INT8, "resources": {"cpu": "500m", "memory": "2Gi"}, "timeout": "1h"}
    found = first_job(recipe={"stages": [stage]}, jobs={"retries": 1, "keepFinished": "2h"})["spec"]
    assert found["backoffLimit"] == 1
    assert found["ttlSecondsAfterFinished"] == 7200
    assert found["activeDeadlineSeconds"] == 2 * (3600 + 3600)
    resources = found["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["cpu"] == "500m"
    assert int(resources["limits"]["memory"]) > 2 * 2**30


def test_pods_go_where_the_pool_says():
    pool = {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClassName": "low",
        "serviceAccountName": "mine",
        "runtimeClassName": "nvidia",
    }
    found = pod(jobs={"pool": pool})
    assert found["nodeSelector"] == {"pool": "gpu"}
    assert found["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert (found["priorityClassName"], found["serviceAccountName"]) == ("low", "mine")
    assert found["runtimeClassName"] == "nvidia"


def served(**serving):
    world = World({**deepcopy(SPEC), "targets": [{"name": "cpu", "hardware": "X86Vnni", "serving": serving}]}, SETTINGS)
    world.optimizes()
    return world


def test_a_server_names_its_runtime_protocol_and_scaling_explicitly():
    found = served(runtime="Triton").the("InferenceService")
    model = found["spec"]["predictor"]["model"]
    assert (model["runtime"], model["protocolVersion"]) == ("lathe-triton", "v2")
    assert found["metadata"]["annotations"] == {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "none",
    }
    assert found["spec"]["predictor"]["minReplicas"] == 1


def test_servers_scale_on_the_cpu_when_asked():
    replicas = {"min": 1, "max": 4, "scaleOn": "Cpu", "target": "60%"}
    found = served(replicas=replicas).the("InferenceService")
    assert found["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "hpa"
    predictor = found["spec"]["predictor"]
    assert (predictor["maxReplicas"], predictor["scaleMetric"], predictor["scaleTarget"]) == (4, "cpu", 60)


def test_a_way_to_scale_that_this_version_lacks_is_told():
    world = served(replicas={"min": 1, "max": 4, "scaleOn": "QueueTime", "target": "5ms"})
    assert "does not scale on QueueTime" in world.model["status"]["targets"][0]["message"]


NAMES = {
    "short": ("digits", "cpu", "vision"),
    "long": ("a-very-long-name-of-a-model-that-somebody-chose", "target-of-some-length", "namespace-of-a-team"),
}


@pytest.mark.parametrize(("model", "target", "namespace"), NAMES.values(), ids=NAMES)
def test_names_fit_into_what_is_made_of_them(model, target, namespace):
    digest = "sha256:" + "3f9a1c" + "0" * 58
    revision = names.revision(model, digest)
    assert len(names.job(revision, 99)) + 6 <= 63
    assert len(f"{names.inference_service(model, target, digest, namespace)}-predictor-{namespace}") <= 63
    assert len(names.service(model, target)) <= 63


def test_long_names_that_begin_alike_stay_different():
    long = "m" * 60
    assert names.service(f"{long}a", "t") != names.service(f"{long}b", "t")


def test_the_revision_file_is_what_the_job_reads():
    world = World(deepcopy(SPEC), SETTINGS)
    world.settle()
    config = world.the("ConfigMap")
    assert config["immutable"] is True
    assert name_of(config) == name_of(world.the("ModelRevision"))
    assert '"uid":"uid-' in config["data"]["revision.json"]


SEARCH = {
    "choices": [{"stage": "int8", "field": "quantize.method", "values": ["Static", "WeightOnly8"]}],
    "goals": [{"metric": "sizeRatio"}],
    "timeout": "2h",
}


def test_a_search_is_one_job_with_as_much_as_its_largest_stage_needs():
    small = {**INT8, "resources": {"cpu": "500m", "memory": "1Gi"}, "timeout": "1h"}
    large = {
        "name": "onnx",
        "type": "Export",
        "export": {},
        "resources": {"cpu": "2", "memory": "2Gi"},
        "timeout": "1h",
    }
    found = first_job(recipe={"stages": [small, large]}, search=SEARCH, jobs={"retries": 0})["spec"]
    assert found["activeDeadlineSeconds"] == 3600 + 2 * 3600 + 2 * 2 * 3600
    pod = found["template"]["spec"]["containers"][0]
    assert pod["image"] == "torch:1"
    assert "--until" not in pod["command"]
    assert pod["resources"]["requests"]["cpu"] == "2"
    assert int(pod["resources"]["limits"]["memory"]) > 2 * 2**30


def test_a_search_makes_a_revision_of_its_own_that_says_what_is_tried():
    world = World(deepcopy(SPEC), SETTINGS)
    world.settle()
    before = name_of(world.the("ModelRevision"))
    world.change(search=SEARCH)
    world.settle()
    (found,) = [r for r in world.all("ModelRevision") if name_of(r) != before]
    assert found["spec"]["search"]["choices"] == SEARCH["choices"]


def test_how_far_a_search_is_shows_in_the_model():
    world = World({**deepcopy(SPEC), "search": SEARCH}, SETTINGS)
    world.settle()
    told = {"trials": 3, "maxTrials": 20, "stopped": 1, "trying": "int8.quantize.method Static"}
    world.reports(world.the("ModelRevision"), search=told)
    world.settle()
    assert world.summary == "Searching (3 of 20 trials)"
    assert world.model["status"]["search"] == told


def test_the_job_that_publishes_is_given_the_signing_key():
    job = first_job(store=SPEC["store"] | {"signingKey": {"name": "signer"}})
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {"name": "LATHE_SIGNING_KEY", "value": "/etc/lathe/signing/key.pem"} in container["env"]
    assert {"name": "signing", "mountPath": "/etc/lathe/signing", "readOnly": True} in container["volumeMounts"]
    assert {"name": "signing", "secret": {"secretName": "signer", "defaultMode": 0o440}} in pod["volumes"]
    assert "signing" not in str(first_job()["spec"]["template"]["spec"]["volumes"])
