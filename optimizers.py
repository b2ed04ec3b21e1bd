"""The optimizers of a run, and their state as tensors and numbers that need no pickle.

Knows neither models nor files: parameters come in, and names of state are theirs. Used by training.py.
"""

from typing import Any

import torch
from torch import Tensor, nn


def make_optimizer(
    name: str, parameters: list[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """`adamw` (fused on CUDA) or `adafactor`, over parameters that already lie where they are trained.

    Adafactor (Shazeer & Stern 2018) as GameNGen sec. 4.2 uses it: the learning rate given, neither relative steps nor
    scaling by the size of a parameter, no first moment; it keeps row and column means of the squared gradient, over the
    last two axes, so that a 3x3 kernel saves only a third.
    """
    if name == "adafactor":
        from transformers import Adafactor

        return Adafactor(
            parameters, lr=learning_rate, weight_decay=weight_decay, scale_parameter=False, relative_step=False
        )
    is_fused = True if parameters[0].is_cuda else None
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=is_fused)


def pack_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, int | float]]:
    """(tensors, plain numbers) of an optimizer, both named `<index of the parameter>.<name of the state>`."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int | float] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{name}"] = value
    return tensors, numbers


def unpack_state(
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    numbers: dict[str, int | float],
    groups: list[dict[str, Any]],
) -> None:
    """Puts back what `pack_state` gave, and the settings of the parameter groups.

    Each tensor goes to its parameter's device, and into its memory format where the shapes are equal.
    """
    for group, current in zip(groups, optimizer.param_groups, strict=True):
        if "fused" in current:  # a matter of the device at hand, not of the run
            group["fused"] = current["fused"]
    entries: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory that the optimizer's state takes so far, in bytes."""
    tensors = pack_state(optimizer)[0].values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
