"""Gifs of recorded episodes, to look at. Knows only the parquet format. Used by `recording.py`."""

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

GIF_MIN_HEIGHT_PX = 240  # smaller games are shown enlarged
GIF_CAPTION_PX = 14


def write_gif(parquet: Path, gif: Path, most_steps: int | None = None) -> None:
    """One picture per agent step, at the game's own speed, with step and action below it; at `most_steps` it ends."""
    import pyarrow.parquet as pq
    from episode_recorder import METADATA_KEY

    with pq.ParquetFile(parquet) as file:
        facts = json.loads(file.metadata.metadata[METADATA_KEY])
        pictures = islice(captioned_pictures(file, [row["name"] for row in facts["action_table"]]), most_steps)
        step_ms = round(1000 * facts["tics_per_step"] / facts["tics_per_second"])
        next(pictures).save(gif, save_all=True, append_images=pictures, duration=step_ms, loop=0)


def captioned_pictures(file: Any, action_names: list[str]) -> Iterator["Image.Image"]:
    """The first frame of every agent step of an open parquet file, enlarged where it is small."""
    from PIL import Image, ImageDraw

    last_step = -1
    for batch in file.iter_batches(columns=["frames", "actions", "step_ids"]):
        for frame, action, step in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if step == last_step:
                continue
            last_step = step
            picture = Image.open(io.BytesIO(frame)).convert("RGB")
            scale = -(-GIF_MIN_HEIGHT_PX // picture.height)  # whole pixels, rounded up
            picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
            canvas = Image.new("RGB", (picture.width, picture.height + GIF_CAPTION_PX))
            canvas.paste(picture)
            ImageDraw.Draw(canvas).text((2, picture.height + 1), f"{step:04d} {action_names[action]}", fill="white")
            yield canvas
