"""What a training starts from: random weights, a text-to-image UNet made a world model, or a finished world model.

Knows Stable Diffusion's network, not where its folder came from (model_folders.py does). Used by
train_text_to_image.py.
"""

import dataclasses
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from command_line import BadInput
from data_loader import WindowDataset
from episodes import numbered_actions
from model import (
    Autoencoder,
    WorldModel,
    WorldModelConfig,
    build_world_model,
    first_line,
    load_world_model,
    read_config,
    read_diffusers_folder,
)
from presets import Preset
from validation import check_dataset


def new_world_model(
    preset: Preset, dataset: WindowDataset, autoencoder: Autoencoder, unet_folder: Path | None
) -> tuple[WorldModel, WorldModelConfig]:
    """(world model with random weights, or with those of a text-to-image UNet; its config).

    Raises BadInput when the weights do not load."""
    if unet_folder is None:
        world_model = build_world_model(preset, dataset.num_actions)
    else:
        world_model = world_model_from_unet(unet_folder, preset, dataset.num_actions)
    return world_model, new_config(preset, dataset, autoencoder)


def finished_world_model(
    folder: Path, preset: Preset, dataset: WindowDataset, dataset_name: str, vae_folder_or_id: str | Path
) -> tuple[WorldModel, WorldModelConfig]:
    """(world model of ours with all its weights to train on, its config, but for how the preset plays it).

    folder: as model_folders.find_own_world_model gives it, preset: as check_preset_fits lets it pass. Raises BadInput
    when weights do not load, or when the model is of another game or encoder than the data."""
    config = read_config(folder)
    check_dataset(dataset, config, dataset_name, str(preset.pretrained))
    world_model = load_world_model(folder, vae_folder_or_id=vae_folder_or_id).world_model
    play = {name: getattr(preset, name) for name in ("num_inference_steps", "guidance_scale")}
    world_model.requires_grad_(True).train()
    if world_model.mover is not None:
        world_model.mover.requires_grad_(False).eval()
    return world_model, dataclasses.replace(config, **play)


def new_config(preset: Preset, dataset: WindowDataset, autoencoder: Autoencoder) -> WorldModelConfig:
    """What a player needs to know of a new model, from what the data and the preset say."""
    table = dataset.action_table or numbered_actions(dataset.num_actions)
    return WorldModelConfig(
        geometry=autoencoder.geometry,
        context_length=preset.context_length,
        frame_stride=preset.frame_stride,
        tics_per_second=dataset.tics_per_second,
        action_table=tuple(table),
        latent_shape=(preset.latent_channels, preset.latent_height, preset.latent_width),
        num_noise_buckets=preset.num_noise_buckets,
        max_noise_level=preset.max_noise_level,
        num_inference_steps=preset.num_inference_steps,
        guidance_scale=preset.guidance_scale,
        encoder_sha256=autoencoder.encoder_sha256,
        predicts_change=preset.predicts_change,
        change_std=preset.change_std,
        sampler_steps=preset.sampler_steps,
    )


def world_model_from_unet(folder: Path, preset: Preset, num_actions: int) -> WorldModel:
    """The UNet in `folder`, as model_folders.find_unet gives it, with a context to see and actions in the text's place.

    All its weights are kept and trained. At first it draws what it always drew: the new inputs, context and noise
    bucket, weigh nothing. Raises BadInput when the weights do not load.
    """
    try:
        unet = read_diffusers_folder(UNet2DConditionModel, folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{folder}: weights do not load ({first_line(error)}); copy the folder again") from None
    widen(unet, preset.latent_channels * preset.context_length, preset.num_noise_buckets)
    unet.register_to_config(sample_size=(preset.latent_height, preset.latent_width))
    return WorldModel(unet, num_actions, preset.context_length)


@torch.no_grad()
def widen(unet: UNet2DConditionModel, context_channels: int, num_noise_buckets: int) -> None:
    """Lets the UNet see `context_channels` before its own input channels, and a noise bucket; both start at zero."""
    before = unet.conv_in
    channels = context_channels + before.in_channels
    after = nn.Conv2d(channels, before.out_channels, before.kernel_size, padding=before.padding)
    after.weight.zero_()
    after.weight[:, context_channels:] = before.weight  # the noised latent comes last
    after.bias.copy_(before.bias)
    unet.conv_in = after
    unet.class_embedding = nn.Embedding(num_noise_buckets, unet.time_embedding.linear_2.out_features)
    unet.class_embedding.weight.zero_()
    unet.register_to_config(in_channels=channels, num_class_embeds=num_noise_buckets)
