"""A pretrained text-to-image UNet becomes the start of a world model.

Knows Stable Diffusion's network, not where its folder came from (model_folders.py does). Used by
train_text_to_image.py.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from command_line import BadInput
from model import WorldModel, first_line, read_diffusers_folder
from presets import Preset


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
