"""What the graph of a `.pt2` file may say before it is read by torch.

`models/model.json` looks like data, but reading and running it can execute what it says (torch 2.13, `_export/serde`):

- operators are looked up by name below `torch`, `math` and `operator`: `torch.hub.load` would be called like `relu`;
- symbolic sizes are parsed by `sympy.sympify`, which evaluates Python;
- names of values, weights and arguments are pasted into the source of `forward`;
- guards are pasted into the source of a guard function;
- tree structures may name enum classes, whose modules are imported.

So names must be names, operators must be PyTorch's own, sizes must be arithmetic, and everything that is not needed is
dropped. Devices become `cpu`, so that a program exported beside a GPU can be read where there is none.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import torch
from torch._export.serde.schema import ScalarType
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

from lathe_optimizers.passes import size_expressions

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,511}")
_LABEL: Final = re.compile(r"[A-Za-z0-9_.:/+ \-]{0,1024}")
"""Weight names, module paths, versions: nothing that could end a quoted string or a line of Python."""
_STACK: Final = re.compile(r"[^\x00-\x1f\x7f]*")
_OPERATOR: Final = re.compile(r"torch\.ops\.([a-z_]+)\.([A-Za-z0-9_]+)(?:\.([A-Za-z0-9_]+))?")
_NAMESPACES: Final = frozenset({"aten", "prims", "quantized_decomposed"})
_CONTROL_FLOW: Final = frozenset(
    {"cond", "while_loop", "scan", "map_impl", "wrap_with_set_grad_enabled", "wrap_with_autocast"}
)
_SIZE_FUNCTIONS: Final = frozenset(
    {f"_operator.{name}" for name in (
        "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lshift", "lt", "mod", "mul", "ne", "neg", "or_",
        "pos", "pow", "rshift", "sub", "truediv",
    )}
    | {f"math.{name}" for name in ("ceil", "floor", "trunc")}
    | {f"torch.{name}" for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "_sym_sqrt")}
)  # fmt: skip
"""Python functions that compute with sizes."""
_SYMBOL: Final = re.compile(r"[a-z]{1,4}[0-9]{1,5}")
"""torch counts up to the number of a symbol."""
_TREE_TYPES: Final = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None})
_LABELLED_FREELY: Final = frozenset({"as_string", "as_strings"})
"""Values that torch quotes by `repr` wherever it writes them into source."""
_LONGEST_NUMBER: Final = 18

_KEPT: Final = {
    "graph_module": dict,
    "opset_version": dict,
    "range_constraints": dict,
    "schema_version": dict,
    "torch_version": str,
    "verifiers": list,
}
_KEPT_OF_GRAPH: Final = {"graph": dict, "signature": dict, "module_call_graph": list}

Refuse = Callable[[str, str], NoReturn]
"""Raise the error of the file: (what was found, what to do)."""

_PLAIN: Final = "Export the model again with torch.export.export(model, args) and torch.export.save."
_OWN_OPERATORS: Final = "Write the model with PyTorch's own operators, and export it again."


def cleaned(document: dict[str, Any], refuse: Refuse) -> dict[str, Any]:
    """The graph of a program, checked and reduced to what is needed to run it.

    Args:
        document: content of `models/model.json`.
        refuse: raises the error of the file.

    Returns:
        The same document without guards, source locations and further metadata, on the CPU.
    """
    kept = _part(document, _KEPT, refuse)
    kept["graph_module"] = _part(kept["graph_module"], _KEPT_OF_GRAPH, refuse)
    if not all(_SYMBOL.fullmatch(name) for name in kept["range_constraints"]):
        refuse("bounds of something that is no symbol", _PLAIN)
    try:
        _Walk(refuse).value("", kept)
    except RecursionError:
        refuse("a document that is nested too deeply", _PLAIN)
    return kept | {"guards_code": []}


def _part(document: Any, fields: Mapping[str, type], refuse: Refuse) -> dict[str, Any]:
    for name, kind in fields.items():
        if not isinstance(document, dict) or not isinstance(document.get(name), kind):
            refuse(f"no `{name}`", _PLAIN)
    return {name: document[name] for name in fields}


def check_label(label: str, refuse: Refuse) -> None:
    """Refuse a weight name that could not be written into source as it is."""
    if not _LABEL.fullmatch(label):
        refuse(f"the name {label[:80]!r}", "Use letters, digits, `_` and `.` in names; export again.")


def element_bytes(dtype: int) -> int:
    """Bytes of one element.

    Raises:
        KeyError: torch does not know the type.
    """
    return int(_SERIALIZE_TO_TORCH_DTYPE[ScalarType(dtype)].itemsize)


class _Walk:
    """Checks every value of the document, by the key it stands under; a string that no rule knows must be a label."""

    def __init__(self, refuse: Refuse) -> None:
        self.refuse = refuse

    def value(self, key: str, value: Any) -> None:
        match value:
            case dict():
                self.mapping(key, value)
            case list():
                for item in value:
                    self.value(key, item)
            case str():
                self.text(key, value)
            case bool() | float() | None:
                pass
            case int() if len(str(abs(value))) > _LONGEST_NUMBER + 1:
                self.refuse(f"the number {value} under `{key}`", _PLAIN)
            case _:
                pass

    def mapping(self, key: str, value: dict[str, Any]) -> None:
        if set(value) == {"type", "index"} and isinstance(value["type"], str):
            self.device(value)
            return
        if isinstance(value.get("target"), str) and "inputs" in value:
            metadata = value.get("metadata")
            stack = metadata.get("nn_module_stack") if isinstance(metadata, dict) else None
            if stack is not None and not (isinstance(stack, str) and _STACK.fullmatch(stack)):
                self.refuse("a module stack with control characters", _PLAIN)
            value["metadata"] = {} if stack is None else {"nn_module_stack": stack}
        for name, item in value.items():
            if not _LABEL.fullmatch(name):
                self.refuse(f"the name {name!r} under `{key}`", "Rename it: letters, digits, `_` and `.` only.")
            if "custom_obj" in name and item:
                self.refuse(
                    f"a custom object under `{name}`", "Only tensors can be read from a file; export without it."
                )
            if name != "nn_module_stack":
                self.value(name, item)

    def text(self, key: str, text: str) -> None:
        match key:
            case "target" | "as_operator":
                self.operator(text)
            case "expr_str":
                if not size_expressions.is_plain(text):
                    self.refuse(f"the size {text[:80]!r}, which is no plain arithmetic", _PLAIN)
            case "in_spec" | "out_spec":
                self.tree(text)
            case "name" | "as_name" | "forward_arg_names":
                if text and not _IDENTIFIER.fullmatch(text):
                    self.refuse(f"the name {text[:80]!r}, which is no name", _PLAIN)
            case _ if key not in _LABELLED_FREELY and not _LABEL.fullmatch(text):
                self.refuse(f"{text[:80]!r} under `{key}`", "Use letters, digits, `_` and `.` in names; export again.")

    def device(self, device: dict[str, Any]) -> None:
        if device["type"] == "meta":
            self.refuse("a tensor on the device `meta`, which has no values", "Load the weights before the export.")
        device["type"], device["index"] = "cpu", None

    def operator(self, target: str) -> None:
        if target in _SIZE_FUNCTIONS:
            return
        found = _OPERATOR.fullmatch(target)
        if not found:
            self.refuse(f"a call of `{target[:80]}`, which is no operator", _OWN_OPERATORS)
        namespace, name, overload = found.groups()
        if namespace == "higher_order":
            if name not in _CONTROL_FLOW or overload:
                self.refuse(f"the operator `{target}`", _OWN_OPERATORS)
            return
        if namespace not in _NAMESPACES:
            self.refuse(f"the custom operator `{namespace}::{name}`", _OWN_OPERATORS)
        full = f"{namespace}::{name}" + (f".{overload}" if overload not in (None, "default") else "")
        # What the dispatcher does not know are functions of TorchScript, such as `aten::save`, which writes files.
        if overload is None or not torch._C._dispatch_has_kernel(full):  # noqa: SLF001 - no public counterpart
            self.refuse(f"the operator `{full}`, which torch {torch.__version__} does not have", _OWN_OPERATORS)
        if name == "from_file":
            self.refuse(f"the operator `{full}`, which reads and writes files", _OWN_OPERATORS)

    def tree(self, text: str) -> None:
        try:
            _, spec = json.loads(text)
            pending = [spec]
            while pending:
                node = pending.pop()
                context = node["context"]
                if node["type"] not in _TREE_TYPES:
                    self.refuse(f"inputs or outputs of type `{str(node['type'])[:80]}`", _PLAIN)
                keys = json.loads(context) if isinstance(context, str) else context
                if keys is not None and not (
                    isinstance(keys, list) and all(isinstance(k, str) and _IDENTIFIER.fullmatch(k) for k in keys)
                ):
                    self.refuse(f"inputs or outputs with the keys {str(context)[:80]!r}", _PLAIN)
                pending.extend(node["children_spec"])
        except (ValueError, TypeError, KeyError, RecursionError):
            self.refuse(f"a structure of inputs that cannot be read: {text[:80]!r}", _PLAIN)
