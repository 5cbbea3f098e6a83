"""What the gates said of a finished revision, and whether its model repositories are stored."""

from lathe_api.optimizedmodel import OptimizedModel
from lathe_api.status import ConditionType
from lathe_api.summary import TargetState, Verdict
from lathe_operator.plan.facts import Fact, Part, false, true
from lathe_operator.plan.observed import Json, dig, name_of
from lathe_operator.plan.rollout import built


def prove(model: OptimizedModel, revision: Json) -> Part:
    """The verdict on a revision whose stages are done; done itself where a target may be rolled out."""
    targets: list[Json] = dig(revision, "status", "targets", default=[])
    refused = [t for t in targets if t.get("state") == TargetState.REFUSED]
    gates, summary = _refusal(revision, refused) if refused else (_passed(model, revision), "")
    ready = [t.name for t in model.spec.targets if built(revision, t.name)]
    lost = [t["name"] for t in targets if t.get("state") == TargetState.BUILT and t["name"] not in ready]
    if lost:
        text = f"No model repository was stored for {', '.join(lost)}. Delete ModelRevision {name_of(revision)}"
        stored = false(ConditionType.PUBLISHED, "NoRepository", text)
    elif ready:
        stored = true(ConditionType.PUBLISHED, "Stored", f"Model repositories of {', '.join(ready)} are stored")
    else:
        stored = false(ConditionType.PUBLISHED, "NothingBuilt", _why_nothing(targets))
        summary = summary or "Nothing was built"
    return Part((gates, stored), summary, done=bool(ready), final=True)


def _passed(model: OptimizedModel, revision: Json) -> Fact:
    if not model.spec.gates:
        return true(ConditionType.GATES_PASSED, "NoGates", "The document has no gates")
    undecided = [g["name"] for g in _not_passed(revision)]
    if undecided:
        text = f"Went on as onInconclusive or onFail says: {', '.join(undecided)}"
        return true(ConditionType.GATES_PASSED, "Tolerated", text)
    return true(ConditionType.GATES_PASSED, "Passed")


def _refusal(revision: Json, refused: list[Json]) -> tuple[Fact, str]:
    stopped = {t["name"] for t in refused}
    gates = [g for g in _not_passed(revision) if g["name"].partition(".")[0] in stopped]
    worst = next((g for g in gates if g["verdict"] == Verdict.FAILED), gates[0] if gates else None)
    if worst is None:
        text = "; ".join(f"{t['name']}: {t.get('message', 'refused')}" for t in refused)
        return false(ConditionType.GATES_PASSED, "Refused", text), f"Refused for {', '.join(sorted(stopped))}"
    text = "; ".join(f"gate {g['name']} {g['verdict']}: {g['reason']} (bound: {g['bound']})" for g in gates)
    advice = "; ".join(t["message"] for t in refused if t.get("message"))
    name = worst["name"].rpartition(".")[2]
    if worst["verdict"] == Verdict.FAILED:
        reason, summary = "GateFailed", f"Refused by gate {name}"
    else:
        reason, summary = "GateInconclusive", f"Gate {name} is inconclusive"
    return false(ConditionType.GATES_PASSED, reason, f"{text}. {advice}" if advice else text), summary


def _not_passed(revision: Json) -> list[Json]:
    return [g for g in dig(revision, "status", "gates", default=[]) if g.get("verdict") != Verdict.PASSED]


def _why_nothing(targets: list[Json]) -> str:
    found = [f"{t['name']} {t.get('state')}" + (f": {t['message']}" if t.get("message") else "") for t in targets]
    return "No target was built. " + "; ".join(found) if found else "No target was built"
