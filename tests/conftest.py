"""Fixtures of the whole tree. Heavy libraries are imported by the fixtures that need them only."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `from support… import …`

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell in the background hands this on to its children, which are to be ended by it in some tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def save_network(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports a network and saves it as `.pt2`, as a user would; gives the file."""

    def save(name: str, network: Any, example: Any, input_name: str) -> Path:
        import torch
        from support.networks import export_program

        path = tmp_path_factory.mktemp(name) / f"{name}.pt2"
        torch.export.save(export_program(network, example, input_name), path)
        return path

    return save


@pytest.fixture(scope="session")
def residual_cnn_pt2(save_network: Callable[..., Path]) -> Path:
    """Convolutions, BatchNorm and skip connections: `image`, float32 (batch, 1, 16, 16), to 10 classes."""
    import torch
    from support.networks import residual_cnn

    torch.manual_seed(0)
    return save_network("residual_cnn", residual_cnn(), torch.rand(2, 1, 16, 16), "image")


@pytest.fixture(scope="session")
def mlp_pt2(save_network: Callable[..., Path]) -> Path:
    """Linear layers, BatchNorm and Dropout."""
    import torch
    from support.networks import mlp

    torch.manual_seed(0)
    return save_network("mlp", mlp(), torch.rand(2, 1, 16, 16), "image")


@pytest.fixture(scope="session")
def encoder_pt2(save_network: Callable[..., Path]) -> Path:
    """Attention and LayerNorm."""
    import torch
    from support.networks import encoder

    torch.manual_seed(0)
    return save_network("encoder", encoder(), torch.rand(2, 1, 16, 16), "image")
