"""Small real episode files for tests: frame k is one flat colour of value k, so that a person can compute the rest.

Writes the format of ViZDoomPPO/episode_recorder.py and the two older kinds without metadata. Used by the tests only.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WIDTH, HEIGHT = 16, 12
ACTION_TABLE: list[dict[str, Any]] = [
    {"id": 0, "name": "no-op", "buttons": [], "keys": []},
    {"id": 1, "name": "left", "buttons": ["TURN_LEFT"], "keys": ["ArrowLeft"]},
    {"id": 2, "name": "right", "buttons": ["TURN_RIGHT"], "keys": ["ArrowRight"]},
    {"id": 3, "name": "attack", "buttons": ["ATTACK"], "keys": ["Space"]},
]


def flat_frame(value: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 (height, width, 3), every byte `value`."""
    return np.full((height, width, 3), value, dtype=np.uint8)


def encode_picture(frame: np.ndarray, image_format: str = "png") -> bytes:
    """A frame's bytes as a file of that format; png loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format=image_format)
    return buffer.getvalue()


def episode_metadata(width: int, height: int, **changes: object) -> dict[str, Any]:
    """The JSON the recorder stores with an episode."""
    return {
        "format_version": 1,
        "alignment": "before",
        "action_table": ACTION_TABLE,
        "tics_per_second": 35.0,
        "tics_per_row": 1,
        "tics_per_step": 4,
        "width": width,
        "height": height,
        "scenario": "test",
        "level": 0,
        "seed": 0,
        "episode": 0,
        "agent_step": 0,
        "image_format": "png",
        "image_quality": 90,
        **changes,
    }


def write_episode(
    path: str | Path,
    actions: Sequence[int] | np.ndarray,
    *,
    values: Sequence[int] | None = None,
    frames: Sequence[np.ndarray] | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
    row_group: int = 64,
    image_format: str = "png",
    legacy: str | None = None,
    games: Sequence[int] | None = None,
    as_struct: bool = False,
    as_lists: bool = False,
    **metadata: object,
) -> Path:
    """One parquet file: frame k has value k (mod 256) unless `values` or whole `frames` say otherwise.

    legacy: None for our format; "after" (a `health` column) or "before", both without metadata.
    games: an `episode_id` per row, for files that hold several.  as_struct: pictures as {bytes, path}.
    as_lists: each action as a list of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = len(actions)
    if frames is None:
        frames = [flat_frame(value % 256, width, height) for value in (values if values is not None else range(rows))]
    cache = {frame.tobytes(): encode_picture(frame, image_format) for frame in frames}
    pictures: list[Any] = [cache[frame.tobytes()] for frame in frames]
    kind: pa.DataType = pa.binary()
    if as_struct:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pictures = [{"bytes": picture, "path": None} for picture in pictures]
    columns = {
        "frames": pa.array(pictures, kind),
        "actions": pa.array([[int(a)] for a in actions] if as_lists else np.asarray(actions, dtype=np.int64)),
        "step_ids": pa.array(np.arange(rows, dtype=np.int64) // 4),
    }
    if games is not None:
        columns["episode_id"] = pa.array(np.asarray(games, dtype=np.int64))
    if legacy != "before":
        health = np.arange(rows) // (1 if legacy == "after" else 3)
        columns["health"] = pa.array(health.astype(np.float32))
    if legacy is None:
        columns["reward"] = pa.array(np.arange(rows, dtype=np.float32))
        columns["dead"] = pa.array(np.zeros(rows, dtype=bool))
    table = pa.table(columns)
    if legacy is None:
        text = json.dumps(episode_metadata(width, height, **metadata))
        table = table.replace_schema_metadata({"neural_game_engine": text})
    pq.write_table(table, path, row_group_size=row_group)
    return path
