"""What a model takes besides its file: transport, and memory while it is loaded.

Memory is measured in a process of its own, as the allocators of this one have been at work already:
`python -m lathe_optimizers.passes.footprint MODEL INPUTS.npz` prints the bytes.
"""

import contextlib
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from lathe_optimizers.context import Array
from lathe_optimizers.errors import StageError

LEVEL: Final = 6
"""Of deflate, as `gzip` and registries of container images take it by default."""
CHUNK: Final = 1 << 20
SECONDS: Final = 300.0
"""Longest time that loading a model and one answer may take."""


def compressed_bytes(path: Path) -> int:
    """Bytes of a file after deflate (RFC 1951) at gzip's default level, without gzip's header."""
    squeeze = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total += len(squeeze.compress(chunk))
    return total + len(squeeze.flush())


def session_bytes(onnx: Path, feed: Mapping[str, Array]) -> int | None:
    """By how much loading a model and answering once raises the peak resident memory of a fresh process.

    Args:
        onnx: the model.
        feed: inputs by name of one run.

    Returns:
        Bytes; None where the kernel does not tell.

    Raises:
        StageError: the process failed.
    """
    if _status("VmHWM") is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs.npz"
        np.savez(inputs, allow_pickle=False, **feed)
        command = [sys.executable, "-m", "lathe_optimizers.passes.footprint", str(onnx), str(inputs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    if done.returncode != 0:
        raise StageError("measure", f"the memory of a session could not be measured: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def main() -> None:
    """Measure in this process."""
    model, inputs = sys.argv[1:]
    with np.load(inputs, allow_pickle=False) as file:
        feed = {name: file[name] for name in file.files}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with contextlib.suppress(OSError):
        # The peak of the imports must not hide that of the model (proc(5): 5 resets it to what is resident now).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS") or 0
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feed)
    sys.stdout.write(str(max((_status("VmHWM") or 0) - before, 0)))


def _status(field: str) -> int | None:
    """A size in /proc/self/status, in bytes."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    main()
