"""Quantise an ONNX file as ONNX Runtime's own tool does by default, after the preparation that its manual asks for."""

import sys

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    """The calibration samples in batches of 8."""

    def __init__(self, path: str) -> None:
        inputs = dict(np.load(path))
        count = len(next(iter(inputs.values())))
        self._batches = iter([{n: v[i : i + 8] for n, v in inputs.items()} for i in range(0, count, 8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self._batches, None)


def main() -> None:
    """Arguments: model, calibration samples, Static or Dynamic, where to write."""
    model, samples, mode, out = sys.argv[1:]
    prepared = f"{out}.prepared"
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    if mode == "Static":
        quantize_static(prepared, out, Reader(samples))
    else:
        quantize_dynamic(prepared, out)


main()
