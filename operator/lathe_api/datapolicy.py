"""Data policy: no more data moves, and none is kept longer, than the model needs."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from lathe_api.base import ApiModel, Duration, FieldName, Quantity, UnitDecimal
from lathe_api.findings import Finding, refuse


class AnswerType(StrEnum):
    """What goes back to the client."""

    FULL = "Full"
    """All outputs, as the network gives them."""
    TOP_K = "TopK"
    """The best classes and their scores."""
    BOXES = "Boxes"
    """Boxes, classes and scores instead of images or score maps."""


class TransferEncoding(StrEnum):
    """How the client SDK sends images."""

    TENSOR = "Tensor"
    """The preprocessed tensor."""
    JPEG = "Jpeg"
    """The resized picture; the server decodes it."""


class TopK(ApiModel):
    """Settings of TopK."""

    k: Annotated[int, Field(ge=1, le=1000)] = 5
    """Classes per sample."""


class Boxes(ApiModel):
    """Settings of Boxes."""

    max_boxes: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Boxes per sample."""
    min_score: UnitDecimal = "0.25"
    """Boxes below this score stay on the server."""
    overlap: UnitDecimal = "0.5"
    """Of boxes that overlap more than this (intersection over union), the best stays."""


class Answers(ApiModel):
    """What goes back to the client: `type` says which block may be filled."""

    type: AnswerType = AnswerType.FULL
    """What goes back."""
    top_k: TopK | None = None
    """Settings of TopK."""
    boxes: Boxes | None = None
    """Settings of Boxes."""

    @model_validator(mode="after")
    def _one_block(self) -> "Answers":
        blocks = {AnswerType.TOP_K: ("topK", self.top_k), AnswerType.BOXES: ("boxes", self.boxes)}
        findings = [
            Finding((name,), f"a block beside type: {self.type}", f"remove it, or write type: {kind}")
            for kind, (name, block) in blocks.items()
            if block is not None and kind is not self.type
        ]
        refuse("answers", findings)
        return self


class Payloads(ApiModel):
    """Requests that are kept, for error analysis and learning."""

    share: UnitDecimal = "0"
    """Share of requests that is kept."""
    retention: Duration = "24h"
    """A request is deleted after this long."""
    redact: Annotated[tuple[FieldName, ...], Field(max_length=64)] = ()
    """Inputs that are never kept."""


class DataPolicy(ApiModel):
    """What the server accepts, gives back and keeps."""

    max_pixels: Annotated[int | None, Field(ge=1, le=1_000_000_000)] = None
    """Pictures with more pixels are refused, before they are decoded; by default any size."""
    max_request_size: Quantity = "64Mi"
    """Longer requests are refused, before they are read."""
    encoding: TransferEncoding = TransferEncoding.TENSOR
    """How the client SDK sends images."""
    answers: Answers = Answers()
    """What goes back to the client."""
    payloads: Payloads = Payloads()
    """Which requests are kept; by default none."""
