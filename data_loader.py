"""Recorded or encoded episodes on disk -> windows of frames or latents with their actions.

THE ALIGNMENT RULE, stated here once. actions[t] is chosen on seeing frames[t] and leads to frames[t+1]. A window of
context length L has the context frames and actions t-L+1 .. t, as many actions as frames, and the target frame t+1:

    frames   t-L+1   t-L+2   ...   t   | t+1        (L + 1, oldest first, the target last)
    actions  t-L+1   t-L+2   ...   t   |            (L; the last one leads to the target)

Where the game began less than L frames ago, black frames and the no-op stand on the left. A model that sees every
frame_stride-th tic counts in strides, from any first tic, and a window is there only where every stride of its context
holds one action throughout. No window reaches over two games.

Knows nothing of models, latent scale or devices: moments come out as stored. Files of others are read by these rules:
parquet as episodes.py says; a .pt without metadata pairs parameters[t] with actions[t] (`legacy_alignment` "before")
or with actions[t+1], its last row dropped ("after"). Used by the trainers, the rollout and the measures.
"""

import functools
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from artifacts import write_json
from command_line import BadInput
from episodes import (
    BLACK_NAME,
    ENCODE_HINT,
    POSE_COLUMNS,
    Episode,
    held_strides,
    inspect_episode,
    no_op_id,
    number_of_actions,
)
from latents import LatentFile, open_latents, tree_root
from window_sampler import WindowSampler

__all__ = ["FrameDataset", "WindowDataset", "WindowSampler", "open_latents", "window_targets"]

AFTERMATH_FRAMES = 3  # for which what an event brought about is still to be seen
INDEX_NAME = "index.json"
INDEX_VERSION = 2
MAX_OPEN_FILES = {"latents": 1024, "frames": 64}  # a mapped .pt holds no file descriptor, a parquet file does
MUST_AGREE = {
    "shape": "the size of its {kind}",
    "tics_per_row": "its tics per row",
    "tics_per_second": "its tics per second",
    "action_table": "its action table",
    "encoder_sha256": "the encoder it was made with",
}


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices spread evenly over [0, count)."""
    wanted = min(count, wanted)
    return [(2 * number + 1) * count // (2 * wanted) for number in range(wanted)]


def window_targets(strides: np.ndarray, starts: np.ndarray, step: int, context_length: int) -> np.ndarray:
    """int64 rows that are the target of a window, ascending.

    strides: bool (T,), `held_strides` of the rows.  starts: rows at which a game begins.  step: rows per stride."""
    targets = [np.arange(0)]
    for start, end in zip(starts, [*starts[1:], len(strides)], strict=True):
        for phase in range(start, min(start + step, end)):
            is_held = strides[phase:end:step]
            count = np.arange(len(is_held))
            run = count - np.maximum.accumulate(np.where(is_held, -1, count))  # held strides up to here, in a row
            needed = np.minimum(count + 1, context_length)  # fewer where the game began less than L ago
            targets.append(phase + (np.flatnonzero(run >= needed) + 1) * step)
    return np.sort(np.concatenate(targets))


class FrameFile:
    """One parquet episode, with the interface of LatentFile."""

    def __init__(self, path: Path, legacy_alignment: str) -> None:
        self.episode = Episode(path)
        info = self.episode.info
        self.actions, self.starts, self.held = self.episode.actions, self.episode.starts, None
        self.tics_per_row = info.tics_per_row
        self.action_table = info.action_table
        self.facts = {
            "shape": [info.height, info.width, 3],
            "tics_per_row": info.tics_per_row,
            "tics_per_second": info.tics_per_second,
            "encoder_sha256": None,
            "camera": info.metadata.get("camera"),
        }
        self.depth = None  # in a file of its own encoding, which nobody asks for here

    def rows(self, first: int, end: int, step: int) -> Tensor:
        """uint8 (n, H, W, 3) of rows first, first + step, ... below end."""
        return torch.from_numpy(self.episode.read_frames(np.arange(first, end, step)))

    @functools.cached_property
    def poses(self) -> Tensor:
        """float32 (T, 4), see scenes.py; of an episode with a camera."""
        columns = self.episode.columns(POSE_COLUMNS)
        return torch.from_numpy(np.stack([columns[name] for name in POSE_COLUMNS], axis=1).astype(np.float32))

    @property
    def events(self) -> np.ndarray | None:
        """bool (T,): whether something the game counts changed since the row before; None where nothing is counted."""
        return self.episode.events(np.arange(len(self.actions)))

    def source_frames(self, rows: np.ndarray) -> np.ndarray:
        """The frames of rows, uint8 (n, H, W, 3)."""
        return self.episode.read_frames(rows)

    def close(self) -> None:
        """Releases the file."""
        self.episode.close()


KINDS = {"latents": LatentFile, "frames": FrameFile}


class WindowDataset(Dataset):
    """Every window of some files; item i is

        moments  float16 (L+1, M, h, w)  or  frames  uint8 (L+1, H, W, 3)    context oldest first, the target last
        actions  int64 (L,)
        poses, depth  with_scene: float32 (L+1, 4), and of latents uint8 (2h, 2w) of the target, see scenes.py
        start_row, episode  the row of the oldest context frame (below its game's first row where black stands left)
                            and the position of its file in `paths`

    A window reads only its own bytes. Nothing but counts is kept for files that are not in use; handles are opened in
    the process that needs them. Batches from `__getitems__` may be views of a file: collate them, which copies."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        context_length: int,
        frame_stride: int,
        kind: str = "latents",
        legacy_alignment: str = "before",
        black_moments: Tensor | None = None,
        with_scene: bool = False,
        with_pictures: bool = True,
    ) -> None:
        """`frame_stride` in tics. `black_moments` (1, M, h, w) serves trees without a latent_black.pt.

        with_scene: where all files have depth, of one `camera`, which is None else.  with_pictures: False leaves out
        moments or frames, for who learns how the camera moves.

        Raises BadInput when files disagree, are too short, hold action ids outside their table, or have no window."""
        if not paths:
            raise BadInput("no episodes to make windows of; record or encode some first")
        self.paths = [Path(path) for path in paths]
        self.context_length, self.frame_stride, self.kind = context_length, frame_stride, kind
        self.legacy_alignment = legacy_alignment
        self._key = "frames" if kind == "frames" else "moments"
        self._files = _OpenFiles(MAX_OPEN_FILES[kind])
        self._rows: np.ndarray | None = None  # (files,) known once all were looked at
        entries = self._read_entries()
        self._check(entries)
        self.facts = entries[0]
        self.row_step = frame_stride // self.facts["tics_per_row"]
        self.tics_per_second: float = self.facts["tics_per_second"]
        self.encoder_sha256: str | None = self.facts["encoder_sha256"]
        cameras = [entry["camera"] for entry in entries]
        others = (path for path, each in zip(self.paths, cameras, strict=True) if each is None or each != cameras[0])
        self.without_scene: Path | None = next(others, None)  # the first one
        self.camera: dict[str, float] | None = cameras[0] if self.without_scene is None else None
        self._with_scene = with_scene and self.camera is not None
        self._with_pictures = with_pictures
        self.action_table: list[dict[str, Any]] | None = self._file(0).action_table
        highest = max(entry["actions"][1] for entry in entries)
        self.num_actions = number_of_actions(self.action_table) if self.action_table else highest + 1
        self.no_op = no_op_id(self.action_table)
        self._rows = np.array([entry["rows"] for entry in entries])
        self._ends = np.cumsum([entry["windows"][self._window_key] for entry in entries])  # (files,)
        if len(self) == 0:
            what = f"nowhere do {frame_stride} tics hold one action"
            raise BadInput(f"{self.paths[0].parent}: {what}; record with longer agent steps")
        self.black = self._read_black(black_moments)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._sample(int(index))
        if self._with_pictures:
            sample[self._key] = sample[self._key].clone()
        sample["actions"] = sample["actions"].clone()
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        samples: list[Any] = [None] * len(indices)
        for place in np.argsort(np.asarray(indices), kind="stable"):  # file after file
            samples[place] = self._sample(int(indices[place]))
        return samples

    def window_rows(self, index: int) -> np.ndarray:
        """int64 (L+1,) rows of window `index` in its file, -1 where black stands for a row."""
        _, target, missing = self._locate(index)
        rows = target + np.arange(-self.context_length, 1) * self.row_step
        rows[:missing] = -1
        return rows

    def targets(self, episode: int) -> tuple[int, np.ndarray]:
        """(index of a file's first window, int (n,) row of each of its windows' targets, ascending)."""
        return int(self._ends[episode - 1]) if episode else 0, self._file(episode).targets

    def scene(self, episode: int) -> tuple[Tensor, Tensor]:
        """A file's poses, float32 (T, 4), and depth, uint8 (T, 2h, 2w), of all its rows; of latents with a camera."""
        file = self._file(episode)
        return file.poses, file.depth

    def event_windows(self) -> np.ndarray:
        """int64 (n,), ascending: the windows whose target shows an event, a shot, damage, a pick-up, a death, or what
        comes of it within AFTERMATH_FRAMES: a flash that is only ever seen to begin would be learned to stay.

        Looks at every file. Empty where nothing happens; of files that do not tell there are none."""
        found = [np.zeros(0, dtype=np.int64)]
        for episode in range(len(self.paths)):
            first, targets = self.targets(episode)
            events = self._file(episode).events
            if events is not None:
                found.append(first + np.flatnonzero(self._happens(events, targets)))
        return np.concatenate(found)

    def _happens(self, events: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """bool (n,): whether an event lies on the way to each target, or to one of the AFTERMATH_FRAMES before it.

        events: bool (T,), of each row since the one before."""
        count = np.concatenate(([0], np.cumsum(events)))  # (T + 1,) before each row
        return count[targets + 1] > count[np.maximum(targets + 1 - (1 + AFTERMATH_FRAMES) * self.row_step, 0)]

    def source_frames(self, episode: int, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """The real frames of a file's rows, uint8 (n, H, W, 3), black for -1; None where the recording is gone."""
        rows = np.asarray(rows, dtype=np.int64)
        real = self._file(episode).source_frames(rows[rows >= 0])
        if real is None:
            return None
        frames = np.zeros((len(rows), *real.shape[1:]), dtype=np.uint8)
        frames[rows >= 0] = real
        return frames

    def need_poses(self) -> None:
        """Raises BadInput where a file does not tell them, which a memory of a map asks for."""
        if self.camera is None:
            raise BadInput(
                f"{self.without_scene} has no depth, or another camera than the others; a memory of the map wants "
                "play recorded with --record_depth"
            )

    def _locate(self, index: int) -> tuple[int, int, int]:
        """(file, target row, black frames on the left) of a window."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        episode = int(np.searchsorted(self._ends, index, side="right"))
        file = self._file(episode)
        target = int(file.targets[index - (self._ends[episode - 1] if episode else 0)])
        game = file.starts[np.searchsorted(file.starts, target, side="right") - 1]
        present = (target - int(game)) // self.row_step  # context frames since the game began
        return episode, target, max(0, self.context_length - present)

    def stretch(self, index: int, length: int) -> dict[str, Any] | None:
        """Window `index` with the `length - 1` frames after its target: what a rollout of `length` frames needs.

        Like an item, but (L + length) frames, (L + length - 1) actions, and `rows`, int64 (L + length,) in the file, -1
        where black stands. None unless every stride on the way holds one action and the episode goes on that long."""
        episode, target, missing = self._locate(index)
        file = self._file(episode)
        targets = target + np.arange(length) * self.row_step
        if not np.isin(targets, file.targets, assume_unique=True).all():
            return None
        sample = self._sample(index, length)
        sample["rows"] = np.concatenate([self.window_rows(index), targets[1:]])
        return sample

    def _sample(self, index: int, length: int = 1) -> dict[str, Any]:
        episode, target, missing = self._locate(index)
        file = self._file(episode)
        start = target - self.context_length * self.row_step
        first = start + missing * self.row_step
        last = target + (length - 1) * self.row_step
        actions = torch.from_numpy(file.actions[first : last : self.row_step])  # (L + length - 1 - missing,)
        if missing:
            actions = torch.cat([torch.full((missing,), self.no_op), actions])
        sample = {"actions": actions, "start_row": start, "episode": episode}
        if self._with_pictures:
            rows = file.rows(first, last + 1, self.row_step)  # (L + length - missing, ...)
            black = self.black.expand(missing, *self.black.shape[1:])
            sample[self._key] = torch.cat([black, rows]) if missing else rows
        if self._with_scene:
            poses = file.poses[first : last + 1 : self.row_step]
            sample["poses"] = torch.cat([poses[:1].expand(missing, -1), poses])  # (L + length, 4), black as the first
            if file.depth is not None:
                sample["depth"] = file.depth[last].clone()  # (2h, 2w)
        return sample

    def _file(self, episode: int) -> Any:
        return self._files.get(episode, self._open)

    def _open(self, episode: int) -> Any:
        file = KINDS[self.kind](self.paths[episode], self.legacy_alignment)
        if self._rows is not None and len(file.actions) != self._rows[episode]:
            raise BadInput(f"{self.paths[episode]} changed while in use; start again")
        step = max(1, self.frame_stride // file.tics_per_row)
        strides = held_strides(file.actions, file.starts, step, file.held)
        file.targets = window_targets(strides, file.starts, step, self.context_length).astype(np.int32)
        return file

    @property
    def _window_key(self) -> str:
        return f"context {self.context_length} stride {self.frame_stride}"

    def _read_entries(self) -> list[dict[str, Any]]:
        """Per file what the index needs; for latents from the tree's index.json where that is still true."""
        root = (tree_root(self.paths[0]) or self.paths[0].absolute().parent) if self.kind == "latents" else None
        known = _read_index(root, self.legacy_alignment) if root else {}
        entries, is_new = [], False
        for episode, path in enumerate(self.paths):
            name = os.path.relpath(path.absolute(), root) if root else str(path)
            try:
                status = path.stat()
            except OSError:
                raise BadInput(f"{path} cannot be read; check the path, or record or encode it again") from None
            entry = known.get(name, {})
            if (entry.get("bytes"), entry.get("mtime_ns")) != (status.st_size, status.st_mtime_ns):
                entry = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "windows": {}}
            if self._window_key not in entry["windows"]:
                entry, is_new = self._describe(episode, entry), True
            known[name] = entry
            entries.append(entry)
        if root and is_new:
            _write_index(root, self.legacy_alignment, known)
        return entries

    def _describe(self, episode: int, entry: dict[str, Any]) -> dict[str, Any]:
        file, path = self._file(episode), self.paths[episode]
        if len(file.actions) == 0:
            raise BadInput(f"{path} is an empty episode; delete it, then record or encode again")
        lowest, highest = int(file.actions.min()), int(file.actions.max())
        limit = number_of_actions(file.action_table) if file.action_table else np.inf
        if lowest < 0 or highest >= limit:
            outside = lowest if lowest < 0 else highest
            raise BadInput(f"{path}: action id {outside} is outside its table (0..{limit - 1}); record it again")
        table = json.dumps(file.action_table, sort_keys=True).encode()
        return {
            **entry,
            **file.facts,
            "rows": len(file.actions),
            "actions": [lowest, highest],
            "action_table": hashlib.sha256(table).hexdigest() if file.action_table else None,
            "windows": {**entry["windows"], self._window_key: len(file.targets)},
        }

    def _check(self, entries: list[dict[str, Any]]) -> None:
        """Raises BadInput naming the first file that does not go with the others, or with the stride."""
        for path, entry in zip(self.paths, entries, strict=True):
            for fact, words in MUST_AGREE.items():
                if entry[fact] != entries[0][fact]:
                    what = words.format(kind=self.kind)
                    cure = (
                        f"{ENCODE_HINT} again, or delete it if its episode is gone"
                        if self.kind == "latents"
                        else "keep them in separate folders"
                    )
                    raise BadInput(f"{path}: {what} differs from that of {self.paths[0]}; {cure}")
            tics_per_row = entry["tics_per_row"]
            if self.frame_stride < tics_per_row or self.frame_stride % tics_per_row:
                cure = f"choose a multiple of {tics_per_row}, or record or encode (--all_tics) more tics"
                raise BadInput(f"{path} has every {tics_per_row} tics, not stride {self.frame_stride}; {cure}")
            if entry["rows"] <= self.frame_stride // tics_per_row:
                raise BadInput(f"{path} is too short: {entry['rows']} rows, stride {self.frame_stride} tics; delete it")

    def _read_black(self, black_moments: Tensor | None) -> Tensor:
        """(1, ...) what stands left of a game's first frame."""
        if self.kind == "frames":
            return torch.zeros(1, *self.facts["shape"], dtype=torch.uint8)
        root = tree_root(self.paths[0])
        if root is not None:
            stored = open_latents(root / BLACK_NAME)
            if stored["metadata"].get("encoder_sha256") != self.encoder_sha256:
                raise BadInput(f"{root / BLACK_NAME} is of another encoder than {self.paths[0]}; {ENCODE_HINT} again")
            black_moments = stored["parameters"]
        if black_moments is None:
            raise BadInput(f"no {BLACK_NAME} above {self.paths[0]}, so no history before a first frame; {ENCODE_HINT}")
        if list(black_moments.shape[1:]) != self.facts["shape"]:
            shapes = f"{tuple(black_moments.shape[1:])} for latents of {tuple(self.facts['shape'])}"
            raise BadInput(f"{self.paths[0]}: the black frame has shape {shapes}; {ENCODE_HINT} with one autoencoder")
        return black_moments.detach().cpu().to(torch.float16).clone()


class FrameDataset(Dataset):
    """Every usable frame of some episodes, uint8 (H, W, 3) each, in the order of `paths`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises BadInput when there is no episode, one is broken, or sizes differ."""
        if not paths:
            raise BadInput("no episodes to take frames of; record some first")
        infos = [inspect_episode(path) for path in paths]
        for info in infos:
            if (info.width, info.height) != (infos[0].width, infos[0].height):
                sizes = f"{info.width}x{info.height}, but {infos[0].width}x{infos[0].height} in {infos[0].path}"
                raise BadInput(f"{info.path}: frames are {sizes}; keep them in separate folders")
        self.paths = [Path(path) for path in paths]
        self._ends = np.cumsum([info.rows for info in infos])
        self._files = _OpenFiles(MAX_OPEN_FILES["frames"])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.frames([index])[0])

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        return list(torch.from_numpy(self.frames(indices)))

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3), each file's rows read together."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"frames {indices.min()}..{indices.max()} of {len(self)}")
        episodes = np.searchsorted(self._ends, indices, side="right")
        frames: np.ndarray | None = None
        for number in np.unique(episodes):
            episode = self._files.get(int(number), lambda number: Episode(self.paths[number]))
            places = np.flatnonzero(episodes == number)
            read = episode.read_frames(indices[places] - (self._ends[number] - episode.info.rows))
            frames = np.empty((len(indices), *read.shape[1:]), dtype=np.uint8) if frames is None else frames
            frames[places] = read
        return frames


class _OpenFiles:
    """The files a process has open, the least recently used closed first. Never travels to another process."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._files: OrderedDict[int, Any] = OrderedDict()
        self._process = os.getpid()

    def get(self, number: int, open_file: Callable[[int], Any]) -> Any:
        if self._process != os.getpid():
            self._process, self._files = os.getpid(), OrderedDict()
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        self._files[number] = open_file(number)
        if len(self._files) > self.limit:
            self._files.popitem(last=False)[1].close()
        return self._files[number]

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return _OpenFiles, (self.limit,)


def _read_index(root: Path, legacy_alignment: str) -> dict[str, Any]:
    """The cached entries, {} when there are none that hold. It is only a cache: a broken one is made again."""
    try:
        stored = json.loads((root / INDEX_NAME).read_text(encoding="utf-8"))
        is_valid = (stored["format_version"], stored["legacy_alignment"]) == (INDEX_VERSION, legacy_alignment)
        return {name: dict(entry) for name, entry in stored["files"].items() if "windows" in entry} if is_valid else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_index(root: Path, legacy_alignment: str, entries: dict[str, Any]) -> None:
    files = {name: entries[name] for name in sorted(entries) if (root / name).is_file()}
    facts = {"format_version": INDEX_VERSION, "legacy_alignment": legacy_alignment}
    try:
        write_json(root / INDEX_NAME, {**facts, "files": files})
    except OSError:
        return  # a tree that cannot be written to is indexed anew each time
