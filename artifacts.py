"""Atomic writes: a file or folder appears whole under its name, or not at all.

Knows nothing of what is inside. Used by everything in the root that writes to disk.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import BadInput

TEMPORARY_MARK = ".partial-"  # unfinished
REPLACED_MARK = ".replaced-"  # a whole folder that has just made room for its successor


def _beside(path: Path, mark: str) -> Path:
    return path.with_name(f".{path.name}{mark}{uuid.uuid4().hex[:8]}")


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return _beside(path, TEMPORARY_MARK)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renamed onto it on success, removed on any error."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        with _named_errors(path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Like `replacing`, for a folder. An old one goes only after the new one is complete; a kill between the two
    renames leaves neither under the name, until `put_back` (or the next writer) gives the old one its name again."""
    path = Path(path)
    temporary = _temporary(path)
    put_back(path)
    temporary.mkdir()
    try:
        with _named_errors(path):
            yield temporary
        if path.exists():
            old = _beside(path, REPLACED_MARK)
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """A failed write as an OSError with its number and a path; safetensors raises its own kind, with the number."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else re.search(r"os error (\d+)", str(error))
        if number is None or (isinstance(error, OSError) and error.filename):
            raise
        number = number if isinstance(number, int) else int(number.group(1))
        raise OSError(number, os.strerror(number), str(path)) from None


def put_back(path: Path) -> None:
    """Gives a folder its name again that a killed `replacing_folder` had moved aside; whole, as it was before."""
    for old in sorted(path.parent.glob(f".{glob.escape(path.name)}{REPLACED_MARK}*")):
        if path.exists():  # the successor is in place, only the removal was missed
            shutil.rmtree(old)
        else:
            os.replace(old, path)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Tidies up after killed writers of what is called `name` (a pattern) directly in `folder`.

    Whole old folders get their names back, parts go. Never call it beside a writer that is at work on such a name."""
    for old in sorted(folder.glob(f".{name}{REPLACED_MARK}*")):
        put_back(folder / old.name[1:].rpartition(REPLACED_MARK)[0])
    for leftover in sorted(folder.glob(f".{name}{TEMPORARY_MARK}*")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def check_writable(flag: str, folder: Path) -> None:
    """Raises BadInput where a flag's output folder could not be made or written in; makes nothing yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise BadInput(f"{flag} {folder}: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"{flag} {folder}: no permission to write in {existing}; name another folder")


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
