"""ONNX Runtime as the engine's backend."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lathe_api.hostclass import HOST_KEY, host_class
from lathe_runtimes.datatypes import DATATYPES, Array
from lathe_runtimes.errors import ModelLoadError

_ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxSession:
    """One session of one model; `run` may be called from several threads at once.

    Args:
        content: of the ONNX file.
        path: where that was read, for messages.
        outputs: names of the outputs to compute, in the order in which `run` gives them.
        threads: threads of one inference.
        gpu: run on CUDA.

    Raises:
        ModelLoadError: ONNX Runtime refuses the file, it is tuned for another kind of CPU, or there is no CUDA
            provider.
    """

    def __init__(self, content: bytes, path: Path, outputs: Sequence[str], *, threads: int, gpu: bool = False) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads take the cores away from the event loop and from other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if gpu and "CUDAExecutionProvider" not in ort.get_available_providers():
            raise ModelLoadError(
                f"{path}: the model is placed on a GPU, and this ONNX Runtime has no CUDA provider. "
                "Serve it with Triton, or choose CPU hardware for the target."
            )
        providers = (["CUDAExecutionProvider"] if gpu else []) + ["CPUExecutionProvider"]
        try:
            self._session = ort.InferenceSession(content, options, providers=providers)
        except Exception as error:  # the exceptions of ONNX Runtime share no base class
            raise ModelLoadError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        tuned_for = self._session.get_modelmeta().custom_metadata_map.get(HOST_KEY, host_class())
        if tuned_for != host_class():
            raise ModelLoadError(
                f"{path}: the file is tuned for CPUs of the kind {tuned_for}, and this one is {host_class()}. "
                "Serve it on such a node, or export it with portability: Portable."
            )
        self.input_types = {given.name: _ONNX_TYPES.get(given.type, given.type) for given in self._session.get_inputs()}
        self.output_types = {made.name: _ONNX_TYPES.get(made.type, made.type) for made in self._session.get_outputs()}
        missing = [name for name in outputs if name not in self.output_types]
        if missing:
            raise ModelLoadError(f"{path}: the configuration names outputs that the model lacks: {missing}")
        self._outputs = list(outputs)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs in the order given to the constructor; arrays are contiguous."""
        found: list[Array] = self._session.run(self._outputs, feeds)
        return found


def zeros(datatype: str, shape: Sequence[int]) -> Array:
    """A tensor for warm-up: zeros, or empty strings."""
    dtype = DATATYPES[datatype].dtype
    return np.full(shape, "", dtype=np.object_) if datatype == "BYTES" else np.zeros(shape, dtype)
