"""The recipe: an ordered list of stages, each inert, versioned data. Behaviour is registered by type elsewhere."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, model_validator

from lathe_api.base import (
    ApiModel,
    Digest,
    Duration,
    FieldName,
    Name,
    NonNegative,
    Positive,
    Quantity,
    Share,
    UnitDecimal,
    Uri,
)
from lathe_api.findings import Finding, exactly_one, refuse
from lathe_api.stageorder import stage_findings

Epochs = Annotated[int, Field(ge=0, le=10_000)]


class StageType(StrEnum):
    """What a stage does."""

    DISTILL = "Distill"
    PRUNE = "Prune"
    FUSE = "Fuse"
    QUANTIZE = "Quantize"
    EXPORT = "Export"


class Schedule(StrEnum):
    """How the learning rate moves over the epochs."""

    CONSTANT = "Constant"
    COSINE = "Cosine"
    ONE_CYCLE = "OneCycle"


class StudentOrigin(StrEnum):
    """Where the student network comes from."""

    TEACHER = "Teacher"
    PT2 = "Pt2"
    REGISTERED = "Registered"


class StudentInit(StrEnum):
    """Weights that a student cut out of the teacher starts from."""

    TEACHER = "Teacher"
    RANDOM = "Random"


class LossType(StrEnum):
    """What the student imitates."""

    RESPONSE = "Response"
    FEATURE = "Feature"


class PruneMethod(StrEnum):
    """Which weights go."""

    MAGNITUDE_UNSTRUCTURED = "MagnitudeUnstructured"
    RANDOM_UNSTRUCTURED = "RandomUnstructured"
    GLOBAL_MAGNITUDE = "GlobalMagnitude"
    STRUCTURED_MAGNITUDE = "StructuredMagnitude"
    N_M = "NM"


class PruneScope(StrEnum):
    """Whether channels compete over the whole network or within their group."""

    GLOBAL = "Global"
    UNIFORM = "Uniform"


class FuseMethod(StrEnum):
    """What is fused."""

    OPERATORS = "Operators"
    SIMILAR_LAYERS = "SimilarLayers"


class FusedOperator(StrEnum):
    """What several operators of a graph become."""

    BATCH_NORM = "BatchNorm"
    LAYER_NORM = "LayerNorm"
    GELU = "Gelu"
    BIAS_GELU = "BiasGelu"
    SKIP_LAYER_NORM = "SkipLayerNorm"
    ATTENTION = "Attention"


class Similarity(StrEnum):
    """By what two layers of one shape are compared."""

    COSINE = "Cosine"
    CKA = "Cka"
    BLOCK_INFLUENCE = "BlockInfluence"


class SharedWeights(StrEnum):
    """What later training does to weights that layers share."""

    TRAINED = "Trained"
    FROZEN = "Frozen"


class QuantizeMethod(StrEnum):
    """How weights and activations become integers."""

    DYNAMIC = "Dynamic"
    STATIC = "Static"
    QUANTIZATION_AWARE = "QuantizationAware"
    WEIGHT_ONLY_4 = "WeightOnly4"
    WEIGHT_ONLY_8 = "WeightOnly8"
    FLOAT16 = "Float16"


class CalibrationMethod(StrEnum):
    """How an activation range is read off the calibration samples."""

    MIN_MAX = "MinMax"
    ENTROPY = "Entropy"
    PERCENTILE = "Percentile"


class Portability(StrEnum):
    """Whether an exported graph may be optimised for the CPU that exports it."""

    PORTABLE = "Portable"
    HOST_TUNED = "HostTuned"


class Training(ApiModel):
    """How a stage that trains does so."""

    epochs: Epochs
    """Passes over the training set."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Samples per step."""
    learning_rate: Positive = "0.001"
    """Peak learning rate of AdamW."""
    weight_decay: NonNegative = "0.01"
    """Decoupled weight decay of AdamW."""
    schedule: Schedule = Schedule.COSINE
    """How the learning rate moves."""


class Student(ApiModel):
    """The network that learns."""

    from_: Annotated[StudentOrigin, Field(alias="from")] = StudentOrigin.TEACHER
    """Where it comes from."""
    width: Share | None = None
    """From Teacher: share of channels that is kept in every layer."""
    depth: Share | None = None
    """From Teacher: share of repeated blocks that is kept."""
    init: StudentInit = StudentInit.TEACHER
    """From Teacher: start from the teacher's own weights, or afresh."""
    uri: Uri | None = None
    """From Pt2: where the program is."""
    digest: Digest | None = None
    """From Pt2: sha256 of the file, verified when given."""
    component: Name | None = None
    """From Registered: name of the registered architecture."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Student":
        fields = {
            StudentOrigin.TEACHER: ("width", "depth"),
            StudentOrigin.PT2: ("uri", "digest"),
            StudentOrigin.REGISTERED: ("component",),
        }
        own = fields[self.from_]
        findings = [
            Finding((name,), "a setting of another kind of student", f"remove it: a student from {self.from_} has none")
            for names in fields.values()
            for name in names
            if name not in own and getattr(self, name) is not None
        ]
        if all(getattr(self, name) is None for name in own):
            example = {"Teacher": 'width: "0.5"', "Pt2": "uri: student.pt2", "Registered": "component: my-network"}
            findings.append(
                Finding((own[0],), "nothing", f"write {example[self.from_]}, for a student from {self.from_}")
            )
        refuse("student", findings)
        return self


class FeaturePair(ApiModel):
    """A layer of the teacher and the layer of the student that imitates it."""

    teacher: FieldName
    """Module path or node name in the teacher."""
    student: FieldName
    """Module path or node name in the student."""


class DistillLoss(ApiModel):
    """One term of the distillation loss."""

    type: LossType
    """What is imitated: the answer or intermediate features."""
    weight: Positive = "0.5"
    """Response: share of the soft loss beside the labels' (at most 1). Feature: factor of the added term."""
    temperature: Positive = "2"
    """Response: softening of both answers (Hinton et al. 2015, arXiv:1503.02531)."""
    pairs: Annotated[tuple[FeaturePair, ...], Field(max_length=64)] = ()
    """Feature: which layers are compared; by default paired by depth."""

    @model_validator(mode="after")
    def _weights_fit(self) -> "DistillLoss":
        findings = []
        if self.type is LossType.RESPONSE:
            if float(self.weight) > 1:
                remedy = "write at most 1: it is the share of the soft loss beside the labels'"
                findings.append(Finding(("weight",), f'"{self.weight}"', remedy))
            if self.pairs:
                findings.append(Finding(("pairs",), "layers to compare", "write them for a loss of type Feature"))
        refuse("loss", findings)
        return self


class Distill(Training):
    """Train a smaller student to imitate the model."""

    student: Student
    """The network that learns."""
    losses: Annotated[tuple[DistillLoss, ...], Field(min_length=1, max_length=8)] = (
        DistillLoss(type=LossType.RESPONSE),
    )
    """What it imitates."""

    @model_validator(mode="after")
    def _one_of_each(self) -> "Distill":
        types = [loss.type for loss in self.losses]
        findings = [
            Finding(("losses", index, "type"), f"a second {kind} loss", "write each kind once")
            for index, kind in enumerate(types)
            if kind in types[:index]
        ]
        refuse("distill", findings)
        return self


class Finetune(Training):
    """Training after a change, to recover what it cost."""

    epochs: Epochs = 2
    """Passes over the training set."""
    teacher_weight: UnitDecimal = "0.5"
    """Share of the loss that imitates the original model's answers; 0 trains on labels alone."""


class Prune(ApiModel):
    """Remove weights. A target is the share that goes."""

    method: PruneMethod
    """Which weights go."""
    parameters: Share | None = None
    """Share of the parameters to remove."""
    macs: Share | None = None
    """Share of the multiply-accumulates to remove."""
    latency: Share | None = None
    """Share of the measured latency to remove."""
    sparsity: Share | None = None
    """Unstructured methods: share of the weights to set to zero."""
    pattern: Annotated[str | None, Field(pattern=r"^[1-9]:[1-9][0-9]?$", max_length=4)] = None
    """NM: weights kept of each block, such as `2:4`."""
    scope: PruneScope = PruneScope.GLOBAL
    """Where channels compete."""
    round_to: Annotated[int, Field(ge=1, le=64)] = 8
    """Channel counts stay multiples of this; kernels work in blocks of 8 (AVX2) or 16 (AVX-512)."""
    max_cut: Share = "0.9"
    """No group of channels loses more than this share."""
    finetune: Finetune | None = None
    """Training afterwards."""

    @model_validator(mode="after")
    def _one_target(self) -> "Prune":
        structured = self.method is PruneMethod.STRUCTURED_MAGNITUDE
        allowed = ("parameters", "macs", "latency") if structured else ("pattern",)
        if not structured and self.method is not PruneMethod.N_M:
            allowed = ("sparsity",)
        given = [f for f in ("parameters", "macs", "latency", "sparsity", "pattern") if getattr(self, f) is not None]
        refuse("prune", exactly_one((), given, allowed))
        if self.pattern is not None:
            kept, block = (int(n) for n in self.pattern.split(":"))
            if kept >= block:
                remedy = f'write fewer weights than the block has, such as "{block // 2 or 1}:{max(block, 2)}"'
                refuse("prune", [Finding(("pattern",), f'"{self.pattern}"', remedy)])
        return self


class Fuse(ApiModel):
    """Merge operators, or let similar layers share one set of weights."""

    method: FuseMethod
    """What is fused."""
    operators: Annotated[tuple[FusedOperator, ...], Field(max_length=8)] = ()
    """Operators: what must be fused at least once; by default all that match and that no runtime is slower for."""
    similarity: Similarity | None = None
    """SimilarLayers: how layers are compared; by default Cosine."""
    top_k: Annotated[int, Field(ge=1, le=256)] = 1
    """SimilarLayers: how many pairs are shared at the most."""
    max_drop: NonNegative | None = None
    """SimilarLayers: how much worse the objective's metric may get before training; a pair that costs more is left."""
    shared: SharedWeights | None = None
    """SimilarLayers: what training does to shared weights; by default it trains them for all layers that read them."""
    finetune: Finetune | None = None
    """SimilarLayers: training afterwards."""

    @model_validator(mode="after")
    def _one_method(self) -> "Fuse":
        if self.method is FuseMethod.OPERATORS:
            given = [f for f in ("similarity", "max_drop", "shared", "finetune") if getattr(self, f) is not None]
        else:
            given = ["operators"] if self.operators else []
        other = next(m for m in FuseMethod if m is not self.method)
        findings = [
            Finding((name,), f"a setting of {other}", f"remove it: {self.method} has none, or write method: {other}")
            for name in given
        ]
        findings += [
            Finding(("operators", index), f"{kind} for the second time", "write each operator once")
            for index, kind in enumerate(self.operators)
            if kind in self.operators[:index]
        ]
        refuse("fuse", findings)
        return self

    @property
    def leaves_onnx(self) -> bool:
        """Whether the result is an ONNX file without a program, as fused operators have no form in a program."""
        return any(kind is not FusedOperator.BATCH_NORM for kind in self.operators)


class Quantize(ApiModel):
    """Replace floating-point arithmetic by integer arithmetic."""

    method: QuantizeMethod
    """How."""
    calibration: CalibrationMethod = CalibrationMethod.MIN_MAX
    """Static: how activation ranges are found."""
    exclude: Annotated[tuple[FieldName, ...], Field(max_length=256)] = ()
    """Layers that stay in floating point (module path or node name)."""
    epochs: Epochs = 2
    """QuantizationAware: passes over the training set."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    """QuantizationAware: samples per step."""
    learning_rate: Positive = "0.0001"
    """QuantizationAware: peak learning rate of AdamW."""
    teacher_weight: UnitDecimal = "0.5"
    """QuantizationAware: share of the loss that imitates the original model's answers."""


class Export(ApiModel):
    """Write the served format."""

    opset: Annotated[int, Field(ge=18, le=24)] = 20
    """ONNX operator set."""
    portability: Portability = Portability.PORTABLE
    """Portable files run on every CPU; host-tuned ones only on the kind that wrote them."""
    tolerance: Positive = "0.0001"
    """Largest allowed difference between the program's answers and the exported file's, relative to their range."""


class StageResources(ApiModel):
    """What one stage may use."""

    cpu: Quantity | None = None
    """Cores; also the number of threads (whole cores, at least one)."""
    memory: Quantity | None = None
    """The stage is stopped when it uses more."""


StageConfig = Distill | Prune | Fuse | Quantize | Export
_MEMBERS: Final = tuple(t.value.lower() for t in StageType)


class Stage(ApiModel):
    """One step of a recipe: `type` says which of the blocks below is filled."""

    name: Name
    """Unique within the recipe."""
    type: StageType
    """What the stage does."""
    distill: Distill | None = None
    """Settings of a Distill stage."""
    prune: Prune | None = None
    """Settings of a Prune stage."""
    fuse: Fuse | None = None
    """Settings of a Fuse stage."""
    quantize: Quantize | None = None
    """Settings of a Quantize stage."""
    export: Export | None = None
    """Settings of an Export stage."""
    resources: StageResources = StageResources()
    """What the stage may use."""
    timeout: Duration = "6h"
    """The stage is stopped after this long."""

    @model_validator(mode="after")
    def _one_block(self) -> "Stage":
        wanted = self.type.value.lower()
        given = [m for m in _MEMBERS if getattr(self, m) is not None]
        findings = [
            Finding(
                (m,), f"the block of another type beside type: {self.type}", f"remove it, or write type: {m.title()}"
            )
            for m in given
            if m != wanted
        ]
        if wanted not in given:
            findings.append(Finding((wanted,), "nothing", f"write the block `{wanted}:`, as type is {self.type}"))
        refuse("stage", findings)
        return self

    @property
    def config(self) -> StageConfig:
        """The block that `type` names."""
        block: StageConfig = getattr(self, self.type.value.lower())
        return block

    @property
    def trains(self) -> bool:
        """Whether the stage needs the training set and a network that can be trained."""
        match self.config:
            case Distill():
                return True
            case Prune(finetune=f) | Fuse(finetune=f):
                return f is not None and f.epochs > 0
            case Quantize(method=m):
                return m is QuantizeMethod.QUANTIZATION_AWARE
            case Export():
                return False


class Recipe(ApiModel):
    """A stage list, written here or referred to by name."""

    ref: "RecipeRef | None" = None
    """A recipe kept elsewhere."""
    stages: Annotated[tuple[Stage, ...], Field(max_length=32)] = ()
    """The steps, in order."""

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        if self.ref is None and not self.stages:
            remedy = "write `stages:`, or `ref: {name: cnn-int8}` for a recipe kept elsewhere"
            refuse("recipe", [Finding((), "neither `ref:` nor `stages:`", remedy)])
        if self.ref is not None and self.stages:
            remedy = "keep one: `ref:` uses a recipe kept elsewhere, `stages:` writes it here"
            refuse("recipe", [Finding((), "both `ref:` and `stages:`", remedy)])
        refuse("recipe", stage_findings(self.stages))
        return self


class RecipeKind(StrEnum):
    """Where a referenced recipe lives."""

    RECIPE = "OptimizationRecipe"
    CLUSTER_RECIPE = "ClusterOptimizationRecipe"


class RecipeRef(ApiModel):
    """Name of a recipe document."""

    name: Name
    """Its metadata.name."""
    kind: RecipeKind | None = None
    """Its kind; by default an OptimizationRecipe of the model's namespace, or else a ClusterOptimizationRecipe."""


Recipe.model_rebuild()
