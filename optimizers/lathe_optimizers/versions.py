"""Versions of everything that can change a stage's result, read without importing it."""

import platform
from importlib import metadata
from typing import Final

from lathe_optimizers.passes import registry

LIBRARIES: Final = ("torch", "torchao", "onnx", "onnxscript", "onnxruntime", "numpy", "protobuf")


def lock() -> dict[str, str]:
    """Library versions, the interpreter, and the digest of the passes' source."""
    found = {"python": platform.python_version(), "passes": registry.source_digest()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
