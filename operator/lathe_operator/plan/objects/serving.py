"""The servers of a target: an InferenceService for each revision, and one Service whose name never changes."""

from typing import Final

from lathe_api.targets import ScaleOn, Serving, ServingRuntime, Target
from lathe_api.wiring import (
    GRPC_PORT,
    HTTP_PORT,
    LABEL_MANAGED_BY,
    LABEL_MODEL,
    LABEL_REVISION,
    LABEL_TARGET,
    MANAGED_BY,
)
from lathe_operator.plan import names
from lathe_operator.plan.objects.job import placement
from lathe_operator.plan.observed import Json, label, name_of
from lathe_operator.plan.revision import owner

KSERVE_API: Final = "serving.kserve.io/v1beta1"
KSERVE_LABEL: Final = "serving.kserve.io/inferenceservice"
"""KServe puts it on the pods of an InferenceService."""
STORAGE_ANNOTATION: Final = "internal.serving.kserve.io/storage-initializer-sourceuri"
"""KServe puts the URI of the model on the Deployment's pod template."""
MODEL_FORMAT: Final = "lathe-onnx"
RUNTIMES: Final = {ServingRuntime.LATHE: "lathe-runtime", ServingRuntime.TRITON: "lathe-triton"}
"""ClusterServingRuntimes of the chart."""


def inference_service(target: Target, revision: Json, model: Json, repository: str) -> Json:
    """The InferenceService that serves a target of a revision.

    Args:
        target: as `spec` has it today: pool, replicas and resources are changed in place.
        revision: the ModelRevision.
        model: the OptimizedModel as the API server gave it.
        repository: URI of the Triton model repository.
    """
    meta = model["metadata"]
    serving = target.serving
    name = names.inference_service(meta["name"], target.name, revision["spec"]["hash"], meta["namespace"])
    predictor: Json = {
        "minReplicas": serving.replicas.min,
        "model": {
            "modelFormat": {"name": MODEL_FORMAT},
            # KServe takes v1 where it is left out, and then finds no runtime.
            "protocolVersion": "v2",
            "runtime": RUNTIMES[serving.runtime],
            "storageUri": repository,
        },
    }
    resources = serving.resources.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if resources:
        predictor["model"]["resources"] = resources
    if serving.image is not None:
        predictor["model"]["image"] = serving.image
    autoscaler = "none"
    if _scales_on_cpu(serving):
        autoscaler = "hpa"
        predictor |= {
            "maxReplicas": serving.replicas.max,
            "scaleMetric": "cpu",
            "scaleTarget": int(float((serving.replicas.target or "70%").rstrip("%"))),
        }
    pool = target.pool
    predictor |= placement(pool)
    if pool.service_account_name is not None:
        predictor["serviceAccountName"] = pool.service_account_name
    return {
        "apiVersion": KSERVE_API,
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": serving_labels(meta["name"], target.name, name_of(revision)),
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": autoscaler,
            },
            "ownerReferences": [owner(model)],
        },
        "spec": {"predictor": predictor},
    }


def service(target: Target, model: Json, inference: Json) -> Json:
    """The Service under which a target answers, pointing at the servers of one InferenceService."""
    meta = model["metadata"]
    revision = label(inference, LABEL_REVISION) or ""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.service(meta["name"], target.name),
            "namespace": meta["namespace"],
            "labels": serving_labels(meta["name"], target.name, revision),
            "ownerReferences": [owner(model)],
        },
        "spec": {
            "selector": {KSERVE_LABEL: name_of(inference)},
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "targetPort": HTTP_PORT, "appProtocol": "http"},
                {
                    "name": "grpc",
                    "port": GRPC_PORT,
                    "protocol": "TCP",
                    "targetPort": GRPC_PORT,
                    "appProtocol": "kubernetes.io/h2c",
                },
            ],
        },
    }


def serving_labels(model: str, target: str, revision: str) -> dict[str, str]:
    """Labels of a target's servers."""
    return {LABEL_MODEL: model, LABEL_TARGET: target, LABEL_REVISION: revision, LABEL_MANAGED_BY: MANAGED_BY}


def _scales_on_cpu(serving: Serving) -> bool:
    return serving.replicas.scale_on is ScaleOn.CPU and serving.replicas.max is not None
