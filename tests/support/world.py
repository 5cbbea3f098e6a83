"""A cluster as plain data for tests of decisions: plans are carried out on it, and its other inhabitants are played."""

from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from lathe_api.wiring import LABEL_MODEL, LABEL_SEGMENT
from lathe_operator.plan.make import make_plan
from lathe_operator.plan.objects.serving import KSERVE_LABEL, STORAGE_ANNOTATION
from lathe_operator.plan.observed import Event, Json, Observed, Plan, Ref, find, label, name_of
from lathe_operator.settings import Settings

DIGEST = "sha256:" + "a" * 64
NAMESPACE = "vision"
LISTS = {
    "ModelRevision": "revisions",
    "Job": "jobs",
    "Pod": "pods",
    "PersistentVolumeClaim": "claims",
    "Service": "services",
    "InferenceService": "inference_services",
    "Deployment": "deployments",
    "OptimizationRecipe": "recipes",
}


class World:
    """Objects by kind and name; `settle` lets the operator act until nothing is left to do."""

    def __init__(self, spec: Json, settings: Settings) -> None:
        meta = {"name": "digits", "namespace": NAMESPACE, "uid": "om-1", "generation": 1}
        self.model: Json = {
            "apiVersion": "lathe.dev/v1alpha1",
            "kind": "OptimizedModel",
            "metadata": meta,
            "spec": deepcopy(spec),
        }
        self.settings = settings
        self.now = datetime(2026, 1, 31, 12, tzinfo=UTC)
        self.objects: dict[tuple[str, str], Json] = {}
        self.kserve = True
        self.served: dict[str, str | None] = {}
        self.events: list[Event] = []
        self.created: list[tuple[str, str]] = []
        """Kind and name of everything that the operator has made, in order."""
        self._uids: Iterator[int] = count(1)

    def all(self, kind: str) -> tuple[Json, ...]:
        return tuple(o for (k, _), o in sorted(self.objects.items()) if k == kind)

    def the(self, kind: str) -> Json:
        (found,) = self.all(kind)
        return found

    def put(self, obj: Json) -> Json:
        self.objects[obj["kind"], name_of(obj)] = obj
        return obj

    def change(self, **spec: Any) -> None:
        """The user applies another spec."""
        self.model["spec"] |= deepcopy(spec)
        self.model["metadata"]["generation"] += 1

    def observed(self) -> Observed:
        seen = {name: self.all(kind) for kind, name in LISTS.items()}
        return Observed(model=deepcopy(self.model), kserve=self.kserve, served=dict(self.served), **deepcopy(seen))

    def plan(self) -> Plan:
        return make_plan(self.observed(), self.settings, self.now)

    def step(self) -> Plan:
        """The operator decides once, and does it."""
        plan = self.plan()
        for ref in plan.deletions:
            self._delete(ref)
        for obj in plan.objects:
            self._apply(obj)
        for name, status in plan.revision_status.items():
            revision = self.objects["ModelRevision", name]
            theirs = {k: v for k, v in revision.get("status", {}).items() if k not in _OPERATORS}
            revision["status"] = {**theirs, **deepcopy(status)}
        if plan.status:
            self.model["status"] = deepcopy(plan.status)
        self.events += plan.events
        self.now += timedelta(seconds=1)
        return plan

    def settle(self) -> Plan:
        """Steps until a plan changes nothing; the last one."""
        for _ in range(20):
            before = deepcopy((self.model, self.objects))
            plan = self.step()
            if before == (self.model, self.objects):
                return plan
        raise AssertionError("the operator never comes to rest")

    @property
    def summary(self) -> str:
        return str(self.model["status"]["summary"])

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason."""
        found = next(c for c in self.model["status"]["conditions"] if c["type"] == kind)
        return found["status"], found["reason"]

    def message(self, kind: str) -> str:
        return str(next(c for c in self.model["status"]["conditions"] if c["type"] == kind)["message"])

    def reports(self, revision: Json, **status: Any) -> None:
        """A Job's pod writes to its revision."""
        revision.setdefault("status", {}).update(deepcopy(status))

    def ends(self, job: Json, condition: str = "Complete", reason: str = "") -> None:
        """The Job controller ends a Job."""
        job.setdefault("status", {})["conditions"] = [{"type": condition, "status": "True", "reason": reason}]

    def pod_of(self, job: Json, **status: Any) -> Json:
        """The Job controller makes a pod, and the kubelet says this of it."""
        labels = {"batch.kubernetes.io/job-name": name_of(job), LABEL_MODEL: "digits"}
        return self.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"{name_of(job)}-x", "namespace": NAMESPACE, "labels": labels},
                "spec": job["spec"]["template"]["spec"],
                "status": status,
            }
        )

    def optimizes(self, *, drop: str = "0.0014") -> Json:
        """All Jobs of the newest revision run to their ends; the revision."""
        self.settle()
        revision = next(r for r in self.all("ModelRevision") if name_of(r) == self.model["status"]["observedRevision"])
        for job in self.all("Job"):
            if label(job, "lathe.dev/revision") == name_of(revision) and label(job, LABEL_SEGMENT) == "0":
                self.ends(job)
        self.reports(revision, **finished(revision, drop=drop))
        self.settle()
        return revision

    def kserve_reconciles(self, *, ready: bool = True, digest: str | None = DIGEST) -> None:
        """KServe makes a Deployment for every InferenceService, and its pods come up or not."""
        for service in self.all("InferenceService"):
            replicas = service["spec"]["predictor"]["minReplicas"]
            up = replicas if ready else 0
            name = f"{name_of(service)}-predictor"
            uri = service["spec"]["predictor"]["model"]["storageUri"]
            self.put(
                {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "metadata": {"name": name, "namespace": NAMESPACE, "generation": 1},
                    "spec": {
                        "replicas": replicas,
                        "template": {"metadata": {"annotations": {STORAGE_ANNOTATION: uri}}},
                    },
                    "status": {
                        "observedGeneration": 1,
                        "replicas": replicas,
                        "updatedReplicas": replicas,
                        "availableReplicas": up,
                    },
                }
            )
            self.served[name_of(service)] = digest if ready else None
        for deployment in self.all("Deployment"):
            if find(self.all("InferenceService"), name_of(deployment).removesuffix("-predictor")) is None:
                del self.objects["Deployment", name_of(deployment)]

    def selected(self) -> str:
        """The InferenceService that the one stable Service points at."""
        return str(self.the("Service")["spec"]["selector"][KSERVE_LABEL])

    def _apply(self, obj: Json) -> None:
        key = obj["kind"], name_of(obj)
        found = self.objects.get(key)
        if found is None:
            self.created.append(key)
            extra = {"uid": f"uid-{next(self._uids)}", "generation": 1, "creationTimestamp": self.now.isoformat()}
            self.put(deepcopy(obj))["metadata"].update(extra)
        else:
            kept = {k: v for k, v in found["metadata"].items() if k in ("uid", "generation", "creationTimestamp")}
            changed = {**deepcopy(obj), "metadata": {**obj["metadata"], **kept}}
            self.objects[key] = {**found, **changed}

    def _delete(self, ref: Ref) -> None:
        gone = self.objects.pop((ref.kind, ref.name))
        uid = gone["metadata"]["uid"]
        for key, obj in list(self.objects.items()):
            if any(o["uid"] == uid for o in obj["metadata"].get("ownerReferences", [])):
                del self.objects[key]


_OPERATORS = ("summary", "observedGeneration", "conditions")


def finished(revision: Json, *, drop: str = "0.0014") -> Json:
    """What the last Job of a revision writes when everything went well."""
    targets = [
        {
            "name": t["name"],
            "hardware": t["hardware"],
            "state": "Built",
            "artifact": DIGEST,
            "repository": f"pvc://store/repositories/{name_of(revision)}/{t['name']}",
            "sizeRatio": "27.4",
            "latencyRatio": "4.93",
            "originalQuality": "0.9958",
            "quality": f"{0.9958 - float(drop):.4f}",
            "qualityDrop": drop,
        }
        for t in revision["spec"]["targets"]
    ]
    return {
        "inputs": [{"field": "model", "uri": "pvc://files/teacher.pt2", "digest": DIGEST}],
        "verdict": "Passed",
        "targets": targets,
        "finishedAt": "2026-01-31T12:05:00Z",
    }
