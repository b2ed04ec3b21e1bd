"""What lies in a run folder: its checkpoints, what may not change between two sessions, numbers, weights.

Knows no optimizer and no loop. Used by training.py.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from artifacts import read_json, replacing
from command_line import BadInput

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)$")
TENSOR_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return [path for path in _named_checkpoints(output_dir) if damage(path) is None]


def damaged_after(output_dir: Path, checkpoint: Path) -> list[str]:
    """What is wrong with the checkpoints newer than this one, a line each."""
    newer = [path for path in _named_checkpoints(output_dir) if _step_of(path) > _step_of(checkpoint)]
    return [f"{path} is damaged ({reason})" for path in newer if (reason := damage(path))]


def _named_checkpoints(output_dir: Path) -> list[Path]:
    return sorted((path for path in output_dir.glob("checkpoint-*") if CHECKPOINT_NAME.search(path.name)), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    found = CHECKPOINT_NAME.search(checkpoint.name)
    return int(found.group(1)) if found else -1


def damage(checkpoint: Path) -> str | None:
    """What a checkpoint lacks to be read whole, None when nothing. A killed run leaves none of those: a folder gets its
    name when it is finished; but copies and disks fail. Reads headers, not weights."""
    if not (checkpoint / "state.json").is_file():
        return "state.json is missing"
    return next((f"{name} is cut short" for name in TENSOR_FILES if not _has_all_bytes(checkpoint / name)), None)


def _has_all_bytes(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: 8 bytes of length, a JSON header, the tensors."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > path.stat().st_size:
                return False
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == 8 + header_bytes + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False


def choose_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """The checkpoint to go on from: `latest` whole one (None where there is none yet), `none`, or a path or name.

    Raises BadInput when the named one is missing or damaged, when all are damaged, or when `none` would train over an
    existing run.
    """
    existing, all_named = list_checkpoints(output_dir), _named_checkpoints(output_dir)
    names = ", ".join(path.name for path in existing) or "none"
    if wanted in ("latest", "none") and all_named and not existing:
        newest = all_named[-1]
        cure = "restore it from a copy, or name another --output_dir"
        raise BadInput(f"{newest} is damaged ({damage(newest)}), and there is no other checkpoint; {cure}")
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
            if reason := damage(path):
                raise BadInput(f"{path} is damaged ({reason}); whole in {output_dir}: {names}")
            return path
    raise BadInput(f"--resume_from_checkpoint {wanted}: no such checkpoint; {output_dir} has: {names}")


def forget_after(output_dir: Path, step: int) -> None:
    """Takes the lines after `step`, and one cut short by a kill, out of `metrics.jsonl`: they will come again."""
    path = output_dir / "metrics.jsonl"
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


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
