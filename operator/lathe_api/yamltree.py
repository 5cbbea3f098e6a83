"""YAML as a tree that remembers where everything was written.

Read from the event stream, without recursion and without building Python objects: aliases, anchors, tags and duplicate
keys are refused, and size, depth and number of nodes are bounded before they can hurt. Plain scalars mean what they
mean to kubectl (YAML 1.1 as in sigs.k8s.io/yaml), so that a file that loads here means the same there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from pydantic import JsonValue

from lathe_api.errors import Problem

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_NODES: Final = 50_000
MAX_DOCUMENTS: Final = 100
_SHOWN: Final = 60
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE: Final = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_DECIMAL_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_NUMBER: Final = re.compile(
    r"[-+]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO]?[0-7_]+|[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?"
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)
_AMBIGUOUS: Final = frozenset({"y", "Y", "n", "N"})

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where a node begins."""

    line: int
    """From 1."""
    column: int
    """From 1."""


@dataclass
class Scalar:
    """A text, number, truth value or nothing."""

    place: Place
    text: str
    """As written, without quotes."""
    quoted: bool
    """Whether it was in quotes or a block, so that it is a text whatever it looks like."""

    @property
    def kind(self) -> str:
        """`text`, `integer`, `number` (everything numeric that is no plain decimal integer), `boolean` or `nothing`."""
        if self.quoted:
            return "text"
        if self.text in _NULL:
            return "nothing"
        if self.text in _TRUE or self.text in _FALSE:
            return "boolean"
        if _DECIMAL_INT.fullmatch(self.text):
            return "integer"
        return "number" if _NUMBER.fullmatch(self.text) else "text"

    @property
    def value(self) -> JsonValue:
        """As JSON. A `number` becomes 0.5: documents have no such fields, and the text is what is reported."""
        match self.kind:
            case "nothing":
                return None
            case "boolean":
                return self.text in _TRUE
            case "integer":
                return int(self.text)
            case "number":
                return 0.5
            case _:
                return self.text

    @property
    def ambiguous(self) -> bool:
        """A plain `y` or `n`: a text to YAML 1.2, a boolean to kubectl."""
        return not self.quoted and self.text in _AMBIGUOUS

    def describe(self) -> str:
        """How the node is named in a message."""
        text = shown(self.text)
        match self.kind:
            case "nothing":
                return "nothing"
            case "text":
                return f'"{text}"'
            case "integer":
                return f"{text} (a number)"
            case kind:
                return f"{text} (a {kind})"


@dataclass
class Sequence:
    """A list."""

    place: Place
    items: list["Node"] = field(default_factory=list)

    def describe(self) -> str:
        """How the node is named in a message."""
        return f"a list of {len(self.items)}"


@dataclass
class Mapping:
    """Keys and values."""

    place: Place
    items: dict[str, "Node"] = field(default_factory=dict)
    keys: dict[str, Place] = field(default_factory=dict)

    def describe(self) -> str:
        """How the node is named in a message."""
        return "a mapping"


Node = Scalar | Sequence | Mapping


class _RefusedError(Exception):
    """Reading stops: the rest of the file cannot be trusted to mean anything."""

    def __init__(self, place: Place, found: str, remedy: str) -> None:
        super().__init__(found)
        self.place, self.found, self.remedy = place, found, remedy


@dataclass
class _Open:
    """A list or mapping whose end has not been read."""

    node: Sequence | Mapping
    path: Path
    key: Scalar | None = None
    """Key that waits for its value."""
    ignored: bool = False
    """The waiting key cannot be used; its value is read past."""


def read(data: bytes, file: str) -> tuple[list[Node], list[Problem]]:
    """The documents of a file, without empty ones, and what is wrong with them as YAML.

    A file with a problem that makes the rest doubtful ends there: the documents before it are returned.
    """
    builder = _Builder(file)
    try:
        builder.read(data)
    except _RefusedError as refused:
        builder.problem((), refused.place, refused.found, refused.remedy)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(mark)
        said = " ".join(p for p in (error.context, error.problem) if p)
        builder.problem(
            (), place, f"text that is no YAML ({said})", "correct the indentation, quotes and brackets here"
        )
    except yaml.YAMLError:
        builder.problem((), Place(1, 1), "control characters", "write the file as UTF-8 text")
    return builder.documents, builder.problems


def path_text(path: Path) -> str:
    """`spec.recipe.stages[2].prune`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][-A-Za-z0-9_]*", part):
            text += f".{shown(part)}" if text else shown(part)
        else:
            text += f"['{shown(part)}']"
    return text


def shown(text: str) -> str:
    """A text of the user's within a message: one short line."""
    short = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return short if short.isprintable() else short.encode("unicode_escape").decode()


def to_json(node: Node) -> JsonValue:
    """The value of a tree. Fields without a value are left out, as the API server does (no field is nullable)."""
    match node:
        case Scalar():
            return node.value
        case Sequence():
            return [to_json(item) for item in node.items]
        case Mapping():
            return {key: to_json(item) for key, item in node.items.items() if not is_nothing(item)}


def is_nothing(node: Node) -> bool:
    """Whether a field is written without a value."""
    return isinstance(node, Scalar) and node.kind == "nothing"


def walk(node: Node, path: Path = ()) -> Iterator[tuple[Path, Scalar]]:
    """All scalars with their paths, in the order of the text."""
    match node:
        case Scalar():
            yield path, node
        case Sequence():
            for index, item in enumerate(node.items):
                yield from walk(item, (*path, index))
        case Mapping():
            for key, item in node.items.items():
                yield from walk(item, (*path, key))


def _place(mark: Any) -> Place:
    """From a mark of either parser (the C one has a class of its own), or None."""
    return Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)


class _Builder:
    def __init__(self, file: str) -> None:
        self.file = file
        self.documents: list[Node] = []
        self.problems: list[Problem] = []
        self._open: list[_Open] = []
        self._nodes = 0

    def problem(self, path: Path, place: Place, found: str, remedy: str) -> None:
        self.problems.append(Problem(self.file, place.line, place.column, path_text(path), found, remedy))

    def read(self, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            raise _RefusedError(Place(1, 1), f"{len(data)} bytes", f"keep a file below {MAX_BYTES} bytes")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            column = error.start - data.rfind(b"\n", 0, error.start)
            raise _RefusedError(Place(line, column), "bytes that are no UTF-8", "save the file as UTF-8") from error
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            self._take(event)

    def _take(self, event: yaml.Event) -> None:
        place = _place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError(
                place, f"the alias *{shown(str(event.anchor))}", "write the value out: aliases are not read"
            )
        if isinstance(event, yaml.NodeEvent):
            self._check(event, place)
        match event:
            case yaml.ScalarEvent():
                self._place(Scalar(place, event.value, quoted=event.style is not None and event.style != ""))
            case yaml.SequenceStartEvent():
                self._begin(Sequence(place))
            case yaml.MappingStartEvent():
                self._begin(Mapping(place))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._open.pop()
            case _:
                pass

    def _check(self, event: yaml.NodeEvent, place: Place) -> None:
        self._nodes += 1
        if event.anchor is not None:
            raise _RefusedError(
                place, f"the anchor &{shown(event.anchor)}", "remove it: anchors and aliases are not read"
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _RefusedError(place, f"the tag {shown(tag)}", "remove it: tags are not read")
        if self._nodes > MAX_NODES:
            raise _RefusedError(place, f"more than {MAX_NODES} values", "split the file")
        if len(self._open) >= MAX_DEPTH:
            raise _RefusedError(place, f"more than {MAX_DEPTH} levels", "no field of a document is that deep")

    def _begin(self, node: Sequence | Mapping) -> None:
        self._open.append(_Open(node, self._place(node)))

    def _place(self, node: Node) -> Path:
        """Put a node where it belongs; its path."""
        if not self._open:
            if not is_nothing(node):
                self.documents.append(node)
            if len(self.documents) > MAX_DOCUMENTS:
                raise _RefusedError(node.place, f"more than {MAX_DOCUMENTS} documents", "split the file")
            return ()
        top = self._open[-1]
        if isinstance(top.node, Sequence):
            top.node.items.append(node)
            return (*top.path, len(top.node.items) - 1)
        if top.key is None:
            if not isinstance(node, Scalar):
                raise _RefusedError(node.place, f"{node.describe()} as a key", "write a name before the colon")
            self._key(top, top.node, node)
            return (*top.path, node.text)
        key, top.key = top.key, None
        if not top.ignored:
            top.node.items[key.text] = node
        return (*top.path, key.text)

    def _key(self, top: _Open, mapping: Mapping, key: Scalar) -> None:
        top.key, top.ignored = key, False
        path = (*top.path, key.text)
        if first := mapping.keys.get(key.text):
            found = f"the key {shown(key.text)} a second time (first in line {first.line})"
            self.problem(path, key.place, found, "keep one of them")
            top.ignored = True
        elif key.kind != "text":
            remedy = f'write it in quotes: "{shown(key.text)}"' if key.text else "write a name before the colon"
            self.problem(path, key.place, f"the key {key.describe()}", remedy)
            top.ignored = True
        else:
            mapping.keys[key.text] = key.place
