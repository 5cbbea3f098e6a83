"""Which integers a CPU multiplies fastest without overflow."""

from dataclasses import dataclass
from typing import Final

from lathe_api.targets import Hardware
from lathe_optimizers.errors import InputError


@dataclass(frozen=True)
class IntegerTypes:
    """Ranges of the integers that a CPU multiplies fastest without overflow."""

    activation: str
    """Name of their type, the same in numpy and torch."""
    activation_range: tuple[int, int]
    weight_range: tuple[int, int]
    """Of int8 weights."""


_U8S8: Final = IntegerTypes("uint8", (0, 255), (-127, 127))
_U8S7: Final = IntegerTypes("uint8", (0, 255), (-64, 64))
_S8S8: Final = IntegerTypes("int8", (-128, 127), (-127, 127))
TYPES: Final[dict[Hardware, IntegerTypes]] = {
    # vpdpbusd multiplies unsigned by signed bytes into 32 bits.
    Hardware.X86_VNNI: _U8S8,
    # vpmaddubsw adds two products in 16 bits: 2 x 255 x 127 overflows, 2 x 255 x 64 does not.
    Hardware.X86_AVX2: _U8S7,
    # sdot multiplies signed bytes.
    Hardware.ARM64: _S8S8,
    # An edge bundle may meet any of them: the types that are exact on all.
    Hardware.EDGE: _U8S7,
}
"""Number types by hardware; Cuda is missing: its ONNX Runtime provider has no integer convolutions."""


def types_for(hardware: Hardware) -> IntegerTypes:
    """Number types for `hardware`.

    Raises:
        InputError: there are none.
    """
    if hardware not in TYPES:
        raise InputError(
            "spec.targets.hardware",
            f"a Quantize stage for {hardware}, whose ONNX Runtime provider computes convolutions and matrix products "
            "in floating point only",
            f"Quantise for {', '.join(TYPES)}, and optimise for {hardware} by Distill and Prune.",
        )
    return TYPES[hardware]
