"""Save files: the state of one dreamed game as a safetensors file, checked on reading and never unpickled.

Tensors `latents` (L, C, h, w) float32 scaled, `actions` (L - 1,) int64, `seed` (1,) int64; the header's metadata
holds one JSON object: format version, checkpoint id, frame number, name, settings, what drew it (back end,
device kind, precision), and `log`: frame, action, steps, guidance, noise of every frame of the past minutes.
Knows no players. Used by game_loop.py.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from artifacts import sha256_of_tensors
from command_line import BadInput
from engine import GameEngine

FORMAT_VERSION = 1
METADATA_KEY = "neural_game_engine"
NOT_A_SAVE = "this file is no save of a game; choose one that this page has made"


@dataclass(frozen=True)
class Save:
    """What a save file holds. state: as GameEngine.state(), of one game.  facts: the JSON object, checked."""

    state: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """steps (int), guidance (float), noise (int): of these types, their ranges are the engine's business."""
        return self.facts["settings"]


def checkpoint_id(engine: GameEngine) -> str:
    """A fingerprint of the weights that differ between any two trained models, and of the autoencoder."""
    world_model = engine.world_model
    tensors = {"positions": world_model.action_positions, "actions": world_model.action_embedding_model.weight}
    tensors["first"] = world_model.unet.conv_in.weight
    return sha256_of_tensors(tensors, {"encoder": engine.config.encoder_sha256, "steps": engine.config.trained_steps})


def pack(state: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """A save file of a one-game state; `facts` (checkpoint id, name, settings ...) go into its header."""
    facts = {"format_version": FORMAT_VERSION, "frame_number": int(state["frame_numbers"]), **facts}
    tensors = {"latents": state["latents"][0], "actions": state["actions"][0], "seed": state["seeds"]}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return bytes_of(tensors, {METADATA_KEY: json.dumps(facts)})


def unpack(contents: bytes, engine: GameEngine, checkpoint: str) -> Save:
    """Reads a save file for this engine. Raises BadInput for anything else, and for the save of another checkpoint."""
    config = engine.config
    try:
        header_bytes = int.from_bytes(contents[:8], "little")
        facts = json.loads(json.loads(contents[8 : 8 + header_bytes])["__metadata__"][METADATA_KEY])
        tensors = tensors_of(contents)
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        number, version, made_by = facts["frame_number"], facts["format_version"], facts["checkpoint"]
        kinds = {name: type(facts["settings"][name]) for name in ("steps", "guidance", "noise")}
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        raise BadInput(NOT_A_SAVE) from None
    if version != FORMAT_VERSION:
        raise BadInput(f"this save is of format {version}, not {FORMAT_VERSION}; update the program")
    if made_by != checkpoint:
        raise BadInput("this save belongs to another model; start play.py with the model it was made with")
    expected = {
        "latents": ((config.context_length, *config.latent_shape), torch.float32),
        "actions": ((config.context_length - 1,), torch.int64),
        "seed": ((1,), torch.int64),
    }
    is_sound = found == expected and type(number) is int and 0 <= number < 2**31
    is_sound &= kinds == {"steps": int, "guidance": float, "noise": int}
    if not is_sound or not torch.isfinite(tensors["latents"]).all():
        raise BadInput(NOT_A_SAVE)
    actions = tensors["actions"]
    if not 0 <= int(tensors["seed"]) < 2**31:
        raise BadInput(NOT_A_SAVE)
    if len(actions) and not 0 <= int(actions.min()) <= int(actions.max()) < config.num_actions:
        raise BadInput(NOT_A_SAVE)
    state = {"latents": tensors["latents"][None], "actions": actions[None], "seeds": tensors["seed"].clone()}
    return Save({**state, "frame_numbers": torch.tensor([number])}, facts)
