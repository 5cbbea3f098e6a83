"""Field types shared by every document: bounded strings, decimals, durations, quantities.

The API has no floats (they do not survive JSON and YAML round trips unchanged), so that decimals are strings with a
pattern, as in Kubernetes. Everything is bounded: the API server prices a rule by the largest object it could meet.
"""

import re
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from lathe_api.findings import refusal

API_VERSION: Final = "lathe.dev/v1alpha1"
DURATION_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
QUANTITY_BYTES: Final = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip

NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SUBDOMAIN_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
DIGEST_PATTERN: Final = r"^sha256:[0-9a-f]{64}$"
DURATION_PATTERN: Final = r"^[0-9]{1,9}(ms|s|m|h)$"
QUANTITY_PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
TIMESTAMP_PATTERN: Final = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
)
CRON_PATTERN: Final = r"^(@(hourly|daily|weekly|monthly)|[-*/,0-9A-Za-z]+( [-*/,0-9A-Za-z]+){4})$"
DECIMAL_PATTERN: Final = r"^-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,12})?$"

BOUND: Final = "x-lathe-bound"
"""Keyword of generated schemas: name of the bound of a decimal, which its pattern does not tell."""


class ApiModel(BaseModel):
    """Base of every document part: immutable, camelCase on the wire, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_by_alias=True,
        validate_by_name=True,  # for Python callers; the document loader switches it off
    )


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=63)]
"""A DNS label: lower-case letters, digits and dashes."""

SubdomainName = Annotated[
    str,
    StringConstraints(pattern=SUBDOMAIN_PATTERN, max_length=253),
]
"""Name of a Kubernetes object of another kind, such as a Secret or a ServiceAccount."""

FieldName = Annotated[str, StringConstraints(min_length=1, max_length=253)]
"""Name of a tensor, column or array."""

Text = Annotated[str, StringConstraints(max_length=1024)]
"""A sentence for people."""

Uri = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
"""`s3://bucket/key`, `file:///absolute/path`, `file:relative/path` or a plain path (relative to the document)."""

Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN, max_length=71)]
"""`sha256:` and 64 lower-case hexadecimal digits."""

Duration = Annotated[str, StringConstraints(pattern=DURATION_PATTERN, max_length=12)]
"""A whole number and a unit: `2ms`, `30s`, `5m`, `1h`."""

Quantity = Annotated[str, StringConstraints(pattern=QUANTITY_PATTERN, max_length=20)]
"""A Kubernetes quantity: `500m`, `2`, `4Gi`."""

Timestamp = Annotated[
    str,
    StringConstraints(
        pattern=TIMESTAMP_PATTERN,
        max_length=35,
    ),
]
"""RFC 3339: `2026-01-31T12:00:00Z`."""

CronSchedule = Annotated[
    str,
    StringConstraints(pattern=CRON_PATTERN, max_length=100),
]
"""Five fields, minute first, in UTC, as in a CronJob: `0 3 * * 0`."""

Percent = Annotated[int, Field(ge=0, le=100)]
"""A whole number of percent."""

Samples = Annotated[int, Field(ge=1, le=100_000_000)]
"""A number of samples."""

Decimal = Annotated[str, StringConstraints(pattern=DECIMAL_PATTERN, max_length=24)]
"""A decimal number as a string, without exponent: `"0.02"`."""


def _bounded(check: Callable[[float], bool], rule: str) -> AfterValidator:
    def validate(value: str) -> str:
        if not check(float(value)):
            raise refusal(f'"{value}"', f"write a number {rule}")
        return value

    return AfterValidator(validate)


Share = Annotated[
    Decimal, _bounded(lambda v: 0 < v < 1, "more than 0 and less than 1"), Field(json_schema_extra={BOUND: "share"})
]
"""A decimal strictly between 0 and 1."""

UnitDecimal = Annotated[
    Decimal, _bounded(lambda v: 0 <= v <= 1, "from 0 to 1"), Field(json_schema_extra={BOUND: "unit"})
]
"""A decimal from 0 to 1, both included."""

Positive = Annotated[Decimal, _bounded(lambda v: v > 0, "more than 0"), Field(json_schema_extra={BOUND: "positive"})]
"""A decimal above 0."""

NonNegative = Annotated[
    Decimal, _bounded(lambda v: v >= 0, "0 or more"), Field(json_schema_extra={BOUND: "nonNegative"})
]
"""A decimal of 0 or more."""


def seconds(duration: str) -> float:
    """Length of a `Duration` in seconds."""
    match = re.fullmatch(r"([0-9]+)(ms|s|m|h)", duration)
    if match is None:
        raise ValueError(f"not a duration: {duration!r}")
    return int(match[1]) * DURATION_SECONDS[match[2]]


def number(quantity: str) -> float:
    """Value of a `Quantity` in its base unit: bytes for memory, cores for CPU (`500m` is 0.5)."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", quantity)
    if match is None:
        raise ValueError(f"not a quantity: {quantity!r}")
    unit = match[2] or ""
    return float(match[1]) / 1000 if unit == "m" else float(match[1]) * QUANTITY_BYTES[unit]
