"""Other tools' int8 models of the same networks, each made with its defaults in its own environment."""

import os
import subprocess
from pathlib import Path

import numpy as np
from stages import Samples

HERE = Path(__file__).parent
PEERS = {"Olive": "olive", "ONNX Runtime's tool": "onnxruntime"}
"""Names of the files in `peers/`: pinned packages in `<name>.txt`, what is run in `<name>_defaults.py`."""
MODES = ("Static", "Dynamic")
UV = HERE.parent / "hack" / "uv"


def environment(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made when it is missing."""
    requirements, folder = HERE / "peers" / f"{peer}.txt", HERE / "build" / "peers" / peer
    python, made = folder / "bin" / "python", folder / "requirements.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if not made.exists() or made.read_text(encoding="utf-8") != wanted:
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([UV, "venv", "-q", "--clear", "--python", "3.11", folder], check=True)
        subprocess.run([UV, "pip", "install", "-q", "--python", python, "-r", requirements], check=True)
        made.write_text(wanted, encoding="utf-8")
    return python


def quantised(peer: str, mode: str, model: Path, data: Samples, folder: Path) -> Path:
    """The file that a peer makes of `model` with its defaults."""
    samples, out, log = folder / "calibration.npz", folder / f"{peer}{mode}.onnx", folder / f"{peer}{mode}.log"
    np.savez(samples, **{data.input_names[0]: data.take(np.arange(len(data)))[0][0]})
    with log.open("wb") as said:
        done = subprocess.run(
            [environment(peer), HERE / "peers" / f"{peer}_defaults.py", model, samples, mode, out],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OLIVE_DISABLE_TELEMETRY": "1"},
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return out
