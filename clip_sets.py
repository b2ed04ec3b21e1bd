"""Sets of film pairs for the blind test, on disk: the real game and the dream side by side, in an order nobody is told.

A pair is one file, so that no name, size or loading time tells its halves apart: Motion JPEG, the two pictures of a
moment next to each other in one JPEG, one after the other. `clips.json` beside the files knows which half is real; it
is written anew after every pair, so a set goes on where it stopped. Knows no models, raters or sockets. Used by
make_clips.py and blind_test.py.
"""

import hashlib
import re
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import read_json, replacing, write_json
from command_line import BadInput

CLIPS_NAME = "clips.json"
FORMAT_VERSION = 1
JPEG_QUALITY = 95
ID_PATTERN = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Pair:
    """One file. id: its name.  real_is_left: in the file.  episode, row: where its first real frame was recorded."""

    id: str
    seconds: float
    frames: int
    real_is_left: bool
    episode: str
    row: int


@dataclass
class ClipSet:
    """The pairs made so far. wanted: how many there are to be.  key: the secret that names and orders are drawn from.

    settings: what the set was made with; one made with others is another set."""

    folder: Path
    width: int
    height: int
    frames_per_second: float
    wanted: int
    settings: dict[str, Any]
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    pairs: list[Pair] = field(default_factory=list)

    def draw(self, *words: object) -> bytes:
        """32 bytes that the key and the words decide, and that tell nothing of the words to who has not the key."""
        return hashlib.sha256("/".join([self.key, *(str(word) for word in words)]).encode()).digest()

    def path(self, pair: Pair) -> Path:
        return self.folder / f"{pair.id}.mjpeg"

    def add(self, real: np.ndarray, dream: np.ndarray, seconds: float, episode: str, row: int) -> None:
        """Writes the next pair of films, uint8 (T, H, W, 3) each, then the list with it."""
        number = len(self.pairs)
        side = bool(self.draw("side", number)[0] & 1)
        pair = Pair(self.draw("name", number).hex()[:16], seconds, len(real), side, episode, row)
        with replacing(self.path(pair)) as temporary:
            temporary.write_bytes(motion_jpeg(*((real, dream) if side else (dream, real))))
        self.pairs.append(pair)
        self.save()

    def save(self) -> None:
        facts = {**vars(self), "pairs": [asdict(pair) for pair in self.pairs], "format_version": FORMAT_VERSION}
        del facts["folder"]
        write_json(self.folder / CLIPS_NAME, facts)


def motion_jpeg(left: np.ndarray, right: np.ndarray) -> bytes:
    """Two films, uint8 (T, H, W, 3), side by side as JPEG after JPEG."""
    from pictures import encode_jpeg

    return b"".join(encode_jpeg(frame, JPEG_QUALITY) for frame in np.concatenate([left, right], axis=2))


def read_clip_set(folder: str | Path, *, is_whole: bool = True) -> ClipSet:
    """The set in a folder. Raises BadInput where there is none, or where it is broken or (is_whole) unfinished."""
    folder = Path(folder)
    if not (folder / CLIPS_NAME).is_file():
        raise BadInput(f"{folder}: no {CLIPS_NAME} in it; make a set of clips with make_clips.py --output_dir {folder}")
    facts = read_json(folder / CLIPS_NAME)
    try:
        if facts.pop("format_version") != FORMAT_VERSION:
            raise ValueError("another format version")
        pairs = [Pair(**pair) for pair in facts.pop("pairs")]
        found = ClipSet(folder, **facts, pairs=pairs)
        if not all(ID_PATTERN.fullmatch(pair.id) for pair in pairs):
            raise ValueError("a name that is none of ours")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / CLIPS_NAME} is no list of clips of ours ({error}); make the set again") from None
    for pair in pairs:
        if not found.path(pair).is_file():
            raise BadInput(f"{found.path(pair)} is missing; make the set again in another folder")
    if is_whole and len(pairs) < found.wanted:
        raise BadInput(f"{folder}: {len(pairs)} of {found.wanted} pairs are made; run its make_clips.py again to go on")
    return found
