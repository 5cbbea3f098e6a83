"""The state of a training between two epochs, as bytes that can only hold tensors and plain values."""

import copy
import hashlib
import io
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_log = logging.getLogger(__name__)


class TrainingState:
    """Everything that goes on from one epoch to the next.

    Args:
        modules: what is trained; parameters and buffers (BatchNorm statistics, observed ranges) are kept.
        optimizer: of their parameters.
        description: settings that decide the result; a checkpoint of another description is of no use.
    """

    def __init__(self, modules: nn.Module, optimizer: torch.optim.Optimizer, description: str) -> None:
        self._modules = modules
        self._optimizer = optimizer
        # Taken once: buffers of observers may change their shape while the network is trained.
        shapes = [f"{name}:{tuple(t.shape)}:{t.dtype}" for name, t in modules.state_dict().items()]
        self._identity = hashlib.sha256("\n".join([description, *shapes]).encode()).hexdigest()

    def dump(self, epoch: int) -> bytes:
        """A checkpoint after `epoch` finished epochs."""
        buffer = io.BytesIO()
        state = {
            "identity": self._identity,
            "epoch": epoch,
            "tensors": self._modules.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def restore(self, data: bytes | None, name: str) -> int:
        """Take a checkpoint over; a useless one is reported in the log, and changes nothing.

        Args:
            data: what `dump` gave; None where there is none.
            name: of the checkpoint, for the log.

        Returns:
            The number of finished epochs; 0 where training starts afresh.
        """
        if data is None:
            return 0
        before = copy.deepcopy((self._modules.state_dict(), self._optimizer.state_dict()))
        try:
            state: Mapping[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
            if state["identity"] != self._identity:
                _log.warning("the checkpoint %s is of another training: starting afresh", name)
                return 0
            self._load(state["tensors"], state["optimizer"])
            return int(state["epoch"])
        except Exception as error:  # noqa: BLE001 - damaged bytes fail in any way, and the checkpoint is only a help
            _log.warning("the checkpoint %s cannot be read (%s): starting afresh", name, type(error).__name__)
            self._load(*before)
            return 0

    def _load(self, tensors: Mapping[str, Any], optimizer: dict[str, Any]) -> None:
        self._modules.load_state_dict(tensors)
        self._optimizer.load_state_dict(optimizer)
