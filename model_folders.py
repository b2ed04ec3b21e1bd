"""Model folders as they lie on disk: found, and told apart, without torch.

Knows which files and facts a folder must have, not what is in the tensors. Scripts call it before anything heavy is
imported, so that a wrong folder is named at once; model.py reads the weights of what is found here.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import read_json
from command_line import BadInput
from dataset_folders import cure_for_fetching, is_of_this_machine
from legacy_models import (
    ACTION_EMBEDDING,
    has_published_actions,
    is_published,
    preset_of,
    published_config,
    scheduler_folder,
    vae_of,
)
from presets import PRESETS, Preset

FORMAT_VERSION = 1
AUTOENCODER_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
AUTOENCODER_INFO = "autoencoder_info.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")
# What is fetched of a repository on the Hub: of a whole pipeline only the part needed, and no fp16 or other variant.
AUTOENCODER_FILES = tuple(
    f"{part}{name}"
    for part in ("", "vae/", "autoencoder/")
    for name in ("config.json", AUTOENCODER_INFO, *WEIGHTS, "diffusion_pytorch_model-*.safetensors")
) + ("embedding_info.json", ACTION_EMBEDDING)  # which tell a published world model's frame size
UNET_FILES = tuple(f"unet/{name}" for name in ("config.json", *WEIGHTS, "diffusion_pytorch_model-*.safetensors"))
EVERY_FILE = ("*.json", "*.safetensors")
WORLD_MODEL_FILES = ("config.json", "embedding_info.json", "unet/config.json", "action_embedding_model.safetensors")
# Of what a training may start from: the UNet, and of a world model all but the autoencoder and the beginnings.
MOTION_FILES = ("config.json", WEIGHTS[0])
START_FILES = (
    *UNET_FILES,
    *WORLD_MODEL_FILES,
    *(f"motion/{part}{name}" for part in ("", "scene_memory/") for name in MOTION_FILES),
    "action_positions.safetensors",
    "noise_scheduler/scheduler_config.json",
)


@dataclass(frozen=True)
class Geometry:
    """Frame size a model is trained at, and the padded size its autoencoder sees.

    Padding is to the right and below; models of others have `pad_above` rows of it above the picture."""

    preset: str
    frame_width: int
    frame_height: int
    padded_width: int
    padded_height: int
    pad_above: int = 0

    @classmethod
    def of(cls, preset: Preset) -> "Geometry":
        sizes = (preset.frame_width, preset.frame_height, preset.padded_width, preset.padded_height)
        return cls(preset.name, *sizes, preset.pad_above)

    def facts(self) -> dict[str, Any]:
        """What is written down and fingerprinted: `pad_above` only where there is any, as before there was such."""
        facts = dataclasses.asdict(self)
        return facts if self.pad_above else {name: value for name, value in facts.items() if name != "pad_above"}

    def is_like(self, other: "Geometry") -> bool:
        """Whether the pictures are the same, whatever the presets' names."""
        return dataclasses.replace(self, preset=other.preset) == other


def resolve_folder(folder_or_id: str | Path, *inside: str, files: tuple[str, ...] = EVERY_FILE) -> Path:
    """A local folder, or the snapshot of a Hub repository (`owner/name`; JSON and safetensors files only: `files`).

    A run folder stands for its subfolder `inside` where it has one. Raises BadInput when there is neither, OSError
    where the disk fails.
    """
    folder = Path(folder_or_id)
    if not folder.is_dir():
        name = str(folder_or_id)
        if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
            raise BadInput(f"{name}: no such folder, and no Hub id like owner/name; give a model folder")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, allow_patterns=list(files)))
        except Exception as error:  # the Hub client raises dozens of kinds; to the user the rest mean "cannot be had"
            if is_of_this_machine(error):
                raise
            raise BadInput(
                f"{name}: neither a local folder nor a Hub repository that can be fetched ({type(error).__name__}); "
                f"{cure_for_fetching()}"
            ) from None
    for name in inside:
        folder = folder / name if (folder / name).is_dir() else folder
    return folder


def find_autoencoder(
    folder_or_id: str | Path, preset: Preset | None = None, *, geometry: Geometry | None = None
) -> tuple[Path, Geometry]:
    """(folder, geometry) of an autoencoder: the folder itself, its `autoencoder/` or `vae/`, or a Hub repository.

    `preset`, or a world model's `geometry`, fills in where the folder has no `autoencoder_info.json` and is no part of
    a published world model; a preset must agree where one of them tells.
    Raises BadInput when the folder is not an autoencoder, or is of another preset.
    """
    root = resolve_folder(folder_or_id, files=AUTOENCODER_FILES)
    folder = resolve_folder(root, "world_model", "autoencoder", "vae")
    cure = "give a folder that finetune_vae.py or diffusers wrote"
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: not an autoencoder folder (no config.json); {cure}")
    class_name = read_json(folder / "config.json").get("_class_name")
    if class_name not in AUTOENCODER_CLASSES:
        expected = " or ".join(AUTOENCODER_CLASSES)
        raise BadInput(f"{folder}: config.json says {class_name}, not {expected}; {cure}")
    told = _told_geometry(root, folder)
    if told is None:
        geometry = Geometry.of(preset) if preset is not None else geometry
        if geometry is None:
            raise BadInput(f"{folder}: has no {AUTOENCODER_INFO} that tells its frame size; say --preset")
        return folder, geometry
    geometry = told
    if preset is not None and not Geometry.of(preset).is_like(geometry):
        raise BadInput(f"{folder}: made for preset {geometry.preset}, not {preset.name}; change --preset or the folder")
    return folder, geometry


def _told_geometry(root: Path, folder: Path) -> Geometry | None:
    """What an autoencoder's folder, or the published world model it is part of, says of its pictures."""
    path = folder / AUTOENCODER_INFO
    if not path.is_file():
        return Geometry.of(preset_of(root)) if has_published_actions(root) else None
    try:
        return Geometry(**read_json(path))
    except TypeError:
        raise BadInput(f"{path}: not what finetune_vae.py writes; copy the folder again") from None


def find_unet(folder_or_id: str | Path, preset: Preset) -> Path:
    """The UNet to start a world model from: the `unet/` of a diffusers pipeline (folder or Hub id), or such a folder.

    Raises BadInput when it is none, or when it cannot draw the preset's latents from a noised latent and tokens alone.
    """
    folder = resolve_folder(folder_or_id, "unet", files=UNET_FILES)
    cure = "give a folder or Hub id of Stable Diffusion's layout to --pretrained_model_name_or_path"
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: not a UNet folder (no config.json); {cure}")
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DConditionModel":
        raise BadInput(f"{folder}: config.json says {config.get('_class_name')}, not UNet2DConditionModel; {cure}")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise BadInput(f"{folder}: has no {WEIGHTS[0]}, and pickled weights are not read; {cure}")
    channels = (config.get("in_channels"), config.get("out_channels"))
    if channels != (preset.latent_channels, preset.latent_channels):
        raise BadInput(
            f"{folder}: takes {channels[0]} channels and gives {channels[1]}, "
            f"the latents of preset {preset.name} have {preset.latent_channels}; {cure}"
        )
    for name in ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type"):
        if config.get(name) is not None:
            raise BadInput(f"{folder}: expects more than text ({name} {config[name]}); {cure}")
    return folder


def find_motion(folder_or_id: str | Path, preset: Preset) -> Path:
    """The motion model that train_motion.py wrote: the folder, its `motion/`, or a Hub id; BadInput when there is none
    or it is made for other latents, another stride or a longer context than the preset's."""
    places = tuple(
        f"{part}{inner}" for part in ("", "motion/", "world_model/motion/") for inner in ("", "scene_memory/")
    )
    files = tuple(f"{place}{name}" for place in places for name in MOTION_FILES)
    folder = resolve_folder(folder_or_id, "world_model", "motion", files=files)
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("_class_name") != "MotionModel":
        raise BadInput(f"{folder}: not a motion model's folder; give one that train_motion.py wrote")
    shape = tuple(config.get(f"latent_{name}") for name in ("channels", "height", "width"))
    expected = (preset.latent_channels, preset.latent_height, preset.latent_width)
    if shape != expected:
        raise BadInput(f"{folder}: made for latents {shape}, preset {preset.name} has {expected}; give another")
    if config.get("frame_stride") not in (None, preset.frame_stride):
        raise BadInput(
            f"{folder}: moves frames by {config['frame_stride']} tics, preset {preset.name} by {preset.frame_stride}; "
            "train it with that --frame_stride, or give another"
        )
    if config["seen_frames"] > preset.context_length:
        raise BadInput(
            f"{folder}: looks at {config['seen_frames']} frames, preset {preset.name} has a context of "
            f"{preset.context_length}; take a longer one"
        )
    return folder


def find_scene_memory(folder_or_id: str | Path, frame_stride: int) -> Path:
    """The memory of a map that train_scene_memory.py wrote: the folder, its `scene_memory/`, or a Hub id; BadInput when
    there is none or its frames are other tics apart."""
    files = tuple(f"{part}{name}" for part in ("", "scene_memory/") for name in MOTION_FILES)
    folder = resolve_folder(folder_or_id, "scene_memory", files=files)
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("_class_name") != "SceneMemory":
        raise BadInput(f"{folder}: not a memory's folder; give one that train_scene_memory.py wrote")
    if config.get("frame_stride") != frame_stride:
        raise BadInput(f"{folder}: of frames {config.get('frame_stride')} tics apart, not {frame_stride}; give another")
    return folder


def remembers(folder: Path | None) -> bool:
    """Whether the motion model or world model in a folder has a memory of its map."""
    return folder is not None and any((folder / part / "scene_memory").is_dir() for part in ("", "motion"))


def find_world_model(folder_or_id: str | Path) -> Path:
    """A world-model folder: the folder itself, its `world_model/`, or a Hub repository; ours, or a published one.

    Raises BadInput when it is none. `read_world_model_config` tells what it says of itself."""
    folder = resolve_folder(folder_or_id, "world_model")
    if is_published(folder):
        published_config(folder), scheduler_folder(folder)
        return folder
    missing = [name for name in WORLD_MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise BadInput(f"{folder}: not a world-model folder (no {missing[0]}); give one of train_text_to_image.py")
    config = read_json(folder / "config.json")
    if not isinstance(config.get("geometry"), dict) or "action_table" not in config:
        raise BadInput(f"{folder}/config.json: not a world model's config; give a folder of train_text_to_image.py")
    if config.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
        raise BadInput(f"{folder}: of a newer format than this program reads ({FORMAT_VERSION}); update the program")
    return folder


def read_world_model_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder that `find_world_model` gave; of a published one what legacy_models.py knows."""
    if not is_published(folder):
        return read_json(folder / "config.json")
    return {"geometry": Geometry.of(preset_of(folder)).facts(), **published_config(folder)}


def find_own_world_model(folder_or_id: str | Path) -> Path | None:
    """The world model of ours that a training may go on from: a folder, a run folder or a Hub id; None for others.

    Raises BadInput when there is no such folder, or when it is ours and broken."""
    folder = resolve_folder(folder_or_id, "world_model", files=START_FILES)
    path = folder / "config.json"
    is_ours = path.is_file() and "_class_name" not in read_json(path) and not is_published(folder)
    return find_world_model(folder) if is_ours else None


def preset_of_world_model(folder: Path) -> Preset:
    """The preset that a world model of ours was trained with, as its folder tells it; what it does not tell, rates and
    batch sizes, is the named preset's. Raises BadInput where a .json file was named, which alone knows them."""
    config, unet = read_json(folder / "config.json"), read_json(folder / "unet" / "config.json")
    name = config["geometry"]["preset"]
    if name not in PRESETS:
        raise BadInput(f"{folder}: was trained with the preset file {name}.json; name that file with --preset")
    return dataclasses.replace(
        PRESETS[name],
        **_trained_with(folder),
        num_inference_steps=config["num_inference_steps"],
        guidance_scale=config["guidance_scale"],
        unet={key: unet[key] for key in PRESETS[name].unet},
    )


def check_preset_fits(preset: Preset, folder: Path) -> None:
    """Raises BadInput naming the first field in which a preset is not what a world model of ours was trained with."""
    for name, value in _trained_with(folder).items():
        if getattr(preset, name) != value:
            raise BadInput(
                f"{folder}: was trained with {name} {value}, not {getattr(preset, name)}; leave out --preset and "
                "--frame_stride to take all from the model, or start from another"
            )


def _trained_with(folder: Path) -> dict[str, Any]:
    """The fields of Preset that a world model cannot change, by name."""
    config, unet = read_json(folder / "config.json"), read_json(folder / "unet" / "config.json")
    try:
        geometry = dataclasses.asdict(Geometry(**config["geometry"]))
        del geometry["preset"]
        channels, height, width = config["latent_shape"]
        plain = ("context_length", "frame_stride", "num_noise_buckets", "max_noise_level")
        return {
            **{name: config[name] for name in plain},
            **geometry,
            "latent_channels": channels,
            "latent_height": height,
            "latent_width": width,
            "predicts_change": config.get("predicts_change", False),
            "change_std": config.get("change_std", 1.0),
            "conditions_on_actions": unet.get("time_cond_proj_dim") is not None,
            "sampler_steps": config.get("sampler_steps"),
        }
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{folder}/config.json: not a world model's config; copy the folder again") from None


def autoencoder_of(folder: Path) -> Path | str:
    """The autoencoder that belongs to such a folder; a Hub id where a published one has none of its own."""
    return vae_of(folder) if is_published(folder) else folder / "vae"
