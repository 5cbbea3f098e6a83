"""Documents that search, in Python."""

from lathe_api.optimizedmodel import OptimizedModel
from support.documents import document

PRUNE = {"name": "slim", "type": "Prune", "prune": {"method": "StructuredMagnitude", "parameters": "0.3"}}
DISTILL = {
    "name": "student",
    "type": "Distill",
    "distill": {"student": {"width": "0.5"}, "losses": [{"type": "Response"}], "epochs": 1},
}
QUANTIZE = {"name": "int8", "type": "Quantize", "quantize": {"method": "Static"}}
SHARES = {"stage": "slim", "field": "prune.parameters", "values": ["0.3", "0.5", "0.7"]}
METHODS = {"stage": "int8", "field": "quantize.method", "values": ["Static", "Float16"]}


def searching(*listed, stages=(PRUNE, QUANTIZE), gates=(), train=True, **search) -> OptimizedModel:
    value = document(list(stages), gates=list(gates)).model_dump(mode="json", by_alias=True, exclude_none=True)
    value["spec"]["search"] = {"choices": list(listed), "goals": [{"metric": "latencyRatio"}], **search}
    if not train:
        del value["spec"]["data"]["train"]
        value["spec"]["data"]["calibration"] = {"source": value["spec"]["data"]["evaluation"]}
    return OptimizedModel.model_validate(value, by_alias=True, by_name=False)
