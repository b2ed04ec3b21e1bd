"""Published world models without a config.json of ours: what their folders leave unsaid.

Knows no torch: it looks at names, JSON and the header of one safetensors file. Used by model_folders.py and model.py.
Such a folder has `unet/` (or the UNet itself), `noise_scheduler/` or `scheduler/`, an action embedding, and maybe
`vae/`. The number of actions tells whose it is:

    12   Masao-Taketani/GameNGen: context 64, 320x240 with 8 black rows above and below
    18   arnaudstiegler/gameNgen-repro: context 9, 320x240 unpadded, no guidance
    else only ids are known, the rest as for 12

In all of them the channels are the context, oldest first, then the noised latent; each action is one token, without a
position; a class label, where the UNet has them, is the noise of the context in steps of 0.07. The context length
follows from the UNet's channels. Source: the model.py, run_inference.py and run_playable_env.py of both repositories.
"""

from pathlib import Path
from typing import Any

from artifacts import read_json
from command_line import BadInput
from episodes import numbered_actions
from presets import STABLE_DIFFUSION, Preset, get_preset

ACTION_EMBEDDING = "action_embedding_model.safetensors"
SCHEDULER_FOLDERS = ("noise_scheduler", "scheduler")
PRESET_OF = {12: "seed", 18: "gamengen_repro"}
TICS_PER_SECOND = 35.0

KEYS = {
    "ATTACK": "Space",
    "MOVE_FORWARD": "KeyW",
    "MOVE_BACKWARD": "KeyS",
    "MOVE_LEFT": "KeyA",
    "MOVE_RIGHT": "KeyD",
    "TURN_LEFT": "ArrowLeft",
    "TURN_RIGHT": "ArrowRight",
}
# Both tables count the allowed combinations of the scenario's buttons in binary, the last button fastest. Theirs of 12
# lets ATTACK and strafing happen only alone, theirs of 18 ATTACK, and has neither no-op nor MOVE_BACKWARD.
ACTIONS = {
    12: (
        "NOOP",
        "TURN_LEFT",
        "TURN_RIGHT",
        "MOVE_BACKWARD",
        "MOVE_BACKWARD+TURN_LEFT",
        "MOVE_BACKWARD+TURN_RIGHT",
        "MOVE_RIGHT",
        "MOVE_LEFT",
        "MOVE_FORWARD",
        "MOVE_FORWARD+TURN_LEFT",
        "MOVE_FORWARD+TURN_RIGHT",
        "ATTACK",
    ),
    18: (
        "TURN_LEFT",
        "TURN_RIGHT",
        "MOVE_RIGHT",
        "MOVE_RIGHT+TURN_LEFT",
        "MOVE_RIGHT+TURN_RIGHT",
        "MOVE_LEFT",
        "MOVE_LEFT+TURN_LEFT",
        "MOVE_LEFT+TURN_RIGHT",
        "MOVE_FORWARD",
        "MOVE_FORWARD+TURN_LEFT",
        "MOVE_FORWARD+TURN_RIGHT",
        "MOVE_FORWARD+MOVE_RIGHT",
        "MOVE_FORWARD+MOVE_RIGHT+TURN_LEFT",
        "MOVE_FORWARD+MOVE_RIGHT+TURN_RIGHT",
        "MOVE_FORWARD+MOVE_LEFT",
        "MOVE_FORWARD+MOVE_LEFT+TURN_LEFT",
        "MOVE_FORWARD+MOVE_LEFT+TURN_RIGHT",
        "ATTACK",
    ),
}


def action_table(num_actions: int) -> list[dict[str, Any]]:
    """Rows of id, name, buttons, keys; ids alone, by number, where nobody's table has that many actions."""
    if num_actions not in ACTIONS:
        return numbered_actions(num_actions)
    pressed = [[] if name == "NOOP" else name.split("+") for name in ACTIONS[num_actions]]
    return [
        {"id": i, "name": name, "buttons": buttons, "keys": [KEYS[button] for button in buttons]}
        for i, (name, buttons) in enumerate(zip(ACTIONS[num_actions], pressed, strict=True))
    ]


def has_published_actions(folder: Path) -> bool:
    """Whether an action embedding lies there, and no config.json but diffusers'."""
    path = folder / "config.json"
    return (folder / ACTION_EMBEDDING).is_file() and not (path.is_file() and "_class_name" not in read_json(path))


def is_published(folder: Path) -> bool:
    """Whether a folder is a world model of others."""
    return has_published_actions(folder) and _has_unet(unet_folder(folder))


def unet_folder(folder: Path) -> Path:
    return folder / "unet" if (folder / "unet").is_dir() else folder


def _has_unet(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("_class_name") == "UNet2DConditionModel"


def scheduler_folder(folder: Path) -> Path:
    """`noise_scheduler/` or `scheduler/`. Raises BadInput when there is neither."""
    for name in SCHEDULER_FOLDERS:
        if (folder / name / "scheduler_config.json").is_file():
            return folder / name
    raise BadInput(f"{folder}: neither {' nor '.join(SCHEDULER_FOLDERS)} in it; download the whole repository again")


def vae_of(folder: Path) -> Path | str:
    """The folder's own autoencoder, or Stable Diffusion 1.4's by its Hub id: they kept its encoder."""
    return folder / "vae" if (folder / "vae" / "config.json").is_file() else STABLE_DIFFUSION


def number_of_embeddings(folder: Path) -> int:
    """Rows of the action embedding. Raises BadInput when the file is broken, or its numbers disagree."""
    from safetensors import SafetensorError, safe_open

    path = folder / ACTION_EMBEDDING
    try:
        with safe_open(path, framework="numpy") as tensors:
            count, width = tensors.get_slice("weight").get_shape()
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: not an action embedding ({reason}); download it again") from None
    info = folder / "embedding_info.json"
    told = read_json(info) if info.is_file() else {}
    if (told.get("num_embeddings", count), told.get("embedding_dim", width)) != (count, width):
        raise BadInput(f"{info}: says {told}, the weights are {count} by {width}; download the folder again")
    return int(count)


def preset_of(folder: Path) -> Preset:
    """The preset whose frames and padding a published world model was trained on."""
    return get_preset(PRESET_OF.get(number_of_embeddings(folder), PRESET_OF[12]))


def published_config(folder: Path) -> dict[str, Any]:
    """What our config.json would say but for `geometry`; `encoder_sha256` is None, for nobody wrote it down.

    Raises BadInput when the UNet's channels are no whole number of latents, or a file is broken."""
    num_actions, preset = number_of_embeddings(folder), preset_of(folder)
    unet = read_json(unet_folder(folder) / "config.json")
    channels, per_latent = int(unet["in_channels"]), int(unet["out_channels"])
    if channels % per_latent or channels < 2 * per_latent:
        what = f"{channels} channels in, {per_latent} out: no whole number of past frames"
        raise BadInput(f"{unet_folder(folder)}: {what}; give a world model, not a text-to-image UNet")
    buckets = unet.get("num_class_embeds")
    return {
        "context_length": channels // per_latent - 1,
        "frame_stride": preset.frame_stride,
        "tics_per_second": TICS_PER_SECOND,
        "action_table": action_table(num_actions),
        "latent_shape": [per_latent, preset.latent_height, preset.latent_width],
        "num_noise_buckets": int(buckets) if buckets else 1,
        "max_noise_level": preset.max_noise_level,
        "num_inference_steps": preset.num_inference_steps,
        "guidance_scale": preset.guidance_scale,
        "encoder_sha256": None,
    }
