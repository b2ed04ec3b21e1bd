"""Networks small enough to compute by hand or in milliseconds: both kinds of autoencoder, a world model, an oracle.

Random weights, seeded. Used by the tests only.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from model import (
    Autoencoder,
    Geometry,
    LoadedWorldModel,
    StartContexts,
    WorldModelConfig,
    build_autoencoder,
    build_world_model,
    make_scheduler,
)
from presets import Preset, get_preset

NOOP, LEFT, RIGHT = range(3)
ACTION_TABLE = (
    {"id": NOOP, "name": "NOOP", "buttons": [], "keys": []},
    {"id": LEFT, "name": "LEFT", "buttons": ["a"], "keys": ["KeyA"]},
    {"id": RIGHT, "name": "RIGHT", "buttons": ["d"], "keys": ["KeyD"]},
)
KL_GEOMETRY = Geometry("kl", frame_width=16, frame_height=12, padded_width=16, padded_height=16)


def tiny_preset() -> Preset:
    """`smoke` with every frame a stride."""
    return dataclasses.replace(get_preset("smoke"), frame_stride=1)


def kl_autoencoder(seed: int = 0) -> Autoencoder:
    """An `AutoencoderKL` like Stable Diffusion's in every part but the widths: frames 16x12, latents 4x8x8."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    vae.requires_grad_(False)
    return Autoencoder(vae, KL_GEOMETRY).eval()


def tiny_autoencoder(seed: int = 0) -> Autoencoder:
    """The `smoke` preset's `AutoencoderTiny`: frames 80x60, latents 4x8x10."""
    torch.manual_seed(seed)
    autoencoder = build_autoencoder(get_preset("smoke"))
    autoencoder.vae.requires_grad_(False)
    return autoencoder.eval()


def saved(autoencoder: Autoencoder, folder: Path) -> Path:
    """Writes the folder of an autoencoder."""
    folder.mkdir(parents=True)
    autoencoder.save(folder)
    return folder


def stable_diffusion_folder(folder: Path) -> Path:
    """A folder in Stable Diffusion's layout with its kinds of layers, tiny: latents 4x8x8 of frames 16x12."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=[8, 16],
        layers_per_block=2,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    unet.save_pretrained(folder / "unet")
    kl_autoencoder().vae.save_pretrained(folder / "vae")
    return folder


def tiny_sd14(folder: Path, **changes: object) -> Path:
    """A preset file: `sd14` at the size of `stable_diffusion_folder(folder)`, with a context of 4."""
    sizes = {"frame_width": 16, "frame_height": 12, "padded_width": 16, "padded_height": 16}
    sizes |= {"latent_width": 8, "latent_height": 8, "context_length": 4, "train_batch_size": 2}
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({"base": "sd14", "pretrained": str(folder), **sizes, **changes}))
    return path


def tiny_world_model(seed: int = 0, **changes: object) -> LoadedWorldModel:
    """A random `smoke` world model, its class embedding not zero; `changes` go into its config.

    Of the three actions of ACTION_TABLE, or as many as a changed `action_table` has."""
    preset, autoencoder = tiny_preset(), tiny_autoencoder()
    torch.manual_seed(seed)
    world_model = build_world_model(preset, len(changes.get("action_table", ACTION_TABLE))).requires_grad_(False).eval()
    nn.init.normal_(world_model.unet.class_embedding.weight)
    latent_shape = (preset.latent_channels, preset.latent_height, preset.latent_width)
    config = WorldModelConfig(
        geometry=autoencoder.geometry,
        context_length=preset.context_length,
        frame_stride=preset.frame_stride,
        tics_per_second=10.0,
        action_table=ACTION_TABLE,
        latent_shape=latent_shape,
        num_noise_buckets=preset.num_noise_buckets,
        max_noise_level=preset.max_noise_level,
        num_inference_steps=preset.num_inference_steps,
        guidance_scale=preset.guidance_scale,
        encoder_sha256=autoencoder.encoder_sha256,
    )
    config = dataclasses.replace(config, **changes)
    starts = StartContexts(torch.randn(2, preset.context_length, *latent_shape), torch.tensor([[1, 2, 0], [0, 0, 1]]))
    return LoadedWorldModel(world_model, autoencoder, make_scheduler(), config, starts)


class Recorder:
    """Keeps what a world model was called with, one namespace per pass of the network."""

    def __init__(self, world_model: nn.Module) -> None:
        self.calls: list[SimpleNamespace] = []
        world_model.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        names = ("noised", "timesteps", "context", "actions", "noise_buckets")
        self.calls.append(SimpleNamespace(**{n: x.clone() for n, x in zip(names, inputs, strict=True)}))


class Formula(nn.Module):
    """Stands in for a world model: predicts v by a given function of (noised, timesteps, context)."""

    def __init__(self, predict: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.predict = predict

    def forward(
        self, noised: Tensor, timesteps: Tensor, context: Tensor, actions: Tensor, noise_buckets: Tensor
    ) -> Tensor:
        return self.predict(noised, timesteps, context)
