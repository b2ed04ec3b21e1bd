"""Save files: one dreamed game as a safetensors file, checked on reading and never unpickled.

Tensors: `latents` (L, C, h, w) float32 scaled, the window it goes on from; `actions` (L - 1,) int64; `seed` (1,) int64;
`first_latents` (L, C, h, w), the window its log begins with; of a model with a memory of the map also `poses` and
`first_poses` (L, 4) float32, where the frames of both windows were seen from. The header's metadata holds one JSON
object: format version, checkpoint id, frame number, name, settings, what drew it (`drawn_by`), and `log`, the past
minutes as rows of frame, action, steps, guidance, noise, digest, of which the first L are the window. Whoever steps the
log from that window draws the same frames where what draws is the same. Knows no players. Used by game_loop.py and
save_replay.py.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from command_line import BadInput
from engine import GameEngine
from motion import MOVER_VERSION

FORMAT_VERSION = 2
METADATA_KEY = "neural_game_engine"
NOT_A_SAVE = "this file is no save of a game; choose one that the play page has made"
MOST_FRAMES = 2**30  # a year of play; the numbers of a game that goes on from there still fit every message
MOST_THREADS = 1024
MOST_VERSION = 9999
DIGEST_CHARS = 16
DIGEST = re.compile(f"[0-9a-f]{{{DIGEST_CHARS}}}")
MOST_CHARS = 100  # of what a save says of where it was made
ROW_BYTES, FACTS_BYTES = 200, 16_384  # of a header: at most for a row of the log, and for all else
FACTS_BRACKETS = 128


class Logged(NamedTuple):
    """How one frame came about: its number, the action that led to it, sampling steps, guidance, noise bucket.

    digest: of the frame as it was drawn, empty for frames that stood before the game began."""

    frame: int
    action: int
    steps: int
    guidance: float
    noise: int
    digest: str


@dataclass(frozen=True)
class Save:
    """What a save file holds. state: as GameEngine.state(), of one game.  facts: the JSON object, checked.

    first_latents: (1, L, C, h, w), of the first L rows of the log.  first_poses: (1, L, 4), or None."""

    state: dict[str, Tensor]
    first_latents: Tensor
    log: tuple[Logged, ...]
    facts: dict[str, Any]
    first_poses: Tensor | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """steps (int), guidance (float), noise (int): of these types, their ranges are the engine's business."""
        return self.facts["settings"]

    @property
    def drawn_by(self) -> dict[str, Any]:
        return self.facts["drawn_by"]


def frame_digest(frame: np.ndarray) -> str:
    """A short fingerprint of a drawn frame, uint8 (H, W, 3)."""
    return hashlib.blake2b(np.ascontiguousarray(frame), digest_size=DIGEST_CHARS // 2).hexdigest()


def _digest_of(tensors: Iterable[tuple[str, Tensor]], facts: dict[str, Any]) -> str:
    """sha256 over all bytes of named tensors, several at a time: 3.4 GB of a paper-sized model take seconds."""

    def one(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        values = tensor.detach().cpu().contiguous()
        header = f"{name} {values.dtype} {tuple(values.shape)} "
        return header + hashlib.sha256(values.reshape(-1).view(torch.uint8).numpy()).hexdigest()

    with ThreadPoolExecutor() as pool:
        digests = sorted(pool.map(one, tensors))
    return hashlib.sha256(json.dumps([digests, facts], sort_keys=True).encode()).hexdigest()


def checkpoint_id(engine: GameEngine) -> str:
    """A fingerprint of every weight of the world model, its mover's autoencoder left out, and of what latents mean."""
    weights = engine.world_model.state_dict()
    own = {name: weight for name, weight in weights.items() if not name.startswith("mover.autoencoder.")}
    return _digest_of(own.items(), {"encoder": engine.config.encoder_sha256})


def drawn_by(engine: GameEngine) -> dict[str, Any]:
    """What decides which bits come out: games that are equal in it and in their logs have equal frames.

    Other versions of a library sum in another order, and so does the same one on another CPU.

    The decoder is part of it, not of the checkpoint: with a sharper one the same game goes on."""
    back_end, device, precision = engine.backend.drawn_by
    return {
        "back_end": back_end,
        "device": device,
        "precision": precision,
        "library": engine.backend.library,
        "threads": torch.get_num_threads() if engine.device.type == "cpu" else 0,  # sums are split among them
        "decoder": _digest_of(engine.autoencoder.vae.state_dict().items(), {})[:12],
        **({} if engine.world_model.mover is None else {"mover": MOVER_VERSION}),
    }


def told(drawn_by: dict[str, Any]) -> str:
    """`drawn_by` for people."""
    threads = f", {drawn_by['threads']} threads" if drawn_by["threads"] else ""
    words = f"{drawn_by['back_end']} ({drawn_by['library']}) on {drawn_by['device']}{threads}, {drawn_by['precision']}"
    mover = f", mover {drawn_by['mover']}" if "mover" in drawn_by else ""
    return f"{words}, decoder {drawn_by['decoder']}{mover}"


def pack(
    state: dict[str, Tensor],
    first_latents: Sequence[Tensor],
    log: Sequence[Logged],
    facts: dict,
    first_poses: Sequence[Tensor] = (),
) -> bytes:
    """A save file of a one-game state; `facts` (checkpoint id, name, settings, drawn_by) go into its header.

    first_latents: L of (C, h, w), those of the first L rows of the log.  first_poses: L of (4,), where the
    state has poses."""
    facts = {"format_version": FORMAT_VERSION, "frame_number": int(state["frame_numbers"]), **facts, "log": log}
    tensors = {"latents": state["latents"][0], "actions": state["actions"][0], "seed": state["seeds"]}
    tensors["first_latents"] = torch.stack(list(first_latents))
    if "poses" in state:
        tensors |= {"poses": state["poses"][0], "first_poses": torch.stack(list(first_poses))}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return bytes_of(tensors, {METADATA_KEY: json.dumps(facts)})


def read_facts(contents: bytes, most_rows: int | None = None) -> dict[str, Any]:
    """The JSON object of a save file of this format; only `format_version`, `checkpoint`, `settings` and `drawn_by`
    are checked, to their types. Raises BadInput.

    most_rows: of the log, for a file from somebody else: a header that is longer, or nested more than such a log is,
    is not even parsed, since a megabyte of brackets takes half a second."""
    try:
        header_bytes = int.from_bytes(contents[:8], "little")
        header = contents[8 : 8 + header_bytes]
        if most_rows is not None:
            if len(header) > most_rows * ROW_BYTES + FACTS_BYTES:
                raise BadInput(NOT_A_SAVE)
            _check_nesting(header, most_rows)
        inner = json.loads(header)["__metadata__"][METADATA_KEY]
        if most_rows is not None:
            _check_nesting(inner.encode(), most_rows)  # brackets may have been spelled as \u005b
        facts = json.loads(inner)
        version = facts["format_version"]
        if version != FORMAT_VERSION:
            raise BadInput(f"this save is of format {version!r}, this program reads {FORMAT_VERSION}; play a new one")
        named = ("back_end", "device", "precision", "library", "decoder")
        facts["drawn_by"].setdefault("library", "an unknown library")  # in files from before it was told
        texts = [facts["checkpoint"], *(facts["drawn_by"][name] for name in named)]
        threads, mover = facts["drawn_by"]["threads"], facts["drawn_by"].get("mover", 0)
        kinds = {name: type(facts["settings"][name]) for name in ("steps", "guidance", "noise")}
        is_sound = all(type(text) is str and len(text) <= MOST_CHARS and text.isprintable() for text in texts)
        is_sound &= type(threads) is int and 0 <= threads <= MOST_THREADS
        is_sound &= type(mover) is int and 0 <= mover <= MOST_VERSION
        is_sound &= kinds == {"steps": int, "guidance": float, "noise": int}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise BadInput(NOT_A_SAVE) from None
    if not is_sound:
        raise BadInput(NOT_A_SAVE)
    return facts


def _check_nesting(text: bytes, most_rows: int) -> None:
    """Raises BadInput for JSON with more lists and objects than a log of `most_rows` and its facts have."""
    if text.count(b"[") + text.count(b"{") > most_rows + FACTS_BRACKETS:
        raise BadInput(NOT_A_SAVE)


def _checked_log(rows: object, engine: GameEngine, last_frame: int) -> tuple[Logged, ...]:
    """A save's log, of the right types, frame by frame; its window ends at frame 0, where a game begins, or later.

    Raises ValueError or TypeError for another one."""
    length, config = engine.config.context_length, engine.config
    log = tuple(Logged(*row) for row in rows)
    if len(log) < length or [row.frame for row in log] != list(range(last_frame - len(log) + 1, last_frame + 1)):
        raise ValueError("not one row per frame")
    if log[length - 1].frame < 0:
        raise ValueError("drawn before the game began")
    for number, row in enumerate(log):
        if [type(value) for value in row] != [int, int, int, float, int, str]:
            raise TypeError("not a row of the log")
        is_drawn = number >= length or row.digest
        if not 0 <= row.action < config.num_actions or (is_drawn and not DIGEST.fullmatch(row.digest)):
            raise ValueError("no action, or no digest")
    return log


def unpack(contents: bytes, engine: GameEngine, checkpoint: str, most_rows: int | None = None) -> Save:
    """Reads a save file for this engine. Raises BadInput for anything else, and for the save of another checkpoint.

    most_rows: see `read_facts`."""
    config = engine.config
    facts = read_facts(contents, most_rows)
    if facts["checkpoint"] != checkpoint:
        raise BadInput("this save belongs to another model; start play.py with the model it was made with")
    try:
        number = facts["frame_number"]
        if type(number) is not int or not 0 <= number <= MOST_FRAMES:
            raise ValueError("no frame number")
        if type(facts["name"]) is not str or len(facts["name"]) > MOST_CHARS:
            raise ValueError("no name")
        log = _checked_log(facts["log"], engine, number)
        tensors = tensors_of(contents)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError):
        raise BadInput(NOT_A_SAVE) from None
    window = ((config.context_length, *config.latent_shape), torch.float32)
    expected = {
        "latents": window,
        "first_latents": window,
        "actions": ((config.context_length - 1,), torch.int64),
        "seed": ((1,), torch.int64),
    }
    if engine.world_model.memory is not None:
        expected["poses"] = expected["first_poses"] = ((config.context_length, 4), torch.float32)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != expected or not all(each.isfinite().all() for each in tensors.values()):
        raise BadInput(NOT_A_SAVE)
    is_sound = tensors["actions"].tolist() == [row.action for row in log[len(log) - config.context_length + 1 :]]
    if not is_sound or not 0 <= int(tensors["seed"]) < 2**31:
        raise BadInput(NOT_A_SAVE)
    state = {"latents": tensors["latents"][None], "actions": tensors["actions"][None], "seeds": tensors["seed"].clone()}
    state["frame_numbers"] = torch.tensor([number])
    first_poses = None
    if "poses" in expected:
        state["poses"], first_poses = tensors["poses"][None], tensors["first_poses"][None]
    return Save(state, tensors["first_latents"][None], log, facts, first_poses)
