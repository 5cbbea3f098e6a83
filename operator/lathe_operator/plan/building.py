"""The Jobs of a revision: which one is next, how far the running one is, and why it does not go on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.stageorder import IMPORT_STAGE, known_stage_names
from lathe_api.status import ConditionType
from lathe_api.wiring import LABEL_REVISION
from lathe_operator.plan import names
from lathe_operator.plan.facts import TROUBLE_SECONDS, Fact, Part, troubled, true, unknown
from lathe_operator.plan.failures import Trouble, job_trouble, last_end, out_of_memory, pods_trouble, reached_memory
from lathe_operator.plan.objects.job import job
from lathe_operator.plan.objects.records import config_map, identity
from lathe_operator.plan.observed import (
    Json,
    Observed,
    Ref,
    condition_of,
    condition_status,
    dig,
    find,
    label,
    name_of,
    ref_of,
)
from lathe_operator.plan.segments import Segment, is_done, segments
from lathe_operator.settings import Settings

POD_JOB_LABEL: Final = "batch.kubernetes.io/job-name"
"""The Job controller puts it on the pods of a Job."""
_DOING: Final = ConditionType.OPTIMIZED


def build(model: OptimizedModel, revision: Json, observed: Observed, settings: Settings) -> Part:
    """What is to be done so that the revision's stages are all done.

    Args:
        model: resolved.
        revision: its ModelRevision as the API server gave it.
        observed: what is there.
        settings: of the operator.
    """
    if dig(revision, "status", "finishedAt") is not None:
        return Part((_read(revision), true(_DOING, "StagesDone")), "", done=True)
    if failed := _given_up(revision):
        return _stuck(revision, failed)
    found = segments(model.spec.recipe.stages, model.spec.model.format, model.spec.search)
    segment = next(s for s in found if not is_done(s, revision))
    before = find(observed.jobs, names.job(name_of(revision), segment.index - 1))
    if before is not None and not _ended(before):
        return _going_on(revision, before, observed, model)
    wanted = job(segment, revision, model.spec.jobs, settings)
    there = find(observed.jobs, name_of(wanted))
    if there is None:
        return _start(revision, segment, wanted, model)
    if not _belongs(there, revision):
        text = f"Job {name_of(there)} of a deleted ModelRevision of this name is being removed"
        return Part((_read(revision), unknown(_DOING, "CleaningUp", text)), "Cleaning up", requeue_after=1.0)
    return _started(revision, segment, there, observed, model)


def superseded(revision_name: str, observed: Observed) -> tuple[Ref, ...]:
    """Jobs of other revisions that still run: nobody waits for them any more."""
    return tuple(ref_of(j) for j in observed.jobs if label(j, LABEL_REVISION) != revision_name and not _ended(j))


def progress(revision: Json, model: OptimizedModel, segment: Segment | None = None) -> str:
    """How far the work is, for the one column: `Optimizing student 41 % (2m)`, `Optimizing int8 (3 of 4)`."""
    searched: Json = dig(revision, "status", "search", default={})
    if searched and searched.get("chosen") is None:
        return f"Searching ({searched.get('trials', 0)} of {searched.get('maxTrials', 0)} trials)"
    order = known_stage_names(model.spec.recipe.stages)
    stages: list[Json] = dig(revision, "status", "stages", default=[])
    running = next((s for s in stages if s.get("state") == "Running"), None)
    if running is None:
        begun = {_short(s) for s in stages}
        pending = [n for n in (segment.stages if segment else order) if n not in begun and n != IMPORT_STAGE]
        return _counted(pending[0], order) if pending else "Optimizing"
    name = _short(running)
    if running.get("percent") is None:
        return _counted(name, order)
    left = running.get("etaSeconds")
    return f"Optimizing {name} {running['percent']} %" + ("" if left is None else f" ({_rough(int(left))})")


def _start(revision: Json, segment: Segment, wanted: Json, model: OptimizedModel) -> Part:
    if model.spec.suspend:
        text = "spec.suspend is true: nothing new is started. Set it to false to go on"
        return Part((_read(revision), unknown(_DOING, "Suspended", text)), "Suspended")
    needs = (config_map(revision), *identity(revision, model.spec.jobs.pool.service_account_name))
    fact = unknown(_DOING, "Optimizing", f"Job {name_of(wanted)} runs")
    return Part((_read(revision), fact), progress(revision, model, segment), objects=(*needs, wanted))


def _started(revision: Json, segment: Segment, there: Json, observed: Observed, model: OptimizedModel) -> Part:
    stage = _stage_at_work(revision, segment)
    if trouble := job_trouble(there, _pods(there, observed), stage):
        return _stuck(revision, _with_remedy(trouble, revision))
    if condition_status(there, "Complete") == "True":
        text = f"Job {name_of(there)} is complete, but the ModelRevision does not tell its result"
        lost = Trouble("NoResult", text, "The Job left no result", final=True)
        return _stuck(revision, _with_remedy(lost, revision))
    return _going_on(revision, there, observed, model, segment)


def _going_on(
    revision: Json, there: Json, observed: Observed, model: OptimizedModel, segment: Segment | None = None
) -> Part:
    pods = _pods(there, observed)
    stage = _stage_at_work(revision, segment) if segment else ""
    if trouble := pods_trouble(pods, observed.claims) or _starts_over(there, pods, stage):
        return Part((_read(revision), troubled(_DOING, trouble)), trouble.summary, requeue_after=TROUBLE_SECONDS)
    if dig(there, "spec", "suspend"):
        queue = model.spec.jobs.queue_name
        text = f"Job {name_of(there)} is suspended" + (f": it waits in queue {queue}" if queue else "")
        words = f"Queued in {queue}" if queue else "Job suspended"
        return Part((_read(revision), unknown(_DOING, "Queued", text)), words)
    words = progress(revision, model, segment)
    # The percentage stays out of the condition, which only changes when something happens.
    return Part((_read(revision), unknown(_DOING, "Optimizing", f"Job {name_of(there)} runs")), words)


def _starts_over(there: Json, pods: Sequence[Json], stage: str) -> Trouble | None:
    """A pod has died, and Kubernetes has not started the next one yet."""
    if any(dig(p, "status", "phase") in ("Pending", "Running") for p in pods) or not dig(there, "status", "failed"):
        return None
    ended = last_end(pods) or {}
    words = str(ended.get("message", "")).strip()
    if reached_memory(ended):
        return out_of_memory(stage, words)
    words = words or "no reason was left"
    text = f"A pod of Job {name_of(there)} died and will be started again: {words}"
    return Trouble("Retrying", text, f"Stage {stage} is tried again")


def _stuck(revision: Json, trouble: Trouble) -> Part:
    return Part((_read(revision), troubled(_DOING, trouble)), trouble.summary, final=True)


def _with_remedy(trouble: Trouble, revision: Json) -> Trouble:
    remedy = (
        f"To try again without a change of spec, delete ModelRevision {name_of(revision)}: the store keeps what is done"
    )
    return replace(trouble, message=f"{trouble.message.rstrip('.')}. {remedy}")


def _given_up(revision: Json) -> Trouble | None:
    """The final failure that the revision remembers, even when its Job is long gone."""
    found = condition_of(revision, _DOING)
    if found is None or found["status"] != "False":
        return None
    return Trouble(found["reason"], found["message"], dig(revision, "status", "summary", default=""), final=True)


def _read(revision: Json) -> Fact:
    kind = ConditionType.INPUTS_RESOLVED
    inputs = dig(revision, "status", "inputs", default=[])
    if inputs or dig(revision, "status", "finishedAt") is not None:
        return true(kind, "Read")
    return unknown(kind, "NotRead", "The first Job reads them")


def _pods(there: Json, observed: Observed) -> tuple[Json, ...]:
    return tuple(p for p in observed.pods if label(p, POD_JOB_LABEL) == name_of(there))


def _belongs(there: Json, revision: Json) -> bool:
    uids = {o.get("uid") for o in dig(there, "metadata", "ownerReferences", default=[])}
    return revision["metadata"]["uid"] in uids


def _ended(there: Json) -> bool:
    return "True" in (condition_status(there, "Complete"), condition_status(there, "Failed"))


def _stage_at_work(revision: Json, segment: Segment) -> str:
    stages: list[Json] = dig(revision, "status", "stages", default=[])
    running = next((_short(s) for s in stages if s.get("state") == "Running"), None)
    done = {_short(s) for s in stages if s.get("state") != "Running"}
    return running or next((n for n in segment.stages if n not in done), segment.stages[-1])


def _counted(stage: str, order: Sequence[str]) -> str:
    return f"Optimizing {stage} ({order.index(stage) + 1} of {len(order)})" if stage in order else f"Optimizing {stage}"


def _short(stage: Json) -> str:
    """Without the target, which is in front of the name of a stage that belongs to one."""
    return str(stage["name"]).rpartition(".")[2]


def _rough(left: int) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if left >= size:
            return f"{round(left / size)}{unit}"
    return f"{left}s"
