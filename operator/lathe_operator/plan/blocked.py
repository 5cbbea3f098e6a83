"""What is said when the API server refuses something that the plan asks for: a right, a quota, a policy, a rule."""

from datetime import datetime
from typing import Final

from lathe_api.status import ConditionType
from lathe_operator.plan.facts import NEEDED, Fact, conditions_of, false, judged
from lathe_operator.plan.observed import Json, Observed, Plan, name_of

_OF: Final = {
    "ModelRevision": ConditionType.RECIPE_VALID,
    "InferenceService": ConditionType.ROLLED_OUT,
    "Service": ConditionType.ROLLED_OUT,
}
"""Condition that an object stands for; of all others Optimized."""


def blocked(plan: Plan, obj: Json, refusal: str, observed: Observed, now: datetime) -> Json:
    """The status of the OptimizedModel after the API server refused an object of its plan for good.

    Args:
        plan: what was to be done.
        obj: what was refused.
        refusal: what the API server said.
        observed: what the plan was made from.
        now: for conditions that change.
    """
    kind = _OF.get(obj["kind"], ConditionType.OPTIMIZED)
    text = f"The API server refuses {obj['kind']} {name_of(obj)}: {refusal}"
    generation = int(observed.model["metadata"].get("generation", 0))
    planned = conditions_of({"status": plan.status})
    facts = [Fact(c.type, c.status, c.reason, c.message) for c in planned if c.type in NEEDED and c.type is not kind]
    refused = false(kind, "RefusedByServer", text)
    conditions = judged(conditions_of(observed.model), [*facts, refused], NEEDED, generation, now)
    return {
        **plan.status,
        "summary": f"The API server refuses {obj['kind']} {name_of(obj)}",
        "conditions": [c.model_dump(mode="json", by_alias=True) for c in conditions],
    }
