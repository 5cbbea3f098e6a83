"""A loaded model: what it accepts, how requests are checked, and its engine."""

import asyncio
import contextlib
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from lathe_runtimes.backends.onnxruntime_backend import OnnxSession, zeros
from lathe_runtimes.datatypes import BY_CONFIG, Array, Datatype
from lathe_runtimes.errors import ModelLoadError
from lathe_runtimes.modelconfig import DIGEST_PARAMETER, ONNX_PLATFORM, THREADS_PARAMETER
from lathe_runtimes.provenance import compare
from lathe_runtimes.repository import ONNX, StoredModel
from lathe_runtimes.server.engine import Engine, Feeds, Job, Result, Sessions, measure_costs
from lathe_runtimes.server.errors import RequestError

CONTROL_GROUP: Final = Path("/sys/fs/cgroup")
_QUOTAS: Final = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Of control groups version 2, and of version 1: microseconds of time, and in how many."""
PROBE_ROWS: Final = 32
"""Largest batch that is measured for a model that is served sample by sample."""


@dataclass(frozen=True)
class Tensor:
    """One input or output as clients see it."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    """Sizes as clients send them, with the batch dimension; -1 where they may vary."""
    inner: tuple[int, ...] | None
    """Where it differs: the shape that the network takes."""


class Model:
    """One version of a model, ready to answer."""

    def __init__(
        self, stored: StoredModel, version: int, *, threads: int, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """Load, warm up and measure; on a thread beside the event loop `loop`, or on the running one.

        Raises:
            ModelLoadError: the file or its configuration cannot be served.
        """
        self.name = stored.config.name
        self.version = str(version)
        self.footprint = 0
        """Bytes that loading it has added to the process; 0 when not measured."""
        path = _path(stored, version)
        content = _read(path, self.name)
        self.digest = _verified(stored, path, content)
        # A copy: another version of the model has another digest.
        self.config = ModelConfig()
        self.config.CopyFrom(stored.config)
        self.config.parameters[DIGEST_PARAMETER].string_value = self.digest
        self.max_batch_size: int = stored.config.max_batch_size
        self.batching = stored.config.HasField("dynamic_batching") and self.max_batch_size > 1
        batched = self.max_batch_size > 0
        self.inputs = {tensor.name: tensor for tensor in _tensors(stored.config.input, batched=batched)}
        self.outputs = tuple(_tensors(stored.config.output, batched=batched))
        self.output_index = {tensor.name: at for at, tensor in enumerate(self.outputs)}
        sessions = _load(stored.config, path, content, self.inputs.values(), self.outputs, threads)
        free = all(tensor.shape[:1] == (-1,) for tensor in self.inputs.values())
        costs = measure_costs(
            sessions.narrow,
            partial(self._sample, sessions),
            batching=self.batching,
            largest=self.max_batch_size or (PROBE_ROWS if free else 1),
            clock=time.perf_counter,
        )
        delay = stored.config.dynamic_batching.max_queue_delay_microseconds / 1e6 if self.batching else 0.0
        self.labels = {tensor.name: _labels(stored.folder, tensor.label_filename) for tensor in stored.config.output}
        self.engine = Engine(self.name, sessions, costs, delay=delay, loop=loop)

    def same(self, stored: StoredModel, version: int) -> bool:
        """Whether the repository still holds this very model: the same file with the same configuration.

        Raises:
            ModelLoadError: the file cannot be read.
        """
        path = _path(stored, version)
        found = ModelConfig()
        found.CopyFrom(stored.config)
        found.parameters[DIGEST_PARAMETER].string_value = _verified(stored, path, _read(path, self.name))
        return bool(found == self.config)

    def submit(self, arrays: Mapping[str, Array], done: Callable[[Result], None]) -> Job:
        """Check a request and queue it; `done` gets the outputs in the order of `outputs`.

        Returns:
            What `engine.cancel` takes.

        Raises:
            RequestError: inputs are missing, unknown or of the wrong shape (datatypes are checked where they are read).
        """
        feeds, rows = self._admit(arrays)
        return self.engine.submit(feeds, rows, done)

    def tensor(self, name: str, datatype: object) -> Tensor:
        """The input of that name.

        Raises:
            RequestError: there is none, or its datatype is another one.
        """
        found = self.inputs.get(name)
        if found is None:
            allowed = ", ".join(self.inputs)
            raise RequestError(
                f"unexpected inference input {name!r} for model {self.name!r}; its inputs are: {allowed}"
            )
        if datatype != found.datatype.name:
            raise RequestError(
                f"inference input {name!r} has the datatype {datatype!r}, but model {self.name!r} expects "
                f"{found.datatype.name!r}"
            )
        return found

    def wanted(self, names: Sequence[str]) -> tuple[int, ...]:
        """Positions of the requested outputs; all where none is named.

        Raises:
            RequestError: an output is unknown or asked for twice.
        """
        if not names:
            return tuple(range(len(self.outputs)))
        positions = []
        for name in names:
            if name not in self.output_index:
                known = ", ".join(self.output_index)
                raise RequestError(f"unexpected inference output {name!r} for model {self.name!r}; it has: {known}")
            if self.output_index[name] in positions:
                raise RequestError(f"inference output {name!r} is requested twice")
            positions.append(self.output_index[name])
        return tuple(positions)

    def outer(self, at: int, array: Array) -> Array:
        """Output number `at` in the shape that clients expect."""
        tensor = self.outputs[at]
        if tensor.inner is None:
            return array
        return array.reshape(array.shape[:1] + tensor.shape[1:] if self.max_batch_size else tensor.shape)

    def _admit(self, arrays: Mapping[str, Array]) -> tuple[Feeds, int]:
        if len(arrays) != len(self.inputs):
            missing = ", ".join(name for name in self.inputs if name not in arrays)
            raise RequestError(
                f"expected {len(self.inputs)} inputs but got {len(arrays)} inputs for model {self.name!r}; "
                f"missing: {missing}"
            )
        feeds: dict[str, Array] = {}
        rows = 0
        for name, tensor in self.inputs.items():
            array = arrays[name]
            shape = array.shape
            if len(shape) != len(tensor.shape) or any(
                want not in (-1, size) for size, want in zip(shape, tensor.shape, strict=True)
            ):
                raise RequestError(
                    f"unexpected shape for input {name!r} of model {self.name!r}: "
                    f"expected {list(tensor.shape)}, got {list(shape)}"
                )
            rows = self._rows(name, shape, rows)
            if tensor.inner is not None:
                array = array.reshape(shape[:1] if self.max_batch_size else tensor.inner)
            # A view of the received body may start at any byte; networks may assume aligned elements.
            feeds[name] = array if array.flags.aligned else array.copy()
        return feeds, max(rows, 1)

    def _rows(self, name: str, shape: tuple[int, ...], rows: int) -> int:
        size = shape[0] if shape else 1
        if not self.max_batch_size:
            return max(rows, size)
        if rows and size != rows:
            raise RequestError(
                f"input {name!r} of model {self.name!r} has {size} samples, the inputs before it have {rows}"
            )
        if not 1 <= size <= self.max_batch_size:
            raise RequestError(
                f"inference request batch-size must be from 1 to {self.max_batch_size} for model {self.name!r}; "
                f"found {size}"
            )
        return size

    def _sample(self, sessions: Sessions, rows: int) -> Feeds | None:
        """Made-up inputs; None where a free size leaves open what fits. Such a model is run as far as it goes."""
        feeds: dict[str, Array] = {}
        for tensor in self.inputs.values():
            shape = tensor.shape if tensor.inner is None else tensor.inner
            if -1 in shape[1:]:
                return None
            feeds[tensor.name] = zeros(tensor.datatype.name, [rows if size == -1 else size for size in shape])
        try:
            sessions.narrow.run(feeds)
            if sessions.wide is not None and rows == 1:
                sessions.wide.run(feeds)
        except Exception as error:  # the exceptions of ONNX Runtime share no base class
            raise ModelLoadError(
                f"model {self.name!r}: a warm-up run of {rows} samples of zeros fails: {error}"
            ) from error
        return feeds


def available_cores() -> int:
    """Cores that this process may use: those it may run on, and of these the share of its control group, rounded up."""
    cores = len(os.sched_getaffinity(0))
    for names in _QUOTAS:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # absent, or `max`
            texts = [(CONTROL_GROUP / name).read_text(encoding="ascii") for name in names]
            quota, period = (int(word) for text in texts for word in text.split())
            if quota > 0:
                return max(1, min(cores, math.ceil(quota / period)))
    return cores


def _tensors(
    fields: Iterable[model_config_pb2.ModelInput | model_config_pb2.ModelOutput], *, batched: bool
) -> Iterable[Tensor]:
    head = (-1,) if batched else ()
    for given in fields:
        datatype = BY_CONFIG.get(given.data_type)
        if datatype is None or datatype.dtype is None:
            kind = model_config_pb2.DataType.Name(given.data_type)
            raise ModelLoadError(f"tensor {given.name!r}: the Lathe runtime cannot serve the datatype {kind}")
        inner = head + tuple(given.reshape.shape) if given.HasField("reshape") else None
        yield Tensor(given.name, datatype, head + tuple(given.dims), inner)


def _configured_threads(config: ModelConfig) -> int | None:
    found = config.parameters.get(THREADS_PARAMETER)
    if found is None:
        return None
    if not found.string_value.isdigit():
        raise ModelLoadError(
            f"model {config.name!r}: parameter {THREADS_PARAMETER}: {found.string_value!r} is no number"
        )
    return int(found.string_value)


def _path(stored: StoredModel, version: int) -> Path:
    config = stored.config
    if config.platform != ONNX_PLATFORM and config.backend != "onnxruntime":
        backend = config.platform or config.backend or "none"
        raise ModelLoadError(
            f"model {config.name!r}: the Lathe runtime serves platform {ONNX_PLATFORM!r}; found {backend!r}. "
            "Write the repository with the onnxruntime profile."
        )
    path = stored.folder / str(version) / (config.default_model_filename or ONNX)
    if path.parent.parent != stored.folder or not path.is_file():
        raise ModelLoadError(f"model {config.name!r}: no file {path}")
    return path


def _labels(folder: Path, name: str) -> tuple[str, ...]:
    """Names of the classes of an output, one a line."""
    if not name:
        return ()
    path = folder / name
    if path.parent != folder:
        raise ModelLoadError(f"{folder / 'config.pbtxt'}: label_filename: {name!r} is no file of the model's folder")
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path}: the labels cannot be read: {error}") from error


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"model {name!r}: {path} cannot be read: {error.strerror}") from error


def _verified(stored: StoredModel, path: Path, content: bytes) -> str:
    """sha256 of the content, which is what the configuration promises, where it promises something.

    Raises:
        ModelLoadError: it is something else.
        ProvenanceError: it is not what was signed, where that was asked for.
    """
    found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if stored.digest is not None and stored.digest != found:
        raise ModelLoadError(
            f"model {stored.config.name!r}: {path} has {found}, but its configuration promises {stored.digest}: the "
            "file was changed after it was published. Restore it, or publish the model again"
        )
    if stored.attested is not None:
        compare(path, found, stored.attested.get(path.relative_to(stored.folder).as_posix()))
    return found


def _load(
    config: ModelConfig,
    path: Path,
    content: bytes,
    inputs: Iterable[Tensor],
    outputs: Sequence[Tensor],
    threads: int,
) -> Sessions:
    gpu = any(group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU for group in config.instance_group)
    names = [tensor.name for tensor in outputs]
    narrow = OnnxSession(content, path, names, threads=1, gpu=gpu)
    for kind, tensors, found in (("input", inputs, narrow.input_types), ("output", outputs, narrow.output_types)):
        for tensor in tensors:
            if found.get(tensor.name) != tensor.datatype.name:
                raise ModelLoadError(
                    f"model {config.name!r}: the configuration declares {kind} {tensor.name!r} as "
                    f"{tensor.datatype.name}, the file has {found.get(tensor.name, 'no such tensor')}"
                )
    width = min(threads, _configured_threads(config) or threads)
    wide = OnnxSession(content, path, names, threads=width, gpu=gpu) if width > 1 else None
    return Sessions(narrow, wide, workers=threads)
