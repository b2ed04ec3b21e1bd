"""Tiny world models in the layouts that others published, frames 320x240 as theirs. Used by the tests only."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

WIDTH = 24  # of a token


def published_vae(folder: Path, seed: int = 0) -> Path:
    """A plain `AutoencoderKL` folder that shrinks by 8, as Stable Diffusion's does."""
    torch.manual_seed(seed)
    AutoencoderKL(
        latent_channels=4,
        block_out_channels=[4, 4, 4, 8],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder)
    return folder


def published_world_model(
    folder: Path,
    num_actions: int,
    context_length: int,
    *,
    num_class_embeds: int | None = 10,
    scheduler: str = "noise_scheduler",
    has_vae: bool = True,
) -> Path:
    """A folder without config.json; random weights, the noise schedule of Stable Diffusion 1.4 for v-prediction."""
    torch.manual_seed(num_actions)
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4 * (context_length + 1),
        out_channels=4,
        block_out_channels=[8, 16],
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        num_class_embeds=num_class_embeds,
    )
    unet.save_pretrained(folder / "unet")
    embedding = nn.Embedding(num_actions, WIDTH)
    save_file(embedding.state_dict(), folder / "action_embedding_model.safetensors")
    info = {"num_embeddings": num_actions, "embedding_dim": WIDTH}
    (folder / "embedding_info.json").write_text(json.dumps(info))
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    ).save_pretrained(folder / scheduler)
    if has_vae:
        published_vae(folder / "vae")
    return folder
