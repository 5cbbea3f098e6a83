"""One CustomResourceDefinition per kind: names, columns and what can be selected by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from lathe_api.base import ApiModel
from lathe_api.crd.structural import structural
from lathe_api.documents import KINDS
from lathe_api.wiring import GROUP

Json = dict[str, Any]
VERSION: Final = "v1alpha1"


@dataclass(frozen=True)
class Kind:
    """What a kind is called and what `kubectl get` shows of it."""

    plural: str
    short: tuple[str, ...]
    columns: tuple[Json, ...]
    namespaced: bool = True
    selectable: tuple[str, ...] = ()


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> Json:
    return {"name": name, "type": kind, "jsonPath": path, **({"priority": 1} if wide else {})}


_READY: Final = _column("Ready", '.status.conditions[?(@.type=="Ready")].status')
_AGE: Final = _column("Age", ".metadata.creationTimestamp", "date")
_STATUS: Final = _column("Status", ".status.summary")
_NAMES: Final[Mapping[str, Kind]] = {
    "OptimizedModel": Kind(
        "optimizedmodels",
        ("om",),
        (
            _STATUS,
            _column("Revision", ".status.columns.revision"),
            _column("Accuracy", ".status.columns.quality"),
            _column("Size", ".status.columns.size"),
            _column("Speedup", ".status.columns.speedup"),
            _READY,
            _AGE,
            _column("URL", ".status.url", wide=True),
        ),
    ),
    "OptimizationRecipe": Kind("optimizationrecipes", ("recipe",), (_column("Description", ".spec.description"), _AGE)),
    "ClusterOptimizationRecipe": Kind(
        "clusteroptimizationrecipes",
        ("clusterrecipe",),
        (_column("Description", ".spec.description"), _AGE),
        namespaced=False,
    ),
    "ModelRevision": Kind(
        "modelrevisions",
        ("mrev",),
        (
            _column("Model", ".spec.modelRef.name"),
            _STATUS,
            _column("Verdict", ".status.verdict"),
            _READY,
            _AGE,
            _column("Hash", ".spec.hash", wide=True),
        ),
        selectable=(".spec.modelRef.name",),
    ),
    "ModelFederation": Kind(
        "modelfederations",
        ("mfed",),
        (_STATUS, _READY, _AGE),
    ),
}


def definition(kind: str) -> Json:
    """The CustomResourceDefinition of a kind.

    Raises:
        KeyError: there is no such kind.
    """
    model: type[ApiModel] = KINDS[kind]
    names = _NAMES[kind]
    schema = structural(model)
    version: Json = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": list(names.columns),
        "schema": {"openAPIV3Schema": schema},
    }
    if "status" in schema["properties"]:
        version["subresources"] = {"status": {}}
    if names.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in names.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": names.plural,
                "singular": kind.lower(),
                "shortNames": list(names.short),
                "categories": ["lathe"],
            },
            "scope": "Namespaced" if names.namespaced else "Cluster",
            "versions": [version],
        },
    }


def documents() -> dict[str, str]:
    """YAML of every definition by file name; the same text on every machine."""
    found = {kind: definition(kind) for kind in KINDS}
    return {
        f"{d['metadata']['name']}.yaml": yaml.safe_dump(d, sort_keys=True, width=120, allow_unicode=True)
        for d in found.values()
    }
