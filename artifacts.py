"""Atomic writes: a file or folder appears whole under its name, or not at all.

Knows nothing of what is inside. Used by everything in the root that writes to disk.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import BadInput

TEMPORARY_MARK = ".partial-"


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renamed onto it on success, removed on any error."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Like `replacing`, for a folder. An old one goes only after the new one is complete; a kill between the two
    renames leaves neither under the name, and both beside it."""
    path = Path(path)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            old = _temporary(path)
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders that killed writers left directly in `folder`."""
    for leftover in folder.glob(f".*{TEMPORARY_MARK}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def write_json(path: str | Path, value: object) -> None:
    """Writes `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict:
    """The object in a JSON file. Raises BadInput when the file is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; the folder it belongs to is incomplete, copy or write it again") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not readable JSON ({error}); restore it from where it came") from None


def sha256_of_tensors(tensors: dict, facts: dict) -> str:
    """A fingerprint of named tensors (any dtype, hashed as float32) and of JSON-able `facts`, independent of order."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
