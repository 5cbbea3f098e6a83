"""Documents for tests, as people write them: a valid one whose sections are replaced by name. `# <-` marks a line."""

from textwrap import dedent, indent

SECTIONS = {
    "model": "{uri: teacher.pt2, format: Pt2}",
    "data": """
        train: {uri: train.npz, inputs: [{name: image, field: x}], target: label}
        evaluation: {uri: test.npz, inputs: [{name: image, field: x}], target: label}
        """,
    "objective": "{task: Classification, metric: accuracy}",
    "recipe": """
        stages:
        - {name: slim, type: Prune, prune: {method: StructuredMagnitude, parameters: "0.5"}}
        - {name: int8, type: Quantize, quantize: {method: Static}}
        """,
    "targets": "[{name: cpu, hardware: X86Vnni}]",
}
FEDERATION = {"modelRef": "{name: digits}", "rounds": "5"}


def document(sections: dict[str, str], kind: str = "OptimizedModel") -> str:
    """A valid document with some sections of its spec replaced."""
    base = SECTIONS if kind == "OptimizedModel" else FEDERATION
    text = f"apiVersion: lathe.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: digits}}\nspec:\n"
    for name, value in {**base, **sections}.items():
        head, _, block = value.partition("\n")
        text += f"  {name}: {head}\n{indent(dedent(block), '    ')}"
    return text


def stages(*lines: str) -> dict[str, str]:
    return {"recipe": "\n" + "\n".join(["stages:", *(f"- {line}" for line in lines)]) + "\n"}


def one_stage(settings: str) -> dict[str, str]:
    return stages(settings + "  # <-")


def gate(settings: str) -> dict[str, str]:
    return {"gates": f"[{{name: g, {settings}}}]  # <-"}


def target(settings: str) -> dict[str, str]:
    return {"targets": f"[{{name: cpu, hardware: X86Vnni, {settings}}}]  # <-"}


DISTILL = '{name: student, type: Distill, distill: {student: {width: "0.5"}, epochs: 2}}'
PRUNE = '{name: slim, type: Prune, prune: {method: StructuredMagnitude, parameters: "0.5"}}'
STATIC = "{name: int8, type: Quantize, quantize: {method: Static}}"
DYNAMIC = "{name: dynamic, type: Quantize, quantize: {method: Dynamic}}"
AWARE = "{name: aware, type: Quantize, quantize: {method: QuantizationAware}}"
FUSE = "{name: fused, type: Fuse, fuse: {method: Operators}}"
EXPORT = "{name: onnx, type: Export, export: {}}"
ONLINE = "{method: OnlineGradientDescent, triggers: [%s]}  # <-"
PICTURES = "preprocessing: [{input: image, type: Image, image: {width: 8, height: 8, mean: ['0.5']}}]  # <-"
EVALUATION = "evaluation: {uri: test.npz, inputs: [{name: image, field: x}], target: label}"
