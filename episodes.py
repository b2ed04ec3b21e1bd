"""Episodes on disk: recorded games as parquet files, read a few rows at a time.

Knows no torch and nothing of latents, windows or models; the format is written by ViZDoomPPO/episode_recorder.py.
Rows come out as the alignment rule of data_loader.py wants them, whatever the file's own order is: a file without our
metadata stores the frame *after* its action when it has a `health` column, so frames[t] pairs with actions[t+1] and the
last row of each game, which may already show the next one, is dropped. Without that column it stores the frame before.
Used by data_loader.py, encode_images.py and by the scripts that look at real frames.
"""

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from command_line import BadInput

METADATA_KEY = b"neural_game_engine"
FORMAT_VERSION = 1
GAME_COLUMN = "episode_id"  # in published files that hold many games
COLUMNS_OF_THE_ACTION = ("actions", "reward")  # every other column belongs to the frame
VALIDATION_EVERY = 20
READ_ROWS = 64  # rows decoded from parquet at a time, the recorder's row group
POSE_COLUMNS = ("position_x", "position_y", "camera_z", "position_angle")  # see scenes.py
BLACK_NAME = "latent_black.pt"  # at the root of a tree of encoded episodes, see latents.py
RECORD_HINT = "record some with ViZDoomPPO/load_model_generate_dataset.py --output parquet"
ENCODE_HINT = "encode episodes with encode_images.py"


@dataclass(frozen=True)
class EpisodeInfo:
    """What a file says about itself. `rows`: usable after alignment; sizes in pixels; legacy `metadata` is {}."""

    path: Path
    rows: int
    file_bytes: int
    width: int
    height: int
    tics_per_row: int
    tics_per_second: float
    action_table: list[dict[str, Any]] | None
    alignment: str  # "before" or "after" the action, as stored in the file
    metadata: dict[str, Any]


def find_episodes(dataset_basepath: str | Path) -> list[Path]:
    """Every episode_*.parquet below a folder, sorted; any *.parquet where there is none; a file is itself.

    Raises BadInput when there is nothing."""
    return _find(Path(dataset_basepath), "episode_", ".parquet", RECORD_HINT)


def find_latents(dataset_basepath: str | Path) -> list[Path]:
    """Every latent_*.pt below a folder but the black one, sorted; any *.pt where there is none; a file is itself.

    Raises BadInput when there is nothing."""
    return _find(Path(dataset_basepath), "latent_", ".pt", ENCODE_HINT)


def _find(base: Path, prefix: str, suffix: str, hint: str) -> list[Path]:
    if base.is_file() and base.suffix == suffix:
        return [base]
    if not base.is_dir():
        raise BadInput(f"{base} is not a folder; {hint}")
    found = sorted(path for path in base.rglob(f"*{suffix}") if path.is_file())
    found = [path for path in found if not _is_hidden(path.relative_to(base)) and path.name != BLACK_NAME]
    named = [path for path in found if path.name.startswith(prefix)] or found
    if not named:
        raise BadInput(f"no {prefix}*{suffix} under {base}; {hint}")
    return named


def _is_hidden(path: Path) -> bool:
    """Whether a file, or a folder on the way to it, begins with a dot: somebody's unfinished work."""
    return any(part.startswith(".") for part in path.parts)


def split_episodes(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(train, validation), by whole files: below an `eval` folder where some are, else every 20th, from the second on.

    Folders that all paths share say nothing. A single file goes to train, and validation is empty."""
    paths = sorted(Path(path) for path in paths)
    shared = len(Path(os.path.commonpath(paths)).parts) if paths else 0
    is_eval = ["eval" in path.parts[shared:-1] for path in paths]
    if not any(is_eval):
        is_eval = [index % VALIDATION_EVERY == 1 for index in range(len(paths))]
    return (
        [path for path, held_out in zip(paths, is_eval, strict=True) if not held_out],
        [path for path, held_out in zip(paths, is_eval, strict=True) if held_out],
    )


def inspect_episode(path: str | Path) -> EpisodeInfo:
    """Reads the footer only; in files without metadata also the first picture's header and the column of games.

    Raises BadInput naming the file when it is truncated, no parquet, empty, of a newer format, or lacks a column, and
    when an action id is outside the file's table."""
    path = Path(path)
    with _named_errors(path), pq.ParquetFile(path, memory_map=True) as parquet:
        return _describe(parquet, path)


def common_facts(infos: Sequence[EpisodeInfo]) -> EpisodeInfo:
    """The first of `infos`, once size, action table and timing are the same in all. Raises BadInput naming a file."""
    first = infos[0]
    for info in infos[1:]:
        for name, mine, its in (
            ("frames are", f"{info.width}x{info.height}", f"{first.width}x{first.height}"),
            ("tics per row are", info.tics_per_row, first.tics_per_row),
            ("tics per second are", info.tics_per_second, first.tics_per_second),
        ):
            if mine != its:
                raise BadInput(f"{info.path}: {name} {mine}, but {its} in {first.path}; keep them in separate folders")
        if info.action_table != first.action_table:
            raise BadInput(f"{info.path}: its action table is not that of {first.path}; keep them in separate folders")
    return first


def rows_per_stride(infos: Sequence[EpisodeInfo], frame_stride: int) -> int:
    """Recorded rows from one frame that a model sees to the next, `frame_stride` in tics.

    Raises BadInput naming a file when its rows lie further apart than that, or when it is too short for one stride."""
    tics_per_row = infos[0].tics_per_row
    if frame_stride % tics_per_row:
        what = f"every {tics_per_row} tics recorded, the model sees every {frame_stride}"
        raise BadInput(f"{infos[0].path}: {what}; record with a --record_stride that divides it")
    rows = frame_stride // tics_per_row
    for info in infos:
        if info.rows <= rows:
            what = f"{info.rows} rows, a stride of {frame_stride} tics takes {rows + 1}"
            raise BadInput(f"{info.path} is too short: {what}; delete it, or record longer episodes")
    return rows


def no_op_id(action_table: Sequence[dict[str, Any]] | None) -> int:
    """The id of the action that presses nothing; 0 where the table does not tell."""
    return next((int(row["id"]) for row in action_table or () if not row.get("buttons", True)), 0)


def numbered_actions(count: int) -> list[dict[str, Any]]:
    """An action table where nothing but ids is known."""
    return [{"id": number, "name": str(number), "buttons": [], "keys": []} for number in range(count)]


def number_of_actions(action_table: Sequence[dict[str, Any]]) -> int:
    """One more than the table's largest id."""
    return 1 + max(int(row["id"]) for row in action_table)


def held_strides(actions: np.ndarray, starts: np.ndarray, step: int, held: np.ndarray | None = None) -> np.ndarray:
    """bool (T,): True at row r where rows r .. r+step-1 hold one action and row r+step belongs to the same game.

    actions: int64 (T,).  starts: rows at which a game begins, the first is 0.  held: bool (T,), False where the action
    changes between row r and the next stored row, for data that skips tics."""
    rows = len(actions)
    if rows == 0:
        return np.zeros(0, dtype=bool)
    changes = np.concatenate(([0], np.cumsum(actions[1:] != actions[:-1])))  # (T,) changes before row r
    ends = np.repeat([*starts[1:], rows], np.diff([*starts, rows]))  # (T,) where row r's game ends
    row = np.arange(rows)
    last = np.minimum(row + step - 1, rows - 1)
    is_held = (changes[last] == changes) & (row + step < ends)
    if held is not None:
        breaks = np.concatenate(([0], np.cumsum(~held)))  # (T+1,)
        is_held &= breaks[last + 1] == breaks[row]
    return is_held


def decode_frame(encoded: bytes) -> np.ndarray:
    """A picture's bytes -> uint8 (H, W, 3). Raises ValueError when they are none."""
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, TypeError):
        raise ValueError("not a readable picture") from None


EVENT_COLUMNS = ("health", "ammo", "frags", "dead")  # that change where something happened


class Episode:
    """One open parquet file. `actions`: int64 (T,).  `starts`: rows at which a game begins (one game: just 0)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with _named_errors(self.path):
            self._parquet = pq.ParquetFile(self.path, memory_map=True)
            self.info = _describe(self._parquet, self.path)
            self._file_rows, self.starts = _usable_rows(self._parquet, self.info.alignment, bool(self.info.metadata))
        self.actions = self.columns(["actions"])["actions"].astype(np.int64)  # (T,)
        group_rows = [self._parquet.metadata.row_group(group).num_rows for group in range(self._parquet.num_row_groups)]
        self._group_starts = np.concatenate(([0], np.cumsum(group_rows)))

    def close(self) -> None:
        """Releases the file; the actions stay."""
        self._parquet.close()

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The named columns, (T,) each, aligned like the frames. Raises BadInput when one is missing."""
        present = self._parquet.schema_arrow.names
        missing = [name for name in names if name not in present]
        if missing:
            raise BadInput(f"{self.path}: no column {missing[0]!r}, it has {', '.join(present)}")
        with _named_errors(self.path):
            table = self._parquet.read(columns=list(names), use_threads=False)
            shift = 1 if self.info.alignment == "after" else 0
            rows = {name: self._file_rows + (shift if name in COLUMNS_OF_THE_ACTION else 0) for name in names}
            return {name: _plain(table.column(name)).to_numpy()[rows[name]] for name in names}

    def columns_present(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Like `columns`, of those that the file has."""
        return self.columns([name for name in names if name in self._parquet.schema_arrow.names])

    def events(self, rows: np.ndarray) -> np.ndarray | None:
        """bool (n,): whether what the game counts (EVENT_COLUMNS) changed since the row before in `rows`, of its game.

        rows: int64 (n,), ascending. A shot, damage, a pick-up, a death. None where nothing was counted."""
        schema = self._parquet.schema_arrow
        kinds = {name: schema.field(name).type for name in EVENT_COLUMNS if name in schema.names}
        numbers = [name for name, kind in kinds.items() if pa.types.is_primitive(kind)]
        if not numbers:
            return None
        counted = self.columns(numbers)
        before = np.concatenate([rows[:1], rows[:-1]])
        game = np.searchsorted(self.starts, rows, side="right")
        is_event = np.zeros(len(rows), dtype=bool)
        for values in counted.values():
            values = np.nan_to_num(values.astype(np.float64), nan=-1.0)  # a missing number is no change
            changes = np.concatenate(([0], np.cumsum(values[1:] != values[:-1])))  # (T,) before each row
            is_event |= changes[rows] != changes[before]
        return is_event & (game == np.concatenate([game[:1], game[:-1]]))

    def read_frames(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3) of the rows, in any order, repeats allowed; reads only the row groups they are in."""
        wanted, place = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        encoded = [picture for batch in self.iter_encoded(wanted, READ_ROWS) for picture in batch]
        return self.decode(encoded, wanted)[place]

    def iter_frames(self, rows: Sequence[int] | np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """uint8 (n <= batch_size, H, W, 3) of ascending rows, batch after batch; memory does not grow with the file."""
        rows = np.asarray(rows, dtype=np.int64)
        for number, encoded in enumerate(self.iter_encoded(rows, batch_size)):
            yield self.decode(encoded, rows[number * batch_size :])

    def iter_encoded(self, rows: Sequence[int] | np.ndarray, batch_size: int) -> Iterator[list[bytes]]:
        """Like `iter_frames`, but the pictures' bytes as stored, to be decoded elsewhere with `decode`."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.info.rows or np.any(np.diff(rows) <= 0)):
            raise ValueError(f"rows must ascend within 0..{self.info.rows - 1}, got {rows[0]}..{rows[-1]}")
        waiting: list[bytes] = []
        with _named_errors(self.path):
            for picture in self._iter_pictures(self._file_rows[rows]):
                waiting.append(picture)
                if len(waiting) == batch_size:
                    yield waiting
                    waiting = []
        if waiting:
            yield waiting

    def decode(self, encoded: Sequence[bytes], rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Pictures' bytes -> uint8 (n, H, W, 3). Raises BadInput naming a row that is broken or of another size."""
        shape = (self.info.height, self.info.width, 3)
        frames = np.empty((len(encoded), *shape), dtype=np.uint8)
        for index, picture in enumerate(encoded):
            named = f"{self.path}: the frame of row {rows[index]} is"
            try:
                frame = decode_frame(picture)
            except ValueError as error:
                raise BadInput(f"{named} {error}; delete the file or record it again") from None
            if frame.shape != shape:
                sizes = f"{frame.shape[1]}x{frame.shape[0]} in an episode of {shape[1]}x{shape[0]}"
                raise BadInput(f"{named} {sizes}; delete the file or record it again")
            frames[index] = frame
        return frames

    def _iter_pictures(self, file_rows: np.ndarray) -> Iterator[bytes]:
        """Bytes of ascending file rows; holds at most READ_ROWS of a row group, however large the group is."""
        for group in np.unique(np.searchsorted(self._group_starts, file_rows, side="right") - 1):
            first, end = self._group_starts[group], self._group_starts[group + 1]
            wanted = file_rows[(file_rows >= first) & (file_rows < end)] - first
            batches = self._parquet.iter_batches(READ_ROWS, [int(group)], ["frames"], use_threads=False)
            offset = taken = 0
            while taken < len(wanted):
                pictures = _pictures(next(batches).column(0))
                while taken < len(wanted) and wanted[taken] < offset + len(pictures):
                    yield pictures[int(wanted[taken] - offset)].as_py()
                    taken += 1
                offset += len(pictures)


def _pictures(column: pa.Array) -> pa.Array:
    """The bytes of a plain binary column, or of the {bytes, path} struct that published data sets have."""
    return column.field("bytes") if pa.types.is_struct(column.type) else column


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of numbers as it is; one of lists of one number each, as some published data sets have, without them.

    Raises pa.ArrowInvalid when a row has no number, or several."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return column
    if not pc.all(pc.equal(pc.list_value_length(column), 1)).as_py():
        raise pa.ArrowInvalid("a row holds a list of several values, not one")
    return pc.list_flatten(column)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise BadInput(f"{path} is not a complete parquet file ({reason}); delete it or record it again") from None


def _describe(parquet: pq.ParquetFile, path: Path) -> EpisodeInfo:
    names = parquet.schema_arrow.names
    for name in ("frames", "actions"):
        if name not in names:
            raise BadInput(f"{path}: no column {name!r}, it has {', '.join(names)}; an episode has frames and actions")
    metadata = _read_metadata(parquet, path)
    alignment = metadata.get("alignment", "before") if metadata else ("after" if "health" in names else "before")
    if alignment not in ("before", "after"):
        raise BadInput(f"{path}: alignment {alignment!r} is neither before nor after; record it again")
    rows = len(_usable_rows(parquet, alignment, bool(metadata))[0])
    if rows == 0:
        raise BadInput(f"{path} is an empty episode (no usable row); delete it or record it again")
    table = metadata.get("action_table")
    _check_actions(parquet, path, table)
    width, height = metadata.get("width"), metadata.get("height")
    if not (width and height):
        width, height = _first_size(parquet, path)
    return EpisodeInfo(
        path=path,
        rows=rows,
        file_bytes=path.stat().st_size,
        width=int(width),
        height=int(height),
        tics_per_row=int(metadata.get("tics_per_row", 1)),  # legacy: unknown, every row counts as a tic
        tics_per_second=float(metadata.get("tics_per_second", 35.0)),
        action_table=table,
        alignment=alignment,
        metadata=metadata,
    )


def _read_metadata(parquet: pq.ParquetFile, path: Path) -> dict[str, Any]:
    stored = (parquet.schema_arrow.metadata or {}).get(METADATA_KEY)
    if stored is None:
        return {}
    try:
        metadata = json.loads(stored)
        version = int(metadata["format_version"])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: its metadata is broken; delete it or record it again") from None
    if version > FORMAT_VERSION:
        raise BadInput(f"{path}: format version {version}, this program reads up to {FORMAT_VERSION}; update it")
    return metadata


def _usable_rows(parquet: pq.ParquetFile, alignment: str, has_metadata: bool) -> tuple[np.ndarray, np.ndarray]:
    """(file row of each usable row (T,), usable rows at which a game begins)."""
    count = parquet.metadata.num_rows
    bounds = [0, count]
    if not has_metadata and GAME_COLUMN in parquet.schema_arrow.names:
        games = parquet.read(columns=[GAME_COLUMN], use_threads=False).column(0).to_numpy()
        bounds = [0, *(np.flatnonzero(games[1:] != games[:-1]) + 1), count]
    dropped = 1 if alignment == "after" else 0
    games_rows = [np.arange(first, end - dropped) for first, end in zip(bounds[:-1], bounds[1:], strict=True)]
    games_rows = [rows for rows in games_rows if len(rows)]
    starts = np.cumsum([0, *(len(rows) for rows in games_rows)])[:-1]
    return np.concatenate(games_rows or [np.arange(0)]), starts


def _check_actions(parquet: pq.ParquetFile, path: Path, table: list[dict[str, Any]] | None) -> None:
    paths = [parquet.schema.column(index).path for index in range(parquet.metadata.num_columns)]
    column = next(index for index, name in enumerate(paths) if name.split(".")[0] == "actions")
    groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
    statistics = [group.column(column).statistics for group in groups if group.num_rows]
    if all(each is not None and each.has_min_max for each in statistics):
        lowest, highest = min(each.min for each in statistics), max(each.max for each in statistics)
    else:
        actions = _plain(parquet.read(columns=["actions"], use_threads=False).column(0)).to_numpy()
        lowest, highest = actions.min(), actions.max()
    limit = number_of_actions(table) if table else np.inf
    outside = lowest if lowest < 0 else highest
    if lowest < 0 or highest >= limit:
        known = f"the table has 0..{limit - 1}" if table else "ids start at 0"
        raise BadInput(f"{path}: action id {outside} is outside its table ({known}); record it again")


def _first_size(parquet: pq.ParquetFile, path: Path) -> tuple[int, int]:
    batch = next(parquet.iter_batches(1, columns=["frames"], use_threads=False))
    try:
        with Image.open(io.BytesIO(_pictures(batch.column(0))[0].as_py())) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, TypeError):
        raise BadInput(f"{path}: the frame of row 0 is not a readable picture; record it again") from None
