"""The Job of a segment."""

from typing import Final

from lathe_api.base import number, seconds
from lathe_api.recipe import StageResources
from lathe_api.store import Jobs
from lathe_api.targets import Pool
from lathe_api.wiring import (
    EXIT_BAD_INPUT,
    LABEL_SEGMENT,
    REVISION_FILE,
    REVISION_KEY,
    SCRATCH,
    SIGNING_KEY,
    SIGNING_MOUNT,
    VOLUMES,
)
from lathe_operator.plan import names
from lathe_operator.plan.observed import Json
from lathe_operator.plan.resolve import places
from lathe_operator.plan.revision import owner
from lathe_operator.plan.segments import Segment
from lathe_operator.settings import Settings

CONTAINER: Final = "optimizer"
USER: Final = 65532
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
MEMORY_OVERHEAD: Final = 512 * 2**20
"""Bytes that the supervising process and the interpreter take beside a stage at its own limit."""


def job(segment: Segment, revision: Json, jobs: Jobs, settings: Settings) -> Json:
    """The Job that does a segment; suspended where a queue decides when it starts.

    Args:
        segment: what to do.
        revision: as the API server gave it.
        jobs: `spec.jobs` of the model.
        settings: of the operator.
    """
    meta = revision["metadata"]
    name = names.job(meta["name"], segment.index)
    labels = {**meta["labels"], LABEL_SEGMENT: str(segment.index)}
    job_labels = labels if jobs.queue_name is None else {**labels, QUEUE_LABEL: jobs.queue_name}
    spec: Json = {
        "backoffLimit": jobs.retries,
        "activeDeadlineSeconds": int(segment.seconds) * (jobs.retries + 1),
        "ttlSecondsAfterFinished": int(seconds(jobs.keep_finished)),
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [EXIT_BAD_INPUT]},
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"metadata": {"labels": labels}, "spec": _pod(segment, revision, jobs, settings)},
    }
    if jobs.queue_name is not None:
        # Kueue admits by setting it to false; applied once only, so that it is never set back.
        spec["suspend"] = True
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": job_labels,
            "ownerReferences": [owner(revision)],
        },
        "spec": spec,
    }


def command(segment: Segment) -> list[str]:
    """What its pod runs."""
    base = ["lathe", "job", REVISION_FILE, "--segment", str(segment.index)]
    return base if segment.last else [*base, "--until", segment.stages[-1]]


def claims_of(revision: Json) -> tuple[str, ...]:
    """Names of the PersistentVolumeClaims that a revision's places lie in, sorted."""
    spec = revision["spec"]
    uris = [block["uri"] for _, block in places(spec)] + [spec["store"]["uri"]]
    return tuple(sorted({uri.removeprefix("pvc://").partition("/")[0] for uri in uris if uri.startswith("pvc://")}))


def _pod(segment: Segment, revision: Json, jobs: Jobs, settings: Settings) -> Json:
    pool = jobs.pool
    claims = claims_of(revision)
    small = settings.optimizer_image if segment.needs_torch else settings.optimizer_onnx_image
    container: Json = {
        "name": CONTAINER,
        "image": jobs.image or small,
        "command": command(segment),
        "env": [{"name": "HOME", "value": SCRATCH}, {"name": "TMPDIR", "value": SCRATCH}, *settings.stage_env],
        "resources": _resources(segment.resources),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "revision", "mountPath": REVISION_FILE.removesuffix(f"/{REVISION_KEY}"), "readOnly": True},
            {"name": "scratch", "mountPath": SCRATCH},
            *({"name": f"claim-{i}", "mountPath": f"{VOLUMES}/{claim}"} for i, claim in enumerate(claims)),
            *settings.stage_mounts,
        ],
    }
    credentials = revision["spec"]["store"].get("credentials")
    if credentials is not None:
        container["envFrom"] = [{"secretRef": {"name": credentials["name"]}}]
    volumes = []
    signing = revision["spec"]["store"].get("signingKey")
    if signing is not None and segment.last:
        # Stages of earlier segments publish nothing, and so never see the key.
        container["env"].append({"name": SIGNING_KEY, "value": f"{SIGNING_MOUNT}/key.pem"})
        container["volumeMounts"].append({"name": "signing", "mountPath": SIGNING_MOUNT, "readOnly": True})
        volumes.append({"name": "signing", "secret": {"secretName": signing["name"], "defaultMode": 0o440}})
    return {
        "restartPolicy": "Never",
        "serviceAccountName": pool.service_account_name or revision["metadata"]["name"],
        "automountServiceAccountToken": True,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "revision", "configMap": {"name": revision["metadata"]["name"]}},
            {"name": "scratch", "emptyDir": {}},
            *({"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": c}} for i, c in enumerate(claims)),
            *settings.stage_volumes,
            *volumes,
        ],
        **placement(pool),
    }


def placement(pool: Pool) -> Json:
    """Node selector, tolerations, priority and runtime class of pods; only what is given."""
    found: Json = {}
    if pool.node_selector:
        found["nodeSelector"] = dict(pool.node_selector)
    if pool.tolerations:
        found["tolerations"] = [t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in pool.tolerations]
    if pool.priority_class_name is not None:
        found["priorityClassName"] = pool.priority_class_name
    if pool.runtime_class_name is not None:
        found["runtimeClassName"] = pool.runtime_class_name
    return found


def _resources(resources: StageResources) -> Json:
    """The container's share; a stage past its own limit is stopped by its supervisor before the kernel's strikes."""
    limits: dict[str, str] = {}
    requests: dict[str, str] = {}
    if resources.cpu is not None:
        requests["cpu"] = resources.cpu
    if resources.memory is not None:
        limits["memory"] = requests["memory"] = str(int(number(resources.memory)) + MEMORY_OVERHEAD)
    return {"requests": requests, "limits": limits} if requests else {}
