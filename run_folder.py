"""What lies in a run folder: its checkpoints, what may not change between two sessions, weights in and out.

Knows no optimizer and no loop. Used by training.py.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from artifacts import read_json
from command_line import BadInput

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)$")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first: a folder under this name was renamed into place when finished."""
    found = [
        path
        for path in output_dir.glob("checkpoint-*")
        if CHECKPOINT_NAME.search(path.name) and (path / "state.json").is_file()
    ]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(CHECKPOINT_NAME.search(checkpoint.name).group(1))


def choose_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """The checkpoint to go on from: `latest` (None where there is none yet), `none`, or a path or name.

    Raises BadInput when the named one is missing, or when `none` would train over an existing run.
    """
    existing = list_checkpoints(output_dir)
    if wanted == "latest":
        return existing[-1] if existing else None
    if wanted == "none":
        if existing:
            raise BadInput(
                f"{output_dir} already holds {existing[-1].name}; go on with --resume_from_checkpoint latest, "
                f"or name another --output_dir"
            )
        return None
    for path in (output_dir / wanted, Path(wanted)):
        if (path / "state.json").is_file():
            return path
    names = ", ".join(path.name for path in existing) or "none"
    raise BadInput(f"--resume_from_checkpoint {wanted}: no such checkpoint; {output_dir} has: {names}")


def check_identity(output_dir: Path, identity: dict) -> None:
    """Compares with the `run.json` of the first checkpoint; BadInput names the first setting that differs on resume."""
    before = read_json(output_dir / "run.json")
    for name, value in json.loads(json.dumps(identity)).items():
        if name in before and before[name] != value:
            is_long = isinstance(value, dict | list)
            which = f"another {name} (see run.json there)" if is_long else f"{name} {before[name]}, not {value}"
            raise BadInput(f"{output_dir} was begun with {which}; use the old value, or name another --output_dir")


def first_broken(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor that holds an infinity or no number; None when all are finite."""
    if not tensors:
        return None
    is_finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors.values()]).tolist()
    return next((name for name, each in zip(tensors, is_finite, strict=True) if not each), None)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes named tensors, of any device and memory format, as one safetensors file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
