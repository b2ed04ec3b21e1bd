"""Latent files on disk: encoded episodes as memory-mapped .pt files, their black frame beside them.

Knows nothing of windows, autoencoders or games. Written by encode_images.py, read by data_loader.py. A tree mirrors the
episode tree, one latent_episode_<n>.pt per episode:

    parameters  (N, M, h, w) float16, the moments of every stored row, unscaled
    actions     (N,) int64, chosen on seeing the row's frame
    tics        (N,) int64, tic of the row within its game; where it does not go on by tics_per_row a game begins
    held        (N,) bool, whether one action holds from this row until the next stored one
    events      (N,) bool, whether something the game counts changed since the stored row before, where recorded
    depth       (N, 2h, 2w) uint8 and
    poses       (N, 4) float32, where they were recorded: see scenes.py
    metadata    plain Python: format_version, source, source_rows, source_bytes, tics_per_row (between stored rows),
                tics_per_second, action_table, encoder_sha256, posterior, scaling_factor, preset, frame_width,
                frame_height, camera (where there is depth)

and latent_black.pt at its root: parameters (1, M, h, w) of a black frame, metadata {format_version, encoder_sha256}.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from artifacts import replacing
from command_line import BadInput
from episodes import BLACK_NAME, ENCODE_HINT, Episode

FORMAT_VERSION = 1


def latent_path(episode_path: Path, dataset_basepath: Path, save_dir_path: Path) -> Path:
    """Where the latents of an episode belong: the same place in the other tree."""
    base = dataset_basepath if dataset_basepath.is_dir() else dataset_basepath.parent
    return save_dir_path / episode_path.relative_to(base).parent / f"latent_{episode_path.stem}.pt"


def open_latents(path: str | Path) -> dict[str, Any]:
    """A latent file with its tensors still on disk: reading a slice reads that slice's bytes.

    `metadata` is {} in files of other programs. Raises BadInput when the file is incomplete, of the old non-zip kind,
    holds anything that would have to be unpickled, or lacks `parameters`; and when lengths differ."""
    try:
        stored = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        reason = "it holds NumPy values or objects, and nothing is unpickled here"
        raise BadInput(f"{path} is not a latent file: {reason}; {ENCODE_HINT}") from None
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist; {ENCODE_HINT}") from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError):
        reason = "it is cut short, or was saved in the old way that cannot be mapped"
        raise BadInput(f"{path} is not a complete latent file: {reason}; delete it and {ENCODE_HINT}") from None
    if isinstance(stored, Tensor):  # the black frame as others save it
        stored = {"parameters": stored}
    if not isinstance(stored, dict) or not isinstance(stored.get("parameters"), Tensor):
        raise BadInput(f"{path} is not a latent file: no tensor `parameters` in it; {ENCODE_HINT}")
    if stored["parameters"].dim() != 4:
        raise BadInput(f"{path}: `parameters` has shape {tuple(stored['parameters'].shape)}, expected (N, M, h, w)")
    stored.setdefault("metadata", {})
    for name in ("actions", "tics", "held", "events", "depth", "poses"):
        if name in stored:
            stored[name] = torch.as_tensor(stored[name])
            if len(stored[name]) != len(stored["parameters"]):
                lengths = f"{len(stored[name])} {name} for {len(stored['parameters'])} rows"
                raise BadInput(f"{path}: {lengths}; delete it and {ENCODE_HINT}")
    if int(stored["metadata"].get("format_version", 0)) > FORMAT_VERSION:
        raise BadInput(f"{path}: of a newer format than this program reads ({FORMAT_VERSION}); update the program")
    return stored


class LatentFile:
    """One latent file, its rows aligned by the rule of data_loader.py.

    `actions`: int64 (T,).  `tics`: int64 (T,).  `held`: bool (T,) or None.  `starts`: rows at which a game begins.
    `events`: bool (T,) or None.  `depth`: uint8 (T, 2h, 2w) and `poses`: float32 (T, 4), or None."""

    def __init__(self, path: Path, legacy_alignment: str = "before") -> None:
        """`legacy_alignment` is for files without metadata: "after" pairs parameters[t] with actions[t+1]."""
        stored = open_latents(path)
        if "actions" not in stored:
            raise BadInput(f"{path} has no `actions`; {ENCODE_HINT}")
        self.metadata: dict[str, Any] = stored["metadata"]
        self.moments: Tensor = stored["parameters"]  # (N, M, h, w)
        actions: Tensor = stored["actions"].to(torch.int64)
        if not self.metadata and legacy_alignment == "after":
            self.moments, actions = self.moments[:-1], actions[1:]  # the last row may show the next game
        self.actions = actions.numpy()
        self.tics_per_row = int(self.metadata.get("tics_per_row", 1))  # legacy: every row counts as a tic
        self.tics = stored["tics"].numpy() if "tics" in stored else np.arange(len(actions)) * self.tics_per_row
        self.held = stored["held"].numpy() if "held" in stored else None
        self.events = stored["events"].numpy() if "events" in stored else None
        self.depth, self.poses = stored.get("depth"), stored.get("poses")
        self.starts = np.concatenate(([0], np.flatnonzero(np.diff(self.tics) != self.tics_per_row) + 1))
        self.action_table = self.metadata.get("action_table")
        self.facts = {
            "shape": list(self.moments.shape[1:]),
            "tics_per_row": self.tics_per_row,
            "tics_per_second": float(self.metadata.get("tics_per_second", 35.0)),
            "encoder_sha256": self.metadata.get("encoder_sha256"),
            "camera": None if self.depth is None or self.poses is None else self.metadata.get("camera"),
        }

    def rows(self, first: int, end: int, step: int) -> Tensor:
        """float16 (n, M, h, w) of rows first, first + step, ... below end; a view of a float16 file."""
        return self.moments[first:end:step].to(torch.float16)

    def source_frames(self, rows: np.ndarray) -> np.ndarray | None:
        """The real frames of rows, uint8 (n, H, W, 3); None where the recorded episode is gone or another one now."""
        path = Path(self.metadata.get("source", ""))
        if not path.is_file() or path.stat().st_size != self.metadata["source_bytes"]:
            return None
        episode = Episode(path)
        try:
            if episode.info.rows != self.metadata["source_rows"]:
                return None
            game = np.searchsorted(self.starts, rows, side="right") - 1
            return episode.read_frames(episode.starts[game] + self.tics[rows] // episode.info.tics_per_row)
        finally:
            episode.close()

    def close(self) -> None:
        """Nothing is held open: the mapping goes with the last view of it."""


def save_latents(path: Path, moments: Tensor, metadata: dict[str, Any], **columns: Tensor) -> None:
    """Writes a latent file atomically.

    moments: (N, M, h, w), must own its storage: a slice would drag the rest of it into the file.
    columns: actions, tics, held, (N,) each, and where recorded events, depth and poses."""
    if moments.untyped_storage().nbytes() != moments.numel() * moments.element_size():
        raise ValueError("moments are a slice of something larger; clone them first")
    columns = {name: column.clone() for name, column in columns.items()}
    metadata = {"format_version": FORMAT_VERSION, **metadata}
    with replacing(path) as temporary, temporary.open("wb") as file:
        writer = _Writer(file)
        try:
            torch.save({"parameters": moments, **columns, "metadata": metadata}, writer)
        except RuntimeError:
            raise writer.error or OSError(f"{path}: cannot be written") from None


class _Writer:
    """A file for torch.save that remembers why a write failed: torch would say something else. It names no path, which
    torch would write into the file: the same latents are the same bytes wherever they lie."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes all of `data`, as torch calls it."""
        return self._remembering(self.file.write, data)

    def flush(self) -> None:
        """Likewise."""
        self._remembering(self.file.flush)

    def _remembering(self, act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except OSError as error:
            self.error = self.error or error
            raise


def tree_root(path: Path) -> Path | None:
    """The nearest folder above a latent file that holds the tree's black frame."""
    return next((folder for folder in path.absolute().parents if (folder / BLACK_NAME).is_file()), None)
