"""What is not built is refused by its field path, without torch."""

import subprocess
import sys

import pytest

from lathe_api.recipe import Stage
from lathe_optimizers.errors import InputError
from lathe_optimizers.passes import registry

DISTILL = {"student": {"from": "Teacher", "width": "0.5"}, "epochs": 1}

COMPONENT = {"from": "Registered", "component": "net"}
STUDENTS = "distill.student"
UNSTRUCTURED = {"method": "RandomUnstructured", "sparsity": "0.5"}
ENTROPY = {"method": "Static", "calibration": "Entropy"}
LATENCY = {"method": "StructuredMagnitude", "latency": "0.5"}

REFUSED = {
    "target in time": ("Prune", LATENCY, "prune.latency", "0.5", "Leave the field out"),
    "registered student": ("Distill", DISTILL | {"student": COMPONENT}, f"{STUDENTS}.from", "Registered", "Pt2"),
    "fewer blocks": ("Distill", DISTILL | {"student": {"depth": "0.5"}}, f"{STUDENTS}.depth", "0.5", "Leave"),
}


def stage(kind, block):
    return Stage.model_validate({"name": "it", "type": kind, kind.lower(): block})


@pytest.mark.parametrize(("kind", "block", "field", "found", "remedy"), REFUSED.values(), ids=REFUSED)
def test_a_method_that_is_not_built_is_refused_by_its_field(kind, block, field, found, remedy):
    with pytest.raises(InputError) as refusal:
        registry.check_available(stage(kind, block), 2)

    assert refusal.value.where == f"spec.recipe.stages[2].{field}"
    assert found in refusal.value.found
    assert remedy in refusal.value.remedy


BUILT = {
    "distillation": ("Distill", DISTILL),
    "distillation by features": ("Distill", DISTILL | {"losses": [{"type": "Response"}, {"type": "Feature"}]}),
    "unstructured pruning": ("Prune", UNSTRUCTURED),
    "pruning of operations": ("Prune", {"method": "StructuredMagnitude", "macs": "0.5"}),
    "structured pruning": ("Prune", {"method": "StructuredMagnitude", "parameters": "0.5"}),
    "operator fusion": ("Fuse", {"method": "Operators", "operators": ["Attention"]}),
    "shared layers": ("Fuse", {"method": "SimilarLayers", "similarity": "Cka", "maxDrop": "0.01"}),
    "static quantisation": ("Quantize", {"method": "Static"}),
    "calibration by entropy": ("Quantize", ENTROPY),
    "dynamic quantisation": ("Quantize", {"method": "Dynamic"}),
    "weights in 4 bits": ("Quantize", {"method": "WeightOnly4"}),
    "float16": ("Quantize", {"method": "Float16"}),
    "quantisation-aware training": ("Quantize", {"method": "QuantizationAware"}),
    "export": ("Export", {}),
    "host-tuned export": ("Export", {"portability": "HostTuned"}),
}


@pytest.mark.parametrize(("kind", "block"), BUILT.values(), ids=BUILT)
def test_a_method_that_is_built_is_accepted(kind, block):
    registry.check_available(stage(kind, block), 0)


def test_planning_starts_without_torch():
    code = (
        "import sys; from lathe_optimizers.passes import registry; registry.source_digest();"
        "sys.exit(any(m.split('.')[0] in {'torch', 'onnx', 'onnxruntime'} for m in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_digest_of_the_source_follows_content_and_names(tmp_path, monkeypatch):
    def digest():
        registry.source_digest.cache_clear()
        return registry.source_digest()

    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    (tmp_path / "one.py").write_text("a = 1\n")
    first = digest()
    (tmp_path / "one.py").write_text("a = 2\n")
    changed = digest()
    (tmp_path / "one.py").rename(tmp_path / "two.py")
    renamed = digest()
    (tmp_path / "notes.txt").write_text("no source")

    assert len({first, changed, renamed}) == 3
    assert digest() == renamed
    assert first.startswith("sha256:")
    registry.source_digest.cache_clear()
