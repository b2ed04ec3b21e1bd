"""Pictures for people: two films side by side with a caption, animated GIFs, single JPEGs.

Knows nothing of models; PIL does the drawing. Used by the trainers' samples, by run_autoregressive.py and by play.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from artifacts import replacing

CAPTION_HEIGHT_PX = 14
FILM_WIDTH_PX = 160  # narrower films are enlarged by a whole factor


def side_by_side(films: dict[str, np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Films next to each other, each under its name, with one caption per frame below.

    films: name -> uint8 (T, H, W, 3), all of one shape.  captions: T lines.  Returns uint8 (T, H'', W'', 3).
    """
    scale = max(1, FILM_WIDTH_PX // next(iter(films.values())).shape[2])  # captions need room
    columns = [film.repeat(scale, axis=1).repeat(scale, axis=2) for film in films.values()]
    pictures = np.concatenate(columns, axis=2)  # (T, H*scale, films*W*scale, 3)
    count, height, width = pictures.shape[:3]
    labelled = np.zeros((count, height + 2 * CAPTION_HEIGHT_PX, width, 3), np.uint8)
    labelled[:, CAPTION_HEIGHT_PX:-CAPTION_HEIGHT_PX] = pictures
    for number, caption in enumerate(captions):
        picture = Image.fromarray(labelled[number])
        draw = ImageDraw.Draw(picture)
        for column, name in enumerate(films):
            draw.text((column * width // len(films) + 3, 1), name, fill=(255, 255, 255))
        draw.text((3, height + CAPTION_HEIGHT_PX + 1), caption, fill=(255, 220, 120))
        labelled[number] = np.asarray(picture)
    return labelled


def write_gif(path: str | Path, frames: np.ndarray, frames_per_second: float) -> None:
    """Writes uint8 (T, H, W, 3) as an endless GIF, atomically.

    GIF counts time in 10 ms; delays are rounded so that no drift adds up."""
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    ends_ms = [round((number + 1) * 100 / frames_per_second) * 10 for number in range(len(images))]
    delays_ms = [max(20, end - start) for start, end in zip([0, *ends_ms], ends_ms, strict=False)]
    with replacing(path) as temporary:
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=delays_ms, loop=0, disposal=1
        )


def encode_jpeg(frame: np.ndarray, quality: int = 90) -> bytes:
    """uint8 (H, W, 3) -> a JPEG file in memory, full colour resolution: small pictures are shown enlarged."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
