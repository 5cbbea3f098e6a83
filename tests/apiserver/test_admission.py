"""What the API server takes and what it refuses, field and remedy named; and the loader on a laptop says the same."""

import json
from copy import deepcopy

import pytest
from pydantic import ValidationError
from support.eventually import eventually
from support.operators import CHART

from devcluster.controlplane import KubectlError
from lathe_api.optimizedmodel import OptimizedModel
from lathe_operator.plan.observed import Observed
from lathe_operator.plan.resolve import parse, resolve
from lathe_operator.plan.revision import revision as revision_of
from lathe_operator.settings import Settings

SOURCE = {"uri": "s3://sets/train.npz", "inputs": [{"name": "image", "field": "x"}], "target": "y"}
INT8 = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}
AWARE = {"name": "aware", "type": "Quantize", "quantize": {"method": "QuantizationAware"}}
SLIM = {"name": "slim", "type": "Prune", "prune": {"method": "StructuredMagnitude", "parameters": "0.5"}}
DISTIL = {
    "name": "student",
    "type": "Distill",
    "distill": {"student": {"from": "Teacher", "width": "0.5"}, "epochs": 1},
}
EXPORT = {"name": "onnx", "type": "Export", "export": {"opset": 20}}
GATE = {"name": "accuracy", "metric": "accuracy", "maxDrop": "0.02"}
CPU = {"name": "cpu", "hardware": "X86Vnni"}
SPEC = {
    "model": {"uri": "s3://models/teacher.pt2", "format": "Pt2"},
    "data": {"train": SOURCE, "evaluation": SOURCE},
    "objective": {"task": "Classification", "metric": "accuracy"},
    "recipe": {"stages": [INT8]},
    "gates": [GATE],
    "targets": [CPU],
}


@pytest.fixture(scope="module")
def crds(control_plane):
    files = sorted(str(f) for f in (CHART / "files" / "crds").glob("*.yaml"))
    for file in files:
        control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", file)
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    eventually(lambda: "optimizedmodels" in control_plane.kubectl("api-resources", "--api-group=lathe.dev"))
    return control_plane


def document(changes, name="digits"):
    """The valid document with places of its spec replaced; None takes a place away."""
    spec = deepcopy(SPEC)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = spec
        for step in parents:
            place = place[int(step)] if step.isdigit() else place.setdefault(step, {})
        if value is None:
            del place[last]
        else:
            place[int(last) if last.isdigit() else last] = value
    return {"apiVersion": "lathe.dev/v1alpha1", "kind": "OptimizedModel", "metadata": {"name": name}, "spec": spec}


def stages(*found):
    return {"recipe.stages": list(found)}


def gate(**changes):
    return {"gates": [{k: v for k, v in ({**GATE, **changes}).items() if v is not None}]}


def target(**changes):
    return {"targets": [{**CPU, **changes}]}


def serving(**changes):
    return target(serving=changes)


def rollout(**changes):
    return {"rollout": changes}


def student(**changes):
    return stages({**DISTIL, "distill": {"student": changes, "epochs": 1}}, INT8)


def distil(**changes):
    return stages({**DISTIL, "distill": {**DISTIL["distill"], **changes}}, INT8)


def prune(**changes):
    return stages({**SLIM, "prune": changes}, INT8)


STEPS = [{"weight": 10, "hold": "5m"}, {"weight": 50, "hold": "5m"}]
ACCEPTED = {
    "the least there is": {"gates": None},
    "all kinds of stages in order": stages(DISTIL, SLIM, AWARE, EXPORT),
    "both kinds of losses": distil(losses=[{"type": "Response", "weight": "0.5"}, {"type": "Feature", "weight": "2"}]),
    "monitoring and learning": {
        "monitoring": {
            "tests": [{"name": "drift", "subject": "Inputs", "method": "KolmogorovSmirnov"}],
            "window": {"samples": 500},
        },
        "dataPolicy": {},
    },
    "a recipe kept elsewhere": {"recipe": {"ref": {"name": "cnn-int8"}}},
    "two targets with servers": {
        "targets": [CPU, {"name": "arm", "hardware": "Arm64", "serving": {"runtime": "Triton"}}]
    },
    "a canary in rising steps": rollout(
        strategy="Canary", steps=STEPS, checks=[{"metric": "errorRate", "max": "0.01"}]
    ),
    "a shadow": rollout(strategy="Shadow", shadow={"share": 50}),
    "replicas that follow the CPU": serving(replicas={"min": 1, "max": 4, "scaleOn": "Cpu", "target": "70%"}),
    "dynamic batches": serving(mode="DynamicBatch", batch={"maxSize": 8, "maxQueueDelay": "2ms"}),
    "calibration from a set of its own": {"data.calibration": {"source": SOURCE, "samples": 64}},
    "no training set where nothing trains": {"data.train": None, "data.calibration": {"source": SOURCE}},
    "a bound in each direction": {"gates": [{"name": "size", "metric": "sizeRatio", "min": "3.5"}]},
    "a gate after a stage": gate(stages=["int8"]),
    "a gate after the export that is added": gate(stages=["export"]),
    "a device": {"targets": [{"name": "dev", "hardware": "Edge", "edge": {"maxSize": "4Mi"}}]},
    "tolerations": target(pool={"tolerations": [{"key": "gpu", "operator": "Exists"}], "nodeSelector": {"a": "b"}}),
    "a store and Jobs": {
        "store": {"uri": "pvc://claim/x"},
        "jobs": {"retries": 0, "queueName": "team", "keepFinished": "1h"},
    },
    "regression": {"objective": {"task": "Regression", "metric": "rmse"}, "gates": None},
    "suspended": {"suspend": True},
    "pruning in a pattern": prune(method="NM", pattern="2:4"),
}
REFUSED = {
    "no model": ({"model": None}, "spec.model", "Required value"),
    "no evaluation set": ({"data.evaluation": None}, "spec.data.evaluation", "Required value"),
    "no targets": ({"targets": []}, "spec.targets", "should have at least 1 items"),
    "an unknown field": ({"modle": {}}, "spec.modle", "unknown field"),
    "an unknown format": ({"model.format": "Pickle"}, "spec.model.format", '"Pt2"'),
    "an unknown task": ({"objective.task": "Guessing"}, "spec.objective.task", '"Classification"'),
    "a metric of another task": ({"objective.metric": "rmse"}, "spec.objective.metric", "write accuracy or macroF1"),
    "a gate of another task": (gate(metric="rmse", maxDrop="1"), "spec.gates", "write a metric of the task"),
    "an architecture of a whole file": ({"model.architecture": "resnet"}, "spec.model.architecture", "remove it"),
    "weights alone": ({"model.format": "Safetensors"}, "spec.model.architecture", "write the registered name"),
    "a digest that is none": ({"model.digest": "md5:1"}, "spec.model.digest", "write sha256:"),
    "an input twice": (
        {"data.train": {**SOURCE, "inputs": SOURCE["inputs"] * 2}},
        "spec.data.train.inputs[1]",
        "Duplicate",
    ),
    "calibration from nowhere": (
        {"data.calibration": {"samples": 8}},
        "spec.data.calibration",
        "write exactly one of `from:`",
    ),
    "calibration from two places": (
        {"data.calibration": {"from": "Train", "source": SOURCE}},
        "spec.data.calibration",
        "write exactly one of `from:`",
    ),
    "a share that is none": ({"data.validationShare": "1.5"}, "spec.data.validationShare", "less than 1 in quotes"),
    "training without a set": (
        {**stages(DISTIL, INT8), "data.train": None},
        "spec.data.train",
        "write the training set",
    ),
    "static ranges from nothing": ({"data.train": None}, "spec.data", "write calibration.source or train"),
    "recipe and reference": (
        {"recipe": {"ref": {"name": "a"}, "stages": [INT8]}},
        "spec.recipe",
        "write either `stages:`",
    ),
    "no recipe": ({"recipe": {}}, "spec.recipe", "write either `stages:`"),
    "a stage twice": (stages(SLIM, SLIM, INT8), "spec.recipe.stages[1]", "Duplicate"),
    "a block of another type": (
        stages({**INT8, "prune": SLIM["prune"]}),
        "spec.recipe.stages[0].prune",
        "with type: Prune",
    ),
    "no block": (stages({"name": "a", "type": "Prune"}), "spec.recipe.stages[0].prune", "write the block `prune:`"),
    "pruning frozen numbers": (stages(INT8, SLIM), "spec.recipe.stages", "move Distill, Prune and Fuse stages before"),
    "training after the export": (stages(EXPORT, DISTIL), "spec.recipe.stages", "before Export"),
    "aware training after the export": (stages(EXPORT, AWARE), "spec.recipe.stages", "before Export"),
    "distilling what was cut": (stages(SLIM, DISTIL, INT8), "spec.recipe.stages", "move the Distill stage before"),
    "two quantisations": (stages(INT8, {**INT8, "name": "again"}), "spec.recipe.stages", "keep one Quantize stage"),
    "two exports": (stages(EXPORT, {**EXPORT, "name": "again"}), "spec.recipe.stages", "keep one Export stage"),
    "a stage named import": (stages({**INT8, "name": "import"}), "spec.recipe.stages", "another name"),
    "a stage named export": (stages({**INT8, "name": "export"}), "spec.recipe.stages", "another name"),
    "a name with capitals": (stages({**INT8, "name": "Int8"}), "spec.recipe.stages[0].name", "lower-case letters"),
    "a student of two kinds": (
        student(**{"from": "Teacher", "width": "0.5", "uri": "s3://a/b.pt2"}),
        "student.uri",
        "only a student from Pt2",
    ),
    "a student without a size": (student(**{"from": "Teacher"}), "student.width", 'write width: "0.5"'),
    "a student from nowhere": (student(**{"from": "Registered"}), "student.component", "write component"),
    "a loss twice": (distil(losses=[{"type": "Response"}] * 2), "losses", "write each kind of loss once"),
    "a share of labels above one": (
        distil(losses=[{"type": "Response", "weight": "2"}]),
        "losses[0].weight",
        "at most 1",
    ),
    "a temperature of nothing": (
        distil(losses=[{"type": "Response", "temperature": "0"}]),
        "temperature",
        "more than 0",
    ),
    "two amounts to prune": (prune(method="StructuredMagnitude", parameters="0.5", macs="0.5"), "prune", "exactly one"),
    "an amount of another method": (prune(method="NM", sparsity="0.5"), "prune", "pattern for NM"),
    "a pattern that is none": (prune(method="NM", pattern="half"), "prune.pattern", '"2:4"'),
    "too many epochs": (distil(epochs=100_000), "epochs", "less than or equal to 10000"),
    "a gate without a bound": (gate(maxDrop=None), "spec.gates[0]", "write exactly one of `min:`"),
    "a gate with two bounds": (gate(min="0.9"), "spec.gates[0]", "write exactly one of `min:`"),
    "a drop of a size": (gate(metric="sizeRatio"), "spec.gates[0].maxDrop", 'write min: "2.0"'),
    "percent for a share": (gate(maxDrop="2"), "spec.gates[0].maxDrop", "a share from 0 to 1"),
    "a number without quotes": (gate(maxDrop=0.02), "spec.gates[0].maxDrop", "must be of type string"),
    "a gate after no stage": (gate(stages=["nothing"]), "spec.gates", "name stages of the recipe"),
    "a gate twice": ({"gates": [GATE, GATE]}, "spec.gates[1]", "Duplicate"),
    "a target twice": ({"targets": [CPU, CPU]}, "spec.targets[1]", "Duplicate"),
    "unknown hardware": (target(hardware="Abacus"), "spec.targets[0].hardware", '"X86Vnni"'),
    "a device's settings for a server": (target(edge={}), "spec.targets[0].edge", "write hardware: Edge"),
    "a batch of single samples": (serving(batch={"maxSize": 4}), "serving.batch", "write mode: DynamicBatch"),
    "a delay without a unit": (serving(mode="DynamicBatch", batch={"maxQueueDelay": "2"}), "maxQueueDelay", "2ms"),
    "fewer at most than at least": (serving(replicas={"min": 4, "max": 2}), "replicas.max", "at least as many as min"),
    "scaling without room": (serving(replicas={"scaleOn": "Cpu", "target": "70%"}), "replicas.max", "largest number"),
    "scaling to nothing": (serving(replicas={"max": 4, "scaleOn": "Cpu"}), "replicas.target", "70%"),
    "a target of nothing": (serving(replicas={"max": 4, "target": "70%"}), "replicas.scaleOn", "measured in"),
    "a target in another unit": (
        serving(replicas={"max": 4, "scaleOn": "Cpu", "target": "5ms"}),
        "replicas.target",
        '"70%" for Cpu',
    ),
    "memory in words": (serving(resources={"limits": {"memory": "much"}}), "resources.limits", "500m, 2 or 4Gi"),
    "a toleration with a value for any": (
        target(pool={"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}),
        "tolerations[0].value",
        "write operator: Equal",
    ),
    "a canary without steps": (rollout(strategy="Canary"), "spec.rollout.steps", "write at least one step"),
    "steps of no canary": (rollout(strategy="BlueGreen", steps=STEPS), "spec.rollout.steps", "strategy: Canary"),
    "steps that fall": (rollout(strategy="Canary", steps=STEPS[::-1]), "spec.rollout.steps", "rise from step to step"),
    "a shadow of another strategy": (
        rollout(strategy="Recreate", shadow={}),
        "spec.rollout.shadow",
        "strategy: Shadow",
    ),
    "a check without a bound": (rollout(checks=[{"metric": "agreement"}]), "checks[0]", "write exactly one of `min:`"),
    "a rate above one": (rollout(checks=[{"metric": "errorRate", "max": "5"}]), "checks[0].max", "a share from 0 to 1"),
    "a hostname without a route": (
        rollout(traffic={"routing": "Service", "hostname": "a.b"}),
        "traffic.hostname",
        "routing: HttpRoute",
    ),
    "too many retries": ({"jobs": {"retries": 99}}, "spec.jobs.retries", "less than or equal to 20"),
    "no history": ({"revisionHistoryLimit": 0}, "spec.revisionHistoryLimit", "greater than or equal to 1"),
    "a seed below zero": ({"seed": -1}, "spec.seed", "greater than or equal to 0"),
}


def create(cluster, value):
    arguments = ("create", "--dry-run=server", "--validate=strict", "-n", "default", "-f", "-")
    return cluster.kubectl(*arguments, stdin=json.dumps(value))


def loads(value):
    try:
        OptimizedModel.model_validate(value, by_alias=True, by_name=False)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_a_document_is_taken(crds, changes):
    value = document(changes)
    assert "created" in create(crds, value)
    assert loads(value)


@pytest.mark.parametrize(("changes", "field", "remedy"), REFUSED.values(), ids=REFUSED)
def test_a_document_is_refused_by_field_and_remedy(crds, changes, field, remedy):
    value = document(changes)
    with pytest.raises(KubectlError) as refused:
        create(crds, value)
    message = str(refused.value)
    assert field in message
    assert remedy in message
    assert not loads(value)


WHOLE = ("a recipe kept elsewhere", "suspended")


@pytest.mark.parametrize("name", [n for n in ACCEPTED if n not in WHOLE])
def test_the_revision_of_a_document_that_is_taken_is_taken_too(crds, name):
    """With everything filled in that the document left to defaults."""
    raw = document(ACCEPTED[name])
    raw["metadata"] |= {"namespace": "default", "uid": "0", "generation": 1}
    settings = Settings(store_uri="pvc://store/")
    revision = revision_of(resolve(parse(raw), Observed(model=raw), settings), raw)
    assert "created" in create(crds, revision)


@pytest.mark.parametrize("name", ["Digits", "a" * 64, "a.b"])
def test_a_name_that_nothing_could_be_made_of_is_refused(crds, name):
    with pytest.raises(KubectlError, match="lower"):
        create(crds, document({}, name=name))


def test_a_revision_is_never_changed(crds, namespace):
    value = document({})
    revision = {
        "apiVersion": "lathe.dev/v1alpha1",
        "kind": "ModelRevision",
        "metadata": {"name": "digits-1", "namespace": namespace},
        "spec": {
            "modelRef": {"name": "digits"},
            "generation": 1,
            "hash": "sha256:" + "0" * 64,
            "stages": value["spec"]["recipe"]["stages"],
            **{k: value["spec"][k] for k in ("model", "data", "objective", "targets")},
        },
    }
    crds.apply(revision)
    revision["spec"]["seed"] = 1
    with pytest.raises(KubectlError, match="a ModelRevision is never changed"):
        crds.apply(revision)
    shown = crds.kubectl("-n", namespace, "get", "mrev", "--field-selector=spec.modelRef.name=digits", "-o", "name")
    assert shown.strip() == "modelrevision.lathe.dev/digits-1"


@pytest.mark.parametrize(
    ("field", "words"),
    {
        "om.spec.recipe.stages.prune": ("Which weights go.", "Share of the parameters to remove.", "Default: 0.9."),
        "om.spec.recipe.stages": ("What the stage does.", "-required-"),
        "om.spec.targets.serving": ("Requests that a server answers to itself", "Default: 30s."),
        "om.status": ("One line for people",),
    }.items(),
)
def test_every_field_explains_itself(crds, field, words):
    shown = " ".join(crds.kubectl("explain", field).split())
    for word in words:
        assert word in shown


def test_all_of_lathe_is_one_category(crds, namespace):
    crds.apply(document({}) | {"metadata": {"name": "digits", "namespace": namespace}})
    assert "optimizedmodel.lathe.dev/digits" in crds.kubectl("-n", namespace, "get", "lathe", "-o", "name")
