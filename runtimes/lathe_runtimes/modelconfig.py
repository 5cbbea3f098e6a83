"""Which Triton configuration a model is served with: decided here, without touching the disk.

The configuration is always explicit. Triton completes what is missing, and its completion of an ONNX model switches
dynamic batching on and starts two CPU instances, so that an absent field is no SingleSample mode.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from lathe_api.base import seconds
from lathe_api.manifest import Signature, TensorSpec
from lathe_api.targets import Batch, Hardware, Serving, ServingMode
from lathe_runtimes.datatypes import DATATYPES
from lathe_runtimes.errors import InputError

DIGEST_PARAMETER: Final = "lathe.digest"
THREADS_PARAMETER: Final = "intra_op_thread_count"
"""Triton's ONNX Runtime backend reads the same name."""
ONNX_PLATFORM: Final = "onnxruntime_onnx"
_MODE_FIELD: Final = "serving.mode"


class Profile(StrEnum):
    """Which Triton backend runs the model."""

    ONNXRUNTIME = "onnxruntime"
    """Triton's ONNX Runtime backend, and the Lathe runtime."""
    PYTHON = "python"
    """ONNX Runtime inside a python-backend model, for a Triton that ships the python backend only."""


def build_config(
    *,
    name: str,
    signature: Signature,
    serving: Serving,
    hardware: Hardware,
    digest: str,
    profile: Profile,
    threads: int | None = None,
) -> ModelConfig:
    """Complete model configuration.

    SingleSample declares the full shapes (batch dimension included) and no batching; DynamicBatch leaves the batch
    dimension to the server. A tensor without dimensions is declared as `[1]` and reshaped, which Triton requires.

    Args:
        name: model name, also the folder's.
        signature: inputs and outputs with their batch dimension.
        serving: mode and batch settings.
        hardware: Cuda is placed on GPU instances, everything else on the CPU.
        digest: sha256 of the artifact; reported by the server.
        profile: backend.
        threads: threads of one inference; by default the backend's choice.

    Raises:
        InputError: a datatype or shape cannot be served, or DynamicBatch is asked of a fixed batch dimension.
    """
    config = ModelConfig(name=name)
    if profile is Profile.ONNXRUNTIME:
        config.platform = ONNX_PLATFORM
        config.default_model_filename = "model.onnx"
    else:
        config.backend = "python"
    batching = serving.mode is ServingMode.DYNAMIC_BATCH
    batch = serving.batch or Batch()
    if batching:
        _require_free_batch(signature)
        config.max_batch_size = batch.max_size
        config.dynamic_batching.max_queue_delay_microseconds = round(seconds(batch.max_queue_delay) * 1e6)
    for specs, fields in ((signature.inputs, config.input), (signature.outputs, config.output)):
        for spec in specs:
            _declare(fields.add(), spec, batching=batching)
    group = config.instance_group.add(name=name, count=1)
    group.kind = (
        model_config_pb2.ModelInstanceGroup.KIND_GPU
        if hardware is Hardware.CUDA
        else model_config_pb2.ModelInstanceGroup.KIND_CPU
    )
    config.version_policy.latest.num_versions = 1
    config.parameters[DIGEST_PARAMETER].string_value = digest
    if threads is not None:
        config.parameters[THREADS_PARAMETER].string_value = str(threads)
    for size in sorted({1, batch.max_size} if batching else {1}):
        _warm_up(config, signature.inputs, size, batching=batching)
    return config


def config_text(config: ModelConfig) -> str:
    """Content of `config.pbtxt`."""
    text = str(text_format.MessageToString(config))
    # Zero is not written by protobuf, but it is a decision here: say it to the reader.
    return text if config.max_batch_size else f"{text}max_batch_size: 0\n"


def parse_config(text: str, where: str) -> ModelConfig:
    """Configuration out of the content of a `config.pbtxt`.

    Raises:
        InputError: the text is no model configuration; names `where` and the line.
    """
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise InputError(where, f"not a model configuration: {error}", "Write it with `lathe run`.") from error


def _require_free_batch(signature: Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if not spec.shape or spec.shape[0] != -1:
            raise InputError(
                _MODE_FIELD,
                f"DynamicBatch needs a free batch dimension, but {spec.name!r} has the shape {list(spec.shape)}",
                "Export the model with a dynamic batch dimension, or write mode: SingleSample.",
            )


def _declare(
    field: model_config_pb2.ModelInput | model_config_pb2.ModelOutput, spec: TensorSpec, *, batching: bool
) -> None:
    if spec.datatype not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise InputError(spec.name, f"datatype {spec.datatype!r} is not of the protocol", f"One of {known}.")
    dims = spec.shape[1:] if batching else spec.shape
    if any(size == 0 or size < -1 for size in dims):
        raise InputError(spec.name, f"shape {list(spec.shape)}", "Sizes are 1 or more, or -1 where they may vary.")
    field.name = spec.name
    field.data_type = DATATYPES[spec.datatype].config
    if dims:
        field.dims.extend(dims)
    else:
        field.dims.append(1)
        field.reshape.SetInParent()


def _warm_up(config: ModelConfig, inputs: Sequence[TensorSpec], size: int, *, batching: bool) -> None:
    # A made-up size for a free dimension may not fit the network, and a warm-up that fails keeps a model from loading.
    if any(-1 in spec.shape[1:] for spec in inputs):
        return
    warm_up = config.model_warmup.add(name=f"zeros-{size}", batch_size=size)
    for spec in inputs:
        dims = spec.shape[1:] if batching else spec.shape
        tensor = warm_up.inputs[spec.name]
        tensor.data_type = DATATYPES[spec.datatype].config
        tensor.dims.extend([1 if size == -1 else size for size in dims] or [1])
        tensor.zero_data = True
