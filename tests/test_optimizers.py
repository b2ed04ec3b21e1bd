"""Promises of optimizers.py: the paper's Adafactor by hand, state that goes through files and comes back to the bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from optimizers import make_optimizer, pack_state, state_bytes, unpack_state
from run_folder import save_tensors

RATE = 0.01


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).to(memory_format=torch.channels_last)


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(name, list(model.parameters()), learning_rate=RATE, weight_decay=0.0)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        model(torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_state_goes_through_safetensors_and_json_and_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    whole = network()
    train(whole, optimizer_of(name, whole), range(6))
    half = network()
    first = optimizer_of(name, half)
    train(half, first, range(3))
    tensors, numbers = pack_state(first)
    assert set(tensors) | set(numbers)
    save_tensors(tensors, tmp_path / "state.safetensors")
    text = json.dumps([numbers, first.state_dict()["param_groups"]])
    second = optimizer_of(name, half)
    unpack_state(second, load_file(tmp_path / "state.safetensors"), *json.loads(text))
    train(half, second, range(3, 6))
    assert all(one.equal(two) for one, two in zip(whole.parameters(), half.parameters(), strict=True))
    fresh = network()
    train(fresh, optimizer_of(name, fresh), range(3))
    train(fresh, optimizer_of(name, fresh), range(3, 6))  # without the state it is another run
    assert not all(one.equal(two) for one, two in zip(whole.parameters(), fresh.parameters(), strict=True))


def test_adafactor_moves_by_the_rate_given_whatever_the_size_of_a_weight() -> None:
    """Its first step divides the gradient by its own size: relative steps or scaling by the weight would show."""
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(100.0)
        model.bias.fill_(1e-3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.weight.grad = torch.outer(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 5.0, -7.0]))  # factors exactly
    model.bias.grad = torch.tensor([-4.0, 0.5])
    optimizer_of("adafactor", model).step()
    moved = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
    signs = torch.tensor([[1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    assert torch.allclose(moved[0], RATE * signs, atol=1e-5)
    assert torch.allclose(moved[1], RATE * torch.tensor([-1.0, 1.0]), rtol=1e-4)


def test_adafactor_keeps_rows_and_columns_where_adamw_keeps_two_numbers_a_weight() -> None:
    sizes = {}
    for name in ("adamw", "adafactor"):
        model = nn.Linear(50, 40, bias=False)
        optimizer = optimizer_of(name, model)
        model(torch.ones(1, 50)).sum().backward()
        optimizer.step()
        sizes[name] = state_bytes(optimizer)
    assert sizes == {"adamw": 4 * (2 * 2000 + 1), "adafactor": 4 * (50 + 40 + 1)}  # 1: the step; a mean size
