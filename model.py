"""The two networks and their folders: autoencoder (frames <-> latents) and world model (latents -> next latent).

Does not know losses, samplers, windows or games. Used by every stage from 2 on. Nouns and conversions:

    frames uint8 (T, H, W, 3) -> pixels float [-1, 1] (T, 3, H', W') -> moments (T, M, h, w) -> latents (T, C, h, w)

with M = 2C (mean | log variance) for `AutoencoderKL` and M = C for `AutoencoderTiny`, which has no posterior.
Nothing here is ever unpickled: weights are safetensors, facts are JSON.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifacts import read_json, replacing_folder, sha256_of_tensors, write_json
from command_line import BadInput
from episodes import no_op_id, number_of_actions
from legacy_models import PRESET_OF, scheduler_folder, unet_folder
from model_folders import (
    AUTOENCODER_INFO,
    FORMAT_VERSION,
    Geometry,
    autoencoder_of,
    find_autoencoder,
    find_world_model,
    read_world_model_config,
)
from motion import MOTION_VERSION, MotionModel, Moved, Mover
from presets import Preset, possible_steps
from scene_memory import SCENE_MEMORY_VERSION, SceneMemory

PAD_PIXEL = -1.0  # black
AUTOENCODER_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


# ---------------------------------------------------------------------------------------------------- autoencoder


class Autoencoder(nn.Module):
    """Frames to latents and back, for `AutoencoderKL` and for `AutoencoderTiny` behind a pixel-unshuffle.

    The unshuffle factor follows from the network's input channels: 3 * factor^2.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, geometry: Geometry) -> None:
        super().__init__()
        self.vae = vae
        self.geometry = geometry
        self.unshuffle = math.isqrt(vae.config.in_channels // 3)
        self.posterior = "gaussian" if isinstance(vae, AutoencoderKL) else "none"

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def scaling_factor(self) -> float:
        """Latents = samples x this. For an `AutoencoderTiny` of ours it is 1 / std of the training latents."""
        return float(self.vae.config.scaling_factor)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(W, H) of the picture without padding."""
        return self.geometry.frame_width, self.geometry.frame_height

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def preset_name(self) -> str:
        return self.geometry.preset

    def encoder_tensors(self) -> dict[str, Tensor]:
        """The weights that decide what latents mean: everything that decoder tuning must not touch."""
        return {k: v for k, v in self.vae.state_dict().items() if k.startswith(("encoder.", "quant_conv."))}

    @property
    def encoder_sha256(self) -> str:
        """Fingerprint of encoder, `quant_conv`, scaling factor and geometry: same fingerprint, same latents."""
        facts = {"scaling_factor": self.scaling_factor, **self.geometry.facts()}
        del facts["preset"]
        return sha256_of_tensors(self.encoder_tensors(), facts)

    def resize_frames(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 (T, H0, W0, 3) of any size -> uint8 (T, H, W, 3) at the model's frame size, antialiased."""
        frames = torch.as_tensor(frames).to(self.device)
        width, height = self.frame_size
        if frames.shape[1:] == (height, width, 3):
            return frames
        pictures = frames.permute(0, 3, 1, 2).float()  # (T, 3, H0, W0)
        pictures = nn.functional.interpolate(pictures, (height, width), mode="bilinear", antialias=True)
        return pictures.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def frames_to_pixels(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 (T, H0, W0, 3) -> (T, 3, H', W') in [-1, 1] on this device, resized, padded with black."""
        pixels = self.resize_frames(frames).permute(0, 3, 1, 2).to(self.vae.dtype) / 127.5 - 1  # (T, 3, H, W)
        right = self.geometry.padded_width - self.geometry.frame_width
        above = self.geometry.pad_above
        below = self.geometry.padded_height - self.geometry.frame_height - above
        return nn.functional.pad(pixels, (0, right, above, below), value=PAD_PIXEL)

    def pixels_to_frames(self, pixels: Tensor) -> Tensor:
        """(T, 3, H', W') in [-1, 1] (clamped) -> uint8 (T, H, W, 3), padding cut off."""
        (width, height), above = self.frame_size, self.geometry.pad_above
        pixels = pixels[:, :, above : above + height, :width].float().clamp(-1, 1)
        return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(T, 3, H', W') in [-1, 1] -> unscaled moments (T, M, h, w)."""
        if self.unshuffle > 1:
            pixels = nn.functional.pixel_unshuffle(pixels, self.unshuffle)  # (T, 3*f*f, H'/f, W'/f)
        encoded = self.vae.encode(pixels)
        return encoded.latent_dist.parameters if self.posterior == "gaussian" else encoded.latents

    def sample_latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Moments (..., M, h, w) -> scaled latents (..., C, h, w); `noise` None takes the posterior's mode."""
        if self.posterior == "gaussian":
            mean, log_variance = moments.chunk(2, dim=-3)
            if noise is not None:
                mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
            moments = mean
        return moments * self.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents (T, C, h, w) -> pixels (T, 3, H', W'), about [-1, 1]."""
        pixels = self.vae.decode(latents.to(self.vae.dtype) / self.scaling_factor).sample
        return nn.functional.pixel_shuffle(pixels, self.unshuffle) if self.unshuffle > 1 else pixels

    def forward(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """As `encode_and_decode`; a trainer with --mixed_precision wraps this one to compute in it."""
        return self.encode_and_decode(pixels, noise)

    def encode_and_decode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pixels (T, 3, H', W') -> their reconstruction; `noise` (T, C, h, w) samples a posterior, None its mode."""
        return self.decode_latents(self.sample_latents(self.encode_pixels(pixels), noise))

    def reconstruct(self, frames: np.ndarray | Tensor, batch_size: int = 32) -> np.ndarray:
        """uint8 frames (T, H0, W0, 3) -> uint8 (T, H, W, 3), encoded and decoded: the best that latents can show."""
        with torch.no_grad():
            parts = [
                self.encode_and_decode(self.frames_to_pixels(frames[first : first + batch_size]))
                for first in range(0, len(frames), batch_size)
            ]
        return torch.cat([self.pixels_to_frames(part) for part in parts]).cpu().numpy()

    def black_moments(self) -> Tensor:
        """Moments (1, M, h, w) of a black frame: what stands left of an episode's first frame."""
        shape = (1, 3, self.geometry.padded_height, self.geometry.padded_width)
        with torch.no_grad():
            return self.encode_pixels(torch.full(shape, PAD_PIXEL, device=self.device, dtype=self.vae.dtype))

    def save(self, folder: Path) -> None:
        """Writes the diffusers folder plus `autoencoder_info.json` into an existing folder."""
        with smallest_exact_dtype(self.vae):
            self.vae.save_pretrained(folder)
        write_json(folder / AUTOENCODER_INFO, self.geometry.facts())


def build_autoencoder(preset: Preset) -> Autoencoder:
    """A fresh, randomly initialised `AutoencoderTiny` of a preset. Raises BadInput when the preset describes none."""
    with _named_preset(preset, "autoencoder"):
        return Autoencoder(AutoencoderTiny(**preset.autoencoder), Geometry.of(preset))


def load_autoencoder(
    folder_or_id: str | Path,
    *,
    preset: Preset | None = None,
    geometry: Geometry | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Autoencoder:
    """The autoencoder in a folder (its root, `autoencoder/` or `vae/`) or Hub repository, in eval mode.

    `preset` gives the frame geometry where the folder has no `autoencoder_info.json`, and must agree where it has one.
    Raises BadInput when the folder is not an autoencoder, or is of another preset.
    """
    folder, geometry = find_autoencoder(folder_or_id, preset, geometry=geometry)
    vae_class = AUTOENCODER_CLASSES[read_json(folder / "config.json")["_class_name"]]
    try:
        vae = read_diffusers_folder(vae_class, folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{folder}: weights do not load ({first_line(error)}); copy the folder again") from None
    vae.requires_grad_(False)
    autoencoder = Autoencoder(vae, geometry).to(device, dtype).eval()
    if preset is not None:
        shape = tuple(autoencoder.sample_latents(autoencoder.black_moments()).shape[1:])
        expected = (preset.latent_channels, preset.latent_height, preset.latent_width)
        if shape != expected:
            raise BadInput(f"{folder}: its latents are {shape}, preset {preset.name} has {expected}; give another")
    return autoencoder


# ---------------------------------------------------------------------------------------------------- world model


@dataclass(frozen=True)
class WorldModelConfig:
    """Everything a player or a later stage must know of a world model; `config.json` of its folder."""

    geometry: Geometry
    context_length: int
    frame_stride: int  # tics between two frames
    tics_per_second: float
    action_table: tuple[dict, ...]  # rows of id, name, buttons, keys, as the recorder wrote them
    latent_shape: tuple[int, int, int]  # (C, h, w)
    num_noise_buckets: int
    max_noise_level: float
    num_inference_steps: int
    guidance_scale: float
    encoder_sha256: str | None  # None: a published model's, until its autoencoder is known
    trained_steps: int = 0
    predicts_change: bool = False  # see WorldModel
    change_std: float = 1.0  # see WorldModel
    sampler_steps: int | None = None  # trained at the timesteps of a sampler of so many steps alone; None: at all
    has_motion: bool = False  # see motion.py; `motion/` is in the folder
    format_version: int = FORMAT_VERSION

    @property
    def frames_per_second(self) -> float:
        return self.tics_per_second / self.frame_stride

    @property
    def num_actions(self) -> int:
        return number_of_actions(self.action_table)

    @property
    def no_op(self) -> int:
        return no_op_id(self.action_table)

    @property
    def possible_steps(self) -> list[int]:
        """The numbers of sampling steps that the model was trained for, ascending."""
        return possible_steps(self.sampler_steps)

    @classmethod
    def from_json(cls, values: dict) -> "WorldModelConfig":
        values = {**values, "geometry": Geometry(**values["geometry"])}
        return cls(
            **{**values, "action_table": tuple(values["action_table"]), "latent_shape": tuple(values["latent_shape"])}
        )


class WorldModel(nn.Module):
    """UNet and action embeddings as one module, so that data-parallel training keeps them in step.

    A UNet with `time_cond_proj_dim` sees the action tokens also beside the timestep, that is in every block, not only
    where it has cross-attention.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        num_actions: int,
        context_length: int,
        *,
        predicts_change: bool = False,
        change_std: float = 1.0,
    ) -> None:
        """predicts_change: the network's output counts from what is to be expected if the next frame is the one before,
        give or take `change_std` (standard deviation, in latents): an output of zero repeats that frame, and an error
        of the network costs the less the less frames change; a motion model tells it cell by cell. It is the
        preconditioning of Karras et al. 2022 (sec. 5) about another mean: for x0 ~ N(last, s^2) and
        D = s^2 alpha^2 + sigma^2,

            v = alpha sigma (1 - s^2) / D x_t - sigma / D last + s / sqrt(D) output
        """
        super().__init__()
        self.unet = unet
        self.predicts_change, self.change_std = predicts_change, change_std
        self.register_buffer("alphas_cumprod", make_scheduler().alphas_cumprod, persistent=False)  # (1000,)
        self.context_length = context_length
        self.action_embedding_model = nn.Embedding(num_actions, unet.config.cross_attention_dim)
        # Paper: one token per action. Without a position, cross-attention could not tell their order.
        self.action_positions = nn.Parameter(torch.randn(context_length, unet.config.cross_attention_dim) * 0.02)
        nn.init.normal_(self.action_embedding_model.weight, std=0.5)
        self.mover: Mover | None = None  # frozen; see `move_with`

    def move_with(self, motion: MotionModel, autoencoder: Autoencoder, memory: SceneMemory | None = None) -> None:
        """From now on this is a model of contexts whose last frame was moved ahead: all that draw call `moved`, and
        `settle` what they drew.  memory: of the map, for a motion model that has one."""
        self.mover = Mover(motion, autoencoder, memory).requires_grad_(False).eval()

    @property
    def memory(self) -> SceneMemory | None:
        """The map as it is remembered, where there is one: games then have poses."""
        return None if self.mover is None else self.mover.memory

    def ahead(self, poses: Tensor | None, last: Tensor | None = None) -> tuple[Tensor, ...]:
        """What `moved` takes from a memory, where there is one.  poses: (B, >= 2, 4), the last ones those of the last
        context frame and of the one to be drawn.  last: what is remembered of the first of these, where at hand."""
        return () if self.memory is None else self.memory.look_ahead(poses[:, -2], poses[:, -1], last)

    def moved(self, context: Tensor, actions: Tensor, *ahead: Tensor, pixels: Tensor | None = None) -> Moved:
        """Clean context (B, L, C, h, w) as `forward` is to see it: where there is a motion model, its last frame moved
        ahead, and how far off that may be.  actions: (B, L) int64.  ahead: as the method gives it.  pixels: (B, 3, H',
        W'), the last frame's picture, where it is at hand. Once a frame, before any noise."""
        if self.mover is None:
            return Moved(context, None, None)
        if pixels is None:
            with torch.no_grad():
                pixels = self.mover.autoencoder.decode_latents(context[:, -1])
        return self.mover(context, actions, pixels, *ahead)

    def forward(
        self,
        noised: Tensor,
        timesteps: Tensor,
        context: Tensor,
        actions: Tensor,
        noise_buckets: Tensor,
        change_std: Tensor | None = None,
    ) -> Tensor:
        """The predicted v of the next latent.

        noised: (B, C, h, w).  timesteps: (B,) int64.  context: (B, L, C, h, w), oldest first, as `moved` gives it.
        actions: (B, L) int64.
        noise_buckets: (B,) int64, how noisy the context is.  change_std: (B, 1, h, w), as `moved` gives it.
        Returns (B, C, h, w). GameNGen sec. 3.2.
        Raises ValueError when L differs from the model's context length.
        """
        if context.shape[1] != self.context_length or actions.shape[1] != self.context_length:
            raise ValueError(
                f"expected {self.context_length} context frames and actions, "
                f"got {context.shape[1]} and {actions.shape[1]}"
            )
        tokens = self.action_embedding_model(actions) + self.action_positions  # (B, L, D)
        stacked = torch.cat([context.flatten(1, 2), noised], dim=1)  # (B, L*C + C, h, w): context first, noised last
        beside_time = tokens.flatten(1) if self.unet.config.time_cond_proj_dim else None  # (B, L*D)
        v = self.unet(
            stacked,
            timesteps,
            encoder_hidden_states=tokens,
            class_labels=noise_buckets,
            timestep_cond=beside_time,
        ).sample
        if not self.predicts_change:
            return v
        alpha_2 = self.alphas_cumprod[timesteps][:, None, None, None]  # (B, 1, 1, 1)
        sigma_2 = 1 - alpha_2
        # The null context tells nothing to draw about: x0 is then as wide as any latent.
        is_null = context.abs().amax(dim=(1, 2, 3, 4))[:, None, None, None] == 0  # (B, 1, 1, 1)
        std = torch.where(is_null, 1.0, self.change_std if change_std is None else change_std)
        variance = std**2 * alpha_2 + sigma_2  # D
        of_noised = (alpha_2 * sigma_2).sqrt() * (1 - std**2) / variance
        return of_noised * noised - sigma_2.sqrt() / variance * context[:, -1] + std / variance**0.5 * v


def build_world_model(preset: Preset, num_actions: int) -> WorldModel:
    """A fresh world model of a preset; the class embedding starts at zero, as a new input must.

    Raises BadInput when the preset describes none.
    """
    with _named_preset(preset, "unet"):
        unet = UNet2DConditionModel(
            sample_size=(preset.latent_height, preset.latent_width),
            in_channels=preset.latent_channels * (preset.context_length + 1),
            out_channels=preset.latent_channels,
            num_class_embeds=preset.num_noise_buckets,
            time_cond_proj_dim=(
                preset.context_length * preset.unet["cross_attention_dim"] if preset.conditions_on_actions else None
            ),
            **preset.unet,
        )
    nn.init.zeros_(unet.class_embedding.weight)
    if preset.predicts_change:
        nn.init.zeros_(unet.conv_out.weight)
    change = {"predicts_change": preset.predicts_change, "change_std": preset.change_std}
    return WorldModel(unet, num_actions, preset.context_length, **change)


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule for v-prediction, zero terminal SNR, trailing timesteps (Lin et al. 2023)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        clip_sample=False,
    )


@dataclass
class StartContexts:
    """Beginnings to play from without a data set. latents: (K, L, C, h, w) scaled.  actions: (K, L - 1) int64.

    poses: float32 (K, L, 4), see scenes.py, for a model with a memory of the map."""

    latents: Tensor
    actions: Tensor
    poses: Tensor | None = None


@dataclass
class LoadedWorldModel:
    """What a world-model folder holds, in memory."""

    world_model: WorldModel
    autoencoder: Autoencoder
    scheduler: DDIMScheduler
    config: WorldModelConfig
    start_contexts: StartContexts | None

    def save(self, folder: str | Path) -> None:
        """Writes the whole folder atomically: it is complete under its name, or the old one is still there."""
        with replacing_folder(folder) as temporary:
            with smallest_exact_dtype(self.world_model.unet):
                self.world_model.unet.save_pretrained(temporary / "unet")
            if self.world_model.mover is not None:
                with smallest_exact_dtype(self.world_model.mover.motion):
                    self.world_model.mover.motion.save_pretrained(temporary / "motion")
            if self.world_model.memory is not None:
                with smallest_exact_dtype(self.world_model.memory):
                    self.world_model.memory.save_pretrained(temporary / "motion/scene_memory")
            (temporary / "vae").mkdir()
            self.autoencoder.save(temporary / "vae")
            self.scheduler.save_pretrained(temporary / "noise_scheduler")
            embedding = self.world_model.action_embedding_model
            save_file({"weight": embedding.weight.detach().cpu()}, temporary / "action_embedding_model.safetensors")
            positions = self.world_model.action_positions.detach().cpu()
            save_file({"positions": positions}, temporary / "action_positions.safetensors")
            info = {"num_embeddings": embedding.num_embeddings, "embedding_dim": embedding.embedding_dim}
            write_json(temporary / "embedding_info.json", info)
            write_json(temporary / "config.json", dataclasses.asdict(self.config))
            if self.start_contexts is not None:
                starts = {
                    "latents": self.start_contexts.latents.half().cpu(),
                    "actions": self.start_contexts.actions.cpu(),
                }
                if self.start_contexts.poses is not None:
                    starts["poses"] = self.start_contexts.poses.cpu()
                save_file(
                    {name: tensor.contiguous() for name, tensor in starts.items()},
                    temporary / "start_contexts.safetensors",
                )


def load_world_model(
    folder_or_id: str | Path, *, vae_folder_or_id: str | Path | None = None, device: str | torch.device = "cpu"
) -> LoadedWorldModel:
    """Reads a world-model folder (or a run folder that holds one, or a Hub repository), in eval mode, float32.

    `vae_folder_or_id` puts another decoder in; BadInput unless its encoder is the one the model was trained on.
    Published models are read by the rules of legacy_models.py: no positions, their own scheduler, any fitting encoder.
    Raises BadInput when the folder is not a world model or its parts do not fit together.
    """
    folder = find_world_model(folder_or_id)
    config = read_config(folder)
    source = vae_folder_or_id or autoencoder_of(folder)
    autoencoder = load_autoencoder(source, geometry=config.geometry, device=device)
    is_ours = config.encoder_sha256 is not None
    if not is_ours:
        config = _completed(config, autoencoder, source)
    elif autoencoder.encoder_sha256 != config.encoder_sha256:
        raise BadInput(
            f"{source}: its encoder ({autoencoder.encoder_sha256[:12]}) is not the one "
            f"{folder} was trained on ({config.encoder_sha256[:12]}); give a decoder tuned from the same autoencoder"
        )
    try:
        unet = read_diffusers_folder(UNet2DConditionModel, unet_folder(folder))
        change = {"predicts_change": config.predicts_change, "change_std": config.change_std}
        world_model = WorldModel(unet, config.num_actions, config.context_length, **change)
        embedding = load_file(folder / "action_embedding_model.safetensors")
        world_model.action_embedding_model.load_state_dict(embedding)
        world_model.action_positions.data.zero_()
        if is_ours:
            positions = load_file(folder / "action_positions.safetensors")["positions"]
            world_model.action_positions.data.copy_(positions)
        if config.has_motion:
            motion, memory = _read_motion(folder / "motion")
            world_model.move_with(motion, autoencoder, memory)
        with _quiet_diffusers():
            scheduler = DDIMScheduler.from_pretrained(scheduler_folder(folder))
        starts = folder / "start_contexts.safetensors"
        start_contexts = StartContexts(**load_file(starts)) if starts.is_file() else None
    except BadInput:
        raise
    except Exception as error:  # truncated safetensors, wrong shapes, missing files: all mean a broken folder
        raise BadInput(f"{folder}: weights do not load ({first_line(error)}); copy the folder again") from None
    world_model.requires_grad_(False)
    return LoadedWorldModel(world_model.to(device).eval(), autoencoder, scheduler, config, start_contexts)


def _read_motion(folder: Path) -> tuple[MotionModel, SceneMemory | None]:
    """The motion model in a folder, and the memory of the map that it goes with, if it has one.

    BadInput where one does not load, or is of another version of this program."""
    cure = "train_motion.py, and the world model with that"
    motion = _read_versioned(MotionModel, folder, MOTION_VERSION, "a motion model", cure)
    return motion, read_scene_memory(folder / "scene_memory") if motion.config.has_memory else None


def read_scene_memory(folder: Path) -> SceneMemory:
    """The memory of a map in a folder. BadInput where it does not load, or is of another version of this program."""
    cure = "train_scene_memory.py, and what was made with it"
    return _read_versioned(SceneMemory, folder, SCENE_MEMORY_VERSION, "a memory", cure)


def _read_versioned(model_class: type, folder: Path, version: int, what: str, cure: str) -> nn.Module:
    """A diffusers model of ours, whose config tells the version of its architecture. BadInput for any other.

    what: it is.  cure: what trains it again."""
    theirs = read_json(folder / "config.json").get("version")
    if theirs != version:
        told = f"{what} of version {theirs}, this program reads {version}"
        raise BadInput(f"{folder}: {told}; train it again with {cure}")
    try:
        return read_diffusers_folder(model_class, folder)
    except Exception as error:
        raise BadInput(f"{folder}: weights do not load ({first_line(error)}); copy the folder again") from None


def load_motion(folder: Path, num_actions: int, encoder_sha256: str | None) -> tuple[MotionModel, SceneMemory | None]:
    """The motion model in a folder that `find_motion` gave, and its memory of the map, if it has one.

    BadInput where it does not load, or is of another encoder or number of actions than these, the data's."""
    motion, memory = _read_motion(folder)
    if motion.config.num_actions != num_actions:
        raise BadInput(
            f"{folder}: knows {motion.config.num_actions} actions, the data {num_actions}; train it on the same data"
        )
    theirs = motion.config.encoder_sha256
    if None not in (theirs, encoder_sha256) and theirs != encoder_sha256:
        whose = f"made for encoder {theirs[:12]}, not {encoder_sha256[:12]}"
        raise BadInput(f"{folder}: {whose}; train it on the same latents")
    return motion, memory


def read_config(folder: Path) -> WorldModelConfig:
    """The config of a folder that `find_world_model` gave. Raises BadInput when it is none."""
    try:
        return WorldModelConfig.from_json(read_world_model_config(folder))
    except (KeyError, TypeError) as error:
        raise BadInput(
            f"{folder}/config.json: not a world model's config ({first_line(error)}); give another folder"
        ) from None


def _completed(config: WorldModelConfig, autoencoder: Autoencoder, source: str | Path) -> WorldModelConfig:
    """A published model's config with the facts of the autoencoder it is played with, which must fit.

    Of a model that nobody's table tells whose it is, the autoencoder's own frame size is believed. Raises BadInput."""
    shape = tuple(autoencoder.sample_latents(autoencoder.black_moments()).shape[1:])
    geometry = config.geometry if config.num_actions in PRESET_OF else autoencoder.geometry
    if not autoencoder.geometry.is_like(geometry) or shape[0] != config.latent_shape[0]:
        raise BadInput(
            f"{source}: gives latents {shape} of frames for preset {autoencoder.preset_name}, the model was trained on "
            f"{config.latent_shape} of preset {geometry.preset}; give its own autoencoder, or one tuned for that preset"
        )
    encoder_sha256 = autoencoder.encoder_sha256
    return dataclasses.replace(config, geometry=geometry, latent_shape=shape, encoder_sha256=encoder_sha256)


def read_diffusers_folder(model_class: type, folder: Path) -> nn.Module:
    """A diffusers model with every weight from its file; ValueError where diffusers would only log a missing one."""
    with _quiet_diffusers():
        model, info = model_class.from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    if info["missing_keys"]:
        raise ValueError(f"{len(info['missing_keys'])} weights are missing, e.g. {sorted(info['missing_keys'])[0]}")
    model.register_to_config(_name_or_path="")  # where it lay here is nothing to save in what others get
    return model


@contextmanager
def smallest_exact_dtype(network: nn.Module) -> Iterator[None]:
    """Inside, a float32 network whose weights were rounded to float16 (`--save_dtype`) is float16; any other as it is.

    So a file is half as large where that loses nothing, and an encoder keeps its fingerprint."""
    weights = list(network.parameters())
    is_exact = all(w.dtype == torch.float32 and w.equal(w.half().float()) for w in weights)
    if is_exact:
        network.half()
    try:
        yield
    finally:
        if is_exact:
            network.float()


@contextmanager
def _named_preset(preset: Preset, part: str) -> Iterator[None]:
    """What diffusers says of arguments it cannot build with, as the preset's fault."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise BadInput(
            f"preset {preset.name}: its {part} cannot be built ({first_line(error)}); correct the .json file"
        ) from None


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """What diffusers would log: our errors say it in one line."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)


def first_line(error: BaseException) -> str:
    text = (str(error) or type(error).__name__).strip()
    return text.splitlines()[0][:200]
