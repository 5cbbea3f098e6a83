"""Python-backend model for Triton that runs `model.onnx` beside it with ONNX Runtime.

Copied into the model repository; it runs in Triton's own environment and so imports nothing of Lathe.
"""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


class TritonPythonModel:
    """One ONNX Runtime session per Triton instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the session; `args` is Triton's description of the instance."""
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        threads = config.get("parameters", {}).get("intra_op_thread_count")
        if threads:
            options.intra_op_num_threads = int(threads["string_value"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        content = path.read_bytes()
        _verify(config, content)
        providers = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            providers.insert(0, "CUDAExecutionProvider")
        self.session = ort.InferenceSession(content, options, providers=providers)
        _require_kind(self.session.get_modelmeta().custom_metadata_map.get("lathe.hostClass", ""))
        self.inputs = [(given["name"], given["data_type"] == "TYPE_STRING") for given in config["input"]]
        self.outputs = [made["name"] for made in config["output"]]
        self.batched = config.get("max_batch_size", 0) > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of requests, together when Triton batches for this model."""
        feeds: list[dict[str, Any] | None] = []
        responses: list[Any] = [None] * len(requests)
        for number, request in enumerate(requests):
            try:
                feeds.append(self._feed(request))
            except UnicodeDecodeError as error:
                feeds.append(None)
                responses[number] = _failure(f"a BYTES element is no UTF-8: {error}")
        good = [number for number, feed in enumerate(feeds) if feed is not None]
        if self.batched and len(good) > 1:
            self._together(requests, feeds, good, responses)
        for number in good:
            if responses[number] is None:
                responses[number] = self._alone(requests[number], feeds[number])
        return responses

    def _feed(self, request: Any) -> dict[str, Any]:
        feed = {}
        for name, text in self.inputs:
            array = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            if text:
                words = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]
                array = np.array(words, dtype=np.object_).reshape(array.shape)
            feed[name] = array
        return feed

    def _together(self, requests: list[Any], feeds: list[Any], good: list[int], responses: list[Any]) -> None:
        first = self.inputs[0][0]
        try:
            joined = {name: np.concatenate([feeds[number][name] for number in good]) for name, _ in self.inputs}
            results = self.session.run(self.outputs, joined)
        except Exception:  # noqa: BLE001 one bad request must not fail the others: each is answered alone instead
            return
        at = 0
        for number in good:
            rows = len(feeds[number][first])
            responses[number] = self._response(requests[number], [result[at : at + rows] for result in results])
            at += rows

    def _alone(self, request: Any, feed: dict[str, Any] | None) -> Any:
        try:
            return self._response(request, self.session.run(self.outputs, feed))
        except Exception as error:  # noqa: BLE001 the exceptions of ONNX Runtime share no base class
            return _failure(str(error))

    def _response(self, request: Any, results: list[Any]) -> Any:
        wanted = set(request.requested_output_names())
        tensors = [
            pb_utils.Tensor(name, result) for name, result in zip(self.outputs, results, strict=True) if name in wanted
        ]
        return pb_utils.InferenceResponse(tensors)


def _verify(config: Any, content: bytes) -> None:
    promised = config.get("parameters", {}).get("lathe.digest", {}).get("string_value")
    found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if promised and promised != found:
        message = f"model.onnx has {found}, but config.pbtxt promises {promised}: it was changed after publication"
        raise pb_utils.TritonModelException(message)


def _require_kind(tuned_for: str) -> None:
    """Refuse a file that is tuned for another kind of CPU; as `lathe_api.hostclass`, which is not here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines() if tuned_for else []
    has = {f for line in lines if line.startswith(("flags", "Features")) for f in line.split(":")[1].split()}
    here = "+".join((platform.machine().lower(), *(f for f in INSTRUCTIONS if f in has)))
    if tuned_for and tuned_for != here:
        message = f"model.onnx is tuned for CPUs of the kind {tuned_for}, and this one is {here}"
        raise pb_utils.TritonModelException(message)


def _failure(message: str) -> Any:
    return pb_utils.InferenceResponse([], pb_utils.TritonError(message))
