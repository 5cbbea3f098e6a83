"""Which stages are planned, for whom, and what their keys depend on."""

import pytest
from support.documents import document
from support.records import artifact

from lathe_api.canonical import digest_of
from lathe_api.manifest import Blob
from lathe_optimizers import plan
from lathe_optimizers.errors import InputError

DIGESTS = {"spec.model": "sha256:" + "1" * 64}
VERSIONS = {"torch": "2.13.0"}
QUANTIZE = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}
PRUNE = {"name": "slim", "type": "Prune", "prune": {"method": "StructuredMagnitude", "parameters": "0.5"}}
EXPORT = {"name": "onnx", "type": "Export", "export": {}}
VNNI = {"name": "cpu", "hardware": "X86Vnni"}
AVX2 = {"name": "old", "hardware": "X86Avx2"}


def planned(stages, targets):
    model = document(stages=stages, targets=targets)
    return plan.nodes(plan.stage_list(model), plan.select(model, ()))


def ids(nodes):
    return [(n.id, [t.name for t in n.targets], n.parent) for n in nodes]


def test_a_recipe_without_export_gets_one_at_the_end():
    assert [s.name for s in plan.stage_list(document(stages=[PRUNE]))] == ["slim", "export"]
    assert [s.name for s in plan.stage_list(document(stages=[PRUNE, EXPORT]))] == ["slim", "onnx"]


def test_targets_share_stages_until_one_depends_on_their_hardware():
    assert ids(planned([PRUNE, QUANTIZE, EXPORT], [VNNI, AVX2])) == [
        ("import", ["cpu", "old"], None),
        ("slim", ["cpu", "old"], "import"),
        ("int8@X86Vnni", ["cpu"], "slim"),
        ("int8@X86Avx2", ["old"], "slim"),
        ("onnx@X86Vnni", ["cpu"], "int8@X86Vnni"),
        ("onnx@X86Avx2", ["old"], "int8@X86Avx2"),
    ]


def test_targets_of_one_hardware_share_every_stage():
    nodes = planned([QUANTIZE, EXPORT], [VNNI, VNNI | {"name": "batch"}])
    assert ids(nodes) == [
        ("import", ["cpu", "batch"], None),
        ("int8", ["cpu", "batch"], "import"),
        ("onnx", ["cpu", "batch"], "int8"),
    ]
    assert [n.last for n in nodes] == [False, False, True]


@pytest.mark.parametrize(
    ("until", "names"), [(None, ["slim", "int8"]), ("slim", ["slim"]), ("import", [])], ids=["all", "slim", "import"]
)
def test_until_ends_the_list(until, names):
    stages = document(stages=[PRUNE, QUANTIZE]).spec.recipe.stages
    assert [s.name for s in plan.until_list(stages, until)] == names


def test_an_unknown_stage_or_target_lists_the_known_ones():
    model = document(stages=[PRUNE], targets=[VNNI])
    with pytest.raises(InputError, match=r"no stage is called 'x'\. Write one of import, slim"):
        plan.until_list(model.spec.recipe.stages, "x")
    with pytest.raises(InputError, match=r"no target is called 'x'\. Write one of cpu"):
        plan.select(model, ("x",))


def key(stages=(PRUNE,), *, node=1, seed=0, versions=VERSIONS, digests=DIGESTS, host="a", targets=(VNNI,), data=None):
    model = document(stages=list(stages), targets=list(targets), **(data or {}))
    nodes = plan.nodes(plan.stage_list(model), plan.select(model, ()))
    origin = artifact(Blob(digest="sha256:" + "7" * 64, size=1))
    return digest_of(
        plan.key_fields(
            nodes[node], model, digests=digests, parent=origin, original=origin, seed=seed, versions=versions, host=host
        )
    )


DIFFERENT = {
    "configuration": {"stages": [PRUNE | {"prune": PRUNE["prune"] | {"parameters": "0.4"}}]},
    "seed": {"seed": 1},
    "library": {"versions": {"torch": "2.13.1"}},
    "file": {"digests": {"spec.model": "sha256:" + "2" * 64}},
    "machine": {"host": "b"},
    "calibration": {"data": {"calibration": {"from": "Train", "samples": 7}}},
}
SAME = {
    "name": {"stages": [PRUNE | {"name": "thin"}]},
    "timeout": {"stages": [PRUNE | {"timeout": "1m"}]},
    "memory": {"stages": [PRUNE | {"resources": {"memory": "1Gi"}}]},
    "hardware of a stage that does not depend on it": {"targets": [AVX2]},
    "later stages": {"stages": [PRUNE, QUANTIZE]},
}


@pytest.mark.parametrize("change", DIFFERENT.values(), ids=DIFFERENT)
def test_what_decides_a_result_changes_its_key(change):
    assert key(**change) != key()


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_does_not_decide_a_result_leaves_its_key(change):
    assert key(**change) == key()


def test_quantisation_is_kept_per_hardware():
    assert key([QUANTIZE], targets=[VNNI]) != key([QUANTIZE], targets=[AVX2])


def test_the_revision_names_the_document_and_its_inputs():
    model = document(stages=[PRUNE])
    assert plan.revision_of(model, DIGESTS, 0).startswith("digits-")
    assert plan.revision_of(model, DIGESTS, 0) == plan.revision_of(model, DIGESTS, 0)
    assert plan.revision_of(model, DIGESTS, 0) != plan.revision_of(model, DIGESTS, 1)
