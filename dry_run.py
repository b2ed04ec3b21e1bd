"""What a run will take, told before it is begun: weights counted, memory measured, time from ten real steps.

Knows neither the network nor the data, only that a step can be made. Used by train_text_to_image.py --dry_run.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from optimizers import state_bytes
from training import TrainingRun, duration

STEPS = 10
GB = 1e9


def describe(
    run: TrainingRun,
    train_step: Callable[[], None],
    dataset: Dataset,
    paths: Sequence[Path],
    global_batch: int,
    autoencoder: nn.Module,
) -> None:
    """Makes ten steps and prints what they and the whole run take; paths: the data set's files."""
    bytes_on_disk = sum(path.stat().st_size for path in paths)
    run.write(
        f"parameters: {sum(p.numel() for p in run.parameters):,} trained\n"
        f"data set: {len(paths)} episodes, {bytes_on_disk / GB:.3f} GB\n"
        f"frames per epoch: {len(dataset)}, in {-(-len(dataset) // global_batch)} steps of {global_batch}"
    )
    run.begin()
    peak = PeakMemory(run.accelerator.device)
    train_step()  # the first one also makes the optimizer's state, and compiles
    started = time.monotonic()
    for _ in range(STEPS - 1):
        train_step()
    if run.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    step_s = (time.monotonic() - started) / (STEPS - 1)
    grown = peak.grown_bytes()
    run.close()
    run.write(memory_lines(run, autoencoder, grown))
    minutes, steps = run.args.max_train_minutes, run.args.max_train_steps
    left_s = step_s * steps if minutes is None else min(step_s * steps, 60 * minutes)
    run.write(
        f"speed: {step_s:.3g} s a step, {global_batch / step_s:.0f} frames/s, from {STEPS} steps, the first left out\n"
        f"eta: {duration(left_s)} for {min(steps, int(left_s / step_s + 0.5))} steps, "
        f"without validation and saving; {duration(step_s * len(dataset) / global_batch)} an epoch\n"
        f"dry run: nothing was written; leave --dry_run out to train"
    )


def memory_lines(run: TrainingRun, autoencoder: nn.Module, grown_bytes: int | None) -> str:
    """Memory needed per device. grown_bytes: by how much the peak of the steps exceeds what was there before them."""
    weights = total_bytes(run.parameters)
    made = {"gradients": weights, "optimizer state": state_bytes(run.optimizer)}
    parts = {"weights": weights, **made, "autoencoder": total_bytes(list(autoencoder.parameters()))}
    if not run.args.ema_on_cpu:
        parts["moving average"] = total_bytes(run.ema.shadow_params)
    how = "without activations, which are not measured on this device"
    if grown_bytes is not None:
        parts["activations"] = max(0, grown_bytes - sum(made.values()))
        how = f"activations measured at the peak of {STEPS} steps on {run.accelerator.device.type}, the rest counted"
    lines = [f"  {name}: {size / GB:.3f} GB" for name, size in parts.items()]
    return "\n".join([f"memory per GPU: {sum(parts.values()) / GB:.3f} GB ({how})", *lines])


def total_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class PeakMemory:
    """By how much memory grew at its peak since this was made: the allocator's word on CUDA, Linux's on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
            self.before = _status_bytes("VmRSS")
        except OSError:
            self.before = None

    def grown_bytes(self) -> int | None:
        """None where nothing can be measured."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        if self.device.type != "cpu" or self.before is None:
            return None
        return _status_bytes("VmHWM") - self.before


def _status_bytes(name: str) -> int:
    """A line of /proc/self/status, in bytes; OSError where there is none."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = [line for line in lines if line.startswith(f"{name}:")]
    if not found:
        raise OSError(f"/proc/self/status has no {name}")
    return 1024 * int(found[0].split()[1])
