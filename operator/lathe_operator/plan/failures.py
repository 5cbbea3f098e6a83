"""Why a Job or a server does not come up, read off what Kubernetes says of its pods and claims."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from lathe_api.wiring import EXIT_OUT_OF_MEMORY
from lathe_operator.plan.observed import Json, condition_of, dig, find, name_of

_IMAGE: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_MEMORY: Final = "OOMKilled"
_LONGEST: Final = 1500


@dataclass(frozen=True)
class Trouble:
    """What stands in the way."""

    reason: str
    """One word in CamelCase."""
    message: str
    """What was found and what to do."""
    summary: str
    """For the one column."""
    final: bool = False
    """Whether Kubernetes has given up."""


def pods_trouble(pods: Sequence[Json], claims: Sequence[Json]) -> Trouble | None:
    """The first thing that keeps one of the pods from running."""
    for pod in sorted(pods, key=_created, reverse=True):
        if dig(pod, "status", "phase") == "Succeeded":
            continue
        if trouble := _waiting(pod) or _unscheduled(pod, claims):
            return trouble
    return None


def job_trouble(job: Json, pods: Sequence[Json], stage: str) -> Trouble | None:
    """Why a Job has failed; None while Kubernetes still tries.

    Args:
        job: the Job.
        pods: its pods.
        stage: what people know its work by.
    """
    failed = condition_of(job, "Failed")
    if failed is None or failed.get("status") != "True":
        return None
    why = str(failed.get("reason", "Failed"))
    ended = last_end(pods)
    words = str(ended.get("message", "")).strip()[:_LONGEST] if ended else ""
    if why == "PodFailurePolicy" and words:
        return Trouble("BadInput", words, f"Refused: {_first_line(words)}", final=True)
    if ended is not None and reached_memory(ended):
        return out_of_memory(stage, words, final=True)
    if why == "DeadlineExceeded":
        message = f"Job {name_of(job)} took longer than the timeouts of its stages. Raise `timeout` of stage {stage}"
        return Trouble("DeadlineExceeded", message, f"Stage {stage} ran out of time", final=True)
    tail = words or str(failed.get("message", ""))
    message = f"Job {name_of(job)} failed ({why}): {tail}"
    return Trouble("StageFailed", message, f"Stage {stage} failed: {_first_line(tail)}"[:1024], final=True)


def reached_memory(end: Json) -> bool:
    """Whether a container ended because of a memory limit: its own, or that of a stage, which it tells in words."""
    told = bool(end.get("message")) and end.get("exitCode") == EXIT_OUT_OF_MEMORY
    return end.get("reason") == _MEMORY or told


def out_of_memory(stage: str, words: str = "", *, final: bool = False) -> Trouble:
    """A stage was ended because a memory limit was reached; `words` are the pod's own, if it left any."""
    return Trouble(
        "OutOfMemory",
        words
        or f"The pod of stage {stage} was ended because it reached its memory limit. "
        "Raise the stage's `resources.memory`, or lower its `batchSize`",
        f"Stage {stage} ran out of memory",
        final=final,
    )


def last_end(pods: Iterable[Json]) -> Json | None:
    """The newest `terminated` block of the pods' containers."""
    found: list[Json] = []
    for pod in pods:
        for status in dig(pod, "status", "containerStatuses", default=[]):
            found += [e for e in (dig(status, "state", "terminated"), dig(status, "lastState", "terminated")) if e]
    return max(found, key=lambda end: str(end.get("finishedAt") or ""), default=None)


def _waiting(pod: Json) -> Trouble | None:
    statuses = dig(pod, "status", "initContainerStatuses", default=[]) + dig(
        pod, "status", "containerStatuses", default=[]
    )
    for status in statuses:
        reason, message = dig(status, "state", "waiting", "reason"), dig(status, "state", "waiting", "message")
        image = str(status.get("image", ""))
        if reason in _IMAGE:
            text = f"Pod {name_of(pod)}: image {image} cannot be pulled ({reason}: {message}). "
            return Trouble(
                "ImagePull", text + "Check its name, and that the nodes may pull it", f"Cannot pull image {image}"
            )
        if reason == "CreateContainerConfigError":
            return Trouble("PodConfig", f"Pod {name_of(pod)} cannot be made: {message}", f"Pod not made: {message}")
        if reason == "CrashLoopBackOff" or _started_again(status):
            return _crashed(pod, dig(status, "lastState", "terminated", default={}))
    return None


def _started_again(status: Json) -> bool:
    """Between two crashes a container runs for a while, and is never ready."""
    ended = dig(status, "lastState", "terminated", "exitCode", default=0)
    return bool(status.get("restartCount")) and not status.get("ready") and ended != 0


def _crashed(pod: Json, end: Json) -> Trouble:
    if end.get("reason") == _MEMORY:
        text = f"Pod {name_of(pod)} reached its memory limit. Raise `serving.resources` of the target"
        return Trouble("OutOfMemory", text, "Server ran out of memory")
    words = str(end.get("message") or f"exit status {end.get('exitCode')}").strip()[-_LONGEST:]
    return Trouble("CrashLoop", f"Pod {name_of(pod)} ends again and again: {words}", "Server crashes")


def _unscheduled(pod: Json, claims: Sequence[Json]) -> Trouble | None:
    scheduled = condition_of(pod, "PodScheduled")
    if scheduled is None or scheduled.get("status") != "False":
        return None
    message = str(scheduled.get("message", ""))
    for volume in dig(pod, "spec", "volumes", default=[]):
        claim = dig(volume, "persistentVolumeClaim", "claimName")
        if claim is None:
            continue
        seen = find(claims, claim)
        if seen is None:
            text = f"Pod {name_of(pod)} needs the PersistentVolumeClaim {claim}, which does not exist. Create it"
            return Trouble("ClaimMissing", text, f"Waiting for claim {claim}")
        if dig(seen, "status", "phase") != "Bound" and not _waits_for_pod(message):
            text = f"PersistentVolumeClaim {claim} is {dig(seen, 'status', 'phase', default='Pending')}: {message}. "
            return Trouble(
                "ClaimNotBound",
                text + "Check its storage class and that a volume of its size exists",
                f"Waiting for claim {claim}",
            )
    nodes = re.sub(r"\s+", " ", message)
    text = f"Pod {name_of(pod)} fits on no node: {nodes}. Check `pool` and `resources`, or add a node"
    return Trouble("NoNode", text, "Waiting for a node that fits")


def _waits_for_pod(message: str) -> bool:
    """A claim of a storage class that binds on first use stays Pending until its pod has a node."""
    return "unbound" not in message and "persistentvolumeclaim" not in message


def _created(pod: Json) -> str:
    return str(dig(pod, "metadata", "creationTimestamp", default=""))


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:200]
