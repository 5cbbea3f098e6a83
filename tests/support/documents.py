"""Documents for tests, in Python."""

from typing import Any

from lathe_api.optimizedmodel import OptimizedModel

SOURCE = {"uri": "file:train.npz", "inputs": [{"name": "image", "field": "x"}], "target": "y"}


def document(
    stages: list[dict[str, Any]],
    *,
    targets: list[dict[str, Any]] | None = None,
    gates: list[dict[str, Any]] | None = None,
    model: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    **data: Any,
) -> OptimizedModel:
    """A document with these stages, targets and gates; `data` replaces data sets by name."""
    spec: dict[str, Any] = {
        "model": model or {"uri": "file:model.pt2", "format": "Pt2"},
        "data": {"train": SOURCE, "evaluation": SOURCE | {"uri": "file:test.npz"}} | data,
        "objective": objective or {"task": "Classification", "metric": "accuracy"},
        "recipe": {"stages": stages},
        "gates": gates or [],
        "targets": targets if targets is not None else [{"name": "cpu", "hardware": "X86Vnni"}],
    }
    value = {"apiVersion": "lathe.dev/v1alpha1", "kind": "OptimizedModel", "metadata": {"name": "digits"}, "spec": spec}
    return OptimizedModel.model_validate(value, by_alias=True, by_name=False)
