"""Writes the kustomize folders from the chart: `python kustomize/render.py`.

`base` is everything but the ClusterServingRuntimes, which only clusters with KServe take: `with-kserve` has both.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

import yaml

HERE: Final = Path(__file__).parent
CHART: Final = HERE.parent / "charts" / "lathe"
NAMESPACE: Final = "lathe-system"
CRDS: Final = "../charts/lathe/files/kustomization.yaml"
"""Beside the CustomResourceDefinitions, so that they are there once."""


def files() -> dict[str, str]:
    """The files by path: the chart with its default values.

    Raises:
        subprocess.CalledProcessError: Helm refuses the chart.
    """
    sys.path.insert(0, str(HERE.parent / "hack" / "cluster"))
    from devcluster import programs

    helm = programs.path(next(p for p in programs.CHART_TOOLS if p.name == "helm"))
    command = [helm, "template", "lathe", CHART, "-n", NAMESPACE, "--kube-version", "1.36.0"]
    done = subprocess.run([*command, "--set", "runtimes.enabled=true"], check=True, capture_output=True, text=True)
    documents = [d for d in yaml.safe_load_all(done.stdout) if d]
    for document in documents:
        labels = document["metadata"].get("labels", {})
        labels.pop("helm.sh/chart", None)
        if "app.kubernetes.io/managed-by" in labels:
            labels["app.kubernetes.io/managed-by"] = "kustomize"
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    crds = [d for d in documents if d["kind"] == "CustomResourceDefinition"]
    runtimes = [d for d in documents if d["kind"] == "ClusterServingRuntime"]
    others = [space, *(d for d in documents if d not in crds and d not in runtimes)]
    return {
        CRDS: _text([_kustomization(*(f"crds/{d['metadata']['name']}.yaml" for d in crds))]),
        "base/operator.yaml": _text(others),
        "base/kustomization.yaml": _text([_kustomization("../../charts/lathe/files", "operator.yaml")]),
        "with-kserve/runtimes.yaml": _text(runtimes),
        "with-kserve/kustomization.yaml": _text([_kustomization("../base", "runtimes.yaml")]),
    }


def _kustomization(*resources: str) -> dict[str, object]:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(resources),
    }


def _text(documents: list[dict[str, object]]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=True, width=120, allow_unicode=True)


if __name__ == "__main__":
    for file, content in files().items():
        (HERE / file).parent.mkdir(exist_ok=True)
        (HERE / file).write_text(content)
