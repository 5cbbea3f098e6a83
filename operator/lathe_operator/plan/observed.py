"""What is seen of the world, and what is to be done about it: two types that are never mixed up."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Ref:
    """Which object."""

    api_version: str
    kind: str
    namespace: str | None
    name: str


@dataclass(frozen=True)
class Observed:
    """All that a decision about one OptimizedModel is made from, as the API server gave it."""

    model: Json
    """The OptimizedModel."""
    recipes: tuple[Json, ...] = ()
    """OptimizationRecipes of its namespace and ClusterOptimizationRecipes, where it refers to one."""
    revisions: tuple[Json, ...] = ()
    """Its ModelRevisions."""
    jobs: tuple[Json, ...] = ()
    """Its Jobs."""
    pods: tuple[Json, ...] = ()
    """Pods of its Jobs and servers."""
    claims: tuple[Json, ...] = ()
    """PersistentVolumeClaims of its namespace."""
    services: tuple[Json, ...] = ()
    """Its Services."""
    inference_services: tuple[Json, ...] = ()
    """Its InferenceServices."""
    deployments: tuple[Json, ...] = ()
    """Deployments that KServe made for these."""
    kserve: bool = True
    """Whether the cluster knows InferenceServices."""
    served: Mapping[str, str | None] = field(default_factory=dict)
    """By InferenceService: digest of the artifact that its server reports; None where nothing answers."""


@dataclass(frozen=True)
class Event:
    """Something worth telling that happened to the OptimizedModel."""

    reason: str
    """One word in CamelCase."""
    message: str
    """For people, at most 1024 characters."""
    warning: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done, in the order: deletions, objects, revision status, status, events."""

    objects: tuple[Json, ...] = ()
    """Objects to apply server-side, in order; only the fields that the operator owns."""
    deletions: tuple[Ref, ...] = ()
    """Objects to delete, with what they own, in the background."""
    status: Json = field(default_factory=dict)
    """The whole status of the OptimizedModel."""
    revision_status: Mapping[str, Json] = field(default_factory=dict)
    """By name of a ModelRevision: the part of its status that the operator owns."""
    events: tuple[Event, ...] = ()
    """What to tell."""
    requeue_after: float | None = None
    """Seconds until the next look, where no watch tells of the change that is waited for."""


def dig(value: object, *path: str | int, default: Any = None) -> Any:
    """What lies at a path of keys and indexes of nested JSON; the default where a step is missing or null."""
    for step in path:
        match value, step:
            case dict(), str() if step in value:
                value = value[step]
            case list() | tuple(), int() if -len(value) <= step < len(value):
                value = value[step]
            case _:
                return default
    return default if value is None else value


def name_of(obj: Json) -> str:
    """metadata.name."""
    return str(obj["metadata"]["name"])


def label(obj: Json, key: str) -> str | None:
    """A label, or None."""
    found = dig(obj, "metadata", "labels", key)
    return None if found is None else str(found)


def find(objects: Iterable[Json], name: str) -> Json | None:
    """The object of that name, or None."""
    return next((o for o in objects if name_of(o) == name), None)


def condition_status(obj: Json, kind: str) -> str | None:
    """Status of a condition: True, False, Unknown; None where there is no such condition."""
    found = condition_of(obj, kind)
    return None if found is None else str(found.get("status"))


def condition_of(obj: Json, kind: str) -> Json | None:
    """A condition, or None."""
    conditions: list[Json] = dig(obj, "status", "conditions", default=[])
    return next((c for c in conditions if c.get("type") == kind), None)


def ref_of(obj: Json) -> Ref:
    """Which object it is."""
    return Ref(obj["apiVersion"], obj["kind"], dig(obj, "metadata", "namespace"), name_of(obj))
