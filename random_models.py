"""World models of a preset's shapes with random weights: figures of speed need no training.

Knows neither data nor clocks. Used by benchmark.py and benchmarks/play_page.py.
"""

import torch
from diffusers import AutoencoderKL

import real_game
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
from presets import Preset

BUTTONS = ("ATTACK", "MOVE_FORWARD", "MOVE_LEFT", "MOVE_RIGHT", "MOVE_BACKWARD", "TURN_RIGHT", "TURN_LEFT")
STABLE_DIFFUSION_VAE = {  # the shapes of Stable Diffusion 1.4's autoencoder
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}


def random_world_model(preset: Preset, seed: int = 0) -> LoadedWorldModel:
    """A fresh world model in eval mode, with Doom's seven buttons and one start of noise."""
    torch.manual_seed(seed)
    table = tuple(real_game.action_rows(BUTTONS))
    if preset.autoencoder:
        autoencoder = build_autoencoder(preset)
    else:
        autoencoder = Autoencoder(AutoencoderKL(**STABLE_DIFFUSION_VAE), Geometry.of(preset))
    latent_shape = (preset.latent_channels, preset.latent_height, preset.latent_width)
    config = WorldModelConfig(
        geometry=autoencoder.geometry,
        context_length=preset.context_length,
        frame_stride=preset.frame_stride,
        tics_per_second=35.0,
        action_table=table,
        latent_shape=latent_shape,
        num_noise_buckets=preset.num_noise_buckets,
        max_noise_level=preset.max_noise_level,
        num_inference_steps=preset.num_inference_steps,
        guidance_scale=preset.guidance_scale,
        encoder_sha256=autoencoder.encoder_sha256,
    )
    length = preset.context_length
    starts = StartContexts(torch.randn(1, length, *latent_shape), torch.zeros(1, length - 1, dtype=torch.int64))
    world_model = build_world_model(preset, len(table)).requires_grad_(False)
    return LoadedWorldModel(
        world_model.eval(), autoencoder.requires_grad_(False).eval(), make_scheduler(), config, starts
    )
