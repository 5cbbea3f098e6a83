"""The whole decision about one OptimizedModel: pure, so that every state of the world can be put to it in a test."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.status import ConditionType
from lathe_operator.plan.building import build, superseded
from lathe_operator.plan.facts import NEEDED, Fact, Part, changes, conditions_of, false, judged, true
from lathe_operator.plan.history import best, outdated
from lathe_operator.plan.observed import Event, Json, Observed, Plan, dig, find, name_of
from lathe_operator.plan.proving import prove
from lathe_operator.plan.resolve import RefusalError, parse, resolve
from lathe_operator.plan.revision import revision as revision_of
from lathe_operator.plan.rollout import roll_out, serving_revision
from lathe_operator.plan.standing import left_behind, revision_status, status
from lathe_operator.settings import Settings

NEW_REVISION_SECONDS: Final = 1.0
"""Next look after a revision was made: what belongs to it needs its uid."""
_KEPT: Final = ("columns", "observedRevision", "servingRevision", "traffic", "best", "url", "targets")
"""What stays as it was when a document is refused: what serves goes on."""
_NEWS: Final = {"ModelRevision": "RevisionCreated", "Job": "JobCreated"}


def make_plan(observed: Observed, settings: Settings, now: datetime) -> Plan:
    """What is to be done about an OptimizedModel.

    Args:
        observed: everything that is known; the model's own revisions, Jobs and servers included.
        settings: of the operator.
        now: for conditions that change; must have a time zone.

    Returns:
        The plan. Made again from a world in which it has been carried out, it asks for nothing new.
    """
    raw = observed.model
    if dig(raw, "metadata", "deletionTimestamp") is not None:
        return Plan()
    try:
        model = resolve(parse(raw), observed, settings)
    except RefusalError as refusal:
        return _refused(refusal, raw, now)
    wanted = revision_of(model, raw)
    name = name_of(wanted)
    current = find(observed.revisions, name)
    parts = _work(model, wanted, current, observed, settings)
    proved = current if parts[-1].done else None
    rollout = roll_out(model, proved, observed)
    summary = _summary(parts, rollout.part, observed)
    parts.append(rollout.part)
    facts = (true(ConditionType.RECIPE_VALID, "Resolved"), *(f for p in parts for f in p.facts))
    wished = status(model, name, facts, summary, rollout, observed, settings, now)
    if top := best(model, observed):
        wished["best"] = top
    kept = {name, *_serving(model, observed), *([top["revision"]] if top else [])}
    revisions = left_behind(name, observed)
    if current is not None:
        revisions[name] = revision_status(current, parts, _so_far(parts[:-1]), now)
    return Plan(
        objects=tuple(o for p in parts for o in p.objects),
        deletions=(
            *superseded(name, observed),
            *(d for p in parts for d in p.deletions),
            *outdated(model, observed, kept),
        ),
        status=wished,
        revision_status=revisions,
        events=(*_begun(parts), *changes(conditions_of(raw), conditions_of({"status": wished}))),
        requeue_after=min((p.requeue_after for p in parts if p.requeue_after is not None), default=None),
    )


def _work(
    model: OptimizedModel, wanted: Json, current: Json | None, observed: Observed, settings: Settings
) -> list[Part]:
    """The steps up to a stored model repository, as far as they have come; the last one tells whether it may serve."""
    if current is None:
        return [Part((), "Recording the revision", objects=(wanted,), requeue_after=NEW_REVISION_SECONDS)]
    if dig(current, "metadata", "deletionTimestamp") is not None:
        return [Part((), "Waiting for the end of a deleted revision", requeue_after=NEW_REVISION_SECONDS)]
    work = build(model, current, observed, settings)
    return [work, prove(model, current)] if work.done else [work]


def _summary(parts: Sequence[Part], rollout: Part, observed: Observed) -> str:
    """The first that is not as it should be; else how it is served."""
    words = next((p.summary for p in parts if p.summary), "")
    if not words:
        return rollout.summary
    serving = dig(observed.model, "status", "servingRevision")
    return f"{words}; {rollout.summary[:1].lower()}{rollout.summary[1:]}" if serving and rollout.summary else words


def _so_far(parts: Sequence[Part]) -> str:
    return next((p.summary for p in parts if p.summary), "Published")


def _serving(model: OptimizedModel, observed: Observed) -> Iterable[str]:
    found = (serving_revision(t.name, observed.model, observed) for t in model.spec.targets)
    return (name for name in found if name is not None)


def _begun(parts: Iterable[Part]) -> tuple[Event, ...]:
    objects = (o for p in parts for o in p.objects if o["kind"] in _NEWS)
    return tuple(Event(_NEWS[o["kind"]], f"Created {o['kind']} {name_of(o)}") for o in objects)


def _refused(refusal: RefusalError, raw: Json, now: datetime) -> Plan:
    """Nothing is done but to say why; what serves goes on."""
    before = conditions_of(raw)
    generation = int(raw["metadata"].get("generation", 0))
    found: list[Fact] = [false(refusal.kind, refusal.reason, refusal.message)]
    after = judged(before, found, NEEDED, generation, now)
    wished = {
        **{key: raw["status"][key] for key in _KEPT if key in raw.get("status", {})},
        "summary": refusal.summary,
        "observedGeneration": generation,
        "conditions": [c.model_dump(mode="json", by_alias=True) for c in after],
    }
    return Plan(status=wished, events=changes(before, after))
