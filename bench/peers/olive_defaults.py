"""Quantise an ONNX file as Olive does by default. Run with Olive's own environment: see `peers.py`."""

import sys
from pathlib import Path

import numpy as np
from olive.data.registry import Registry
from olive.workflows import run


@Registry.register_dataset("samples")
class Samples:
    """The calibration samples, one at a time, as the runtime names its inputs."""

    def __init__(self, **_: object) -> None:
        self._inputs = dict(np.load(sys.argv[2]))

    def __len__(self) -> int:
        return len(next(iter(self._inputs.values())))

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        return {name: values[index] for name, values in self._inputs.items()}, 0


def main() -> None:
    """Arguments: model, calibration samples, Static or Dynamic, where to write."""
    model, _, mode, out = sys.argv[1:]
    settings: dict[str, object] = {"type": f"Onnx{mode}Quantization"}
    data = {
        "name": "samples",
        "type": "DataContainer",
        "load_dataset_config": {"type": "samples"},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "skip_post_process"},
        "dataloader_config": {"type": "default_dataloader", "batch_size": 8},
    }
    if mode == "Static":
        settings["data_config"] = "samples"
    made = run(
        {
            "input_model": {"type": "ONNXModel", "model_path": model},
            "data_configs": [data] if mode == "Static" else [],
            "passes": {"quantize": settings},
            "output_dir": f"{out}.folder",
            "cache_dir": f"{out}.cache",
            "no_artifacts": True,
        }
    )
    Path(out).write_bytes(Path(made.get_best_candidate().model_path).read_bytes())


main()
