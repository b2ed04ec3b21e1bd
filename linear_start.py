"""Where an autoencoder from scratch begins: at the principal components of its blocks of pixels.

A linear autoencoder ends there (Baldi & Hornik 1989, "Neural Networks and Principal Component Analysis"), so a network
that begins there spends its training on what is not linear, and on what lies beyond a block. Its residual blocks begin
as the identity (Zhang et al. 2019, "Fixup Initialization"). Used by finetune_vae.py.
"""

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from model import Autoencoder

LATENT_STD = 0.4  # of the first component: a decoder bends what lies far beyond 1, by tanh(z / 3) * 3
MARGIN = 1.5  # of the least value seen, by which a component is lifted so that ReLUs let all of it pass


def suits(autoencoder: Autoencoder) -> bool:
    """Whether the network can hold them: an AutoencoderTiny of one level with ReLUs, each half as wide as its latents
    or wider."""
    config = autoencoder.vae.config
    if not isinstance(autoencoder.vae, AutoencoderTiny):
        return False
    if config.act_fn != "relu" or config.out_channels != config.in_channels:
        return False
    widths = [*config.encoder_block_out_channels, *config.decoder_block_out_channels]
    return len(widths) == 2 and min(widths) >= config.latent_channels <= config.in_channels


@torch.no_grad()
def start_from_components(autoencoder: Autoencoder, pixels: Tensor) -> None:
    """Sets the weights such that latents are the components of blocks of these pixels (T, 3, H', W') in [-1, 1].

    Component k of standard deviation s_k becomes a latent of LATENT_STD * sqrt(s_k / s_0): fine ones stay small, as a
    loss on latents should have it, but not as small as they are. Channels beyond the components begin at random and
    unheard. ValueError where the network does not suit."""
    if not suits(autoencoder):
        raise ValueError("principal components need an AutoencoderTiny of one level, as wide as its latents")
    number = autoencoder.latent_channels
    blocks = (pixel_unshuffle(pixels, autoencoder.unshuffle).movedim(1, -1).flatten(0, -2).double() + 1) / 2  # (n, P)
    mean = blocks.mean(dim=0)
    blocks -= mean
    variances, vectors = torch.linalg.eigh(blocks.T @ blocks / len(blocks))  # ascending
    stds, vectors = variances.flip(0)[:number].clamp(min=1e-8).sqrt(), vectors.flip(1)[:, :number]  # (C,), (P, C)
    scale = LATENT_STD / (stds * stds[0]).sqrt()
    encode, decode = vectors.T * scale[:, None], vectors / scale  # (C, P), (P, C)
    lift = -MARGIN * (blocks @ encode.T).amin(dim=0)  # (C,)
    halves = (autoencoder.vae.encoder, autoencoder.vae.decoder)
    encoder, decoder = ([layer for layer in half.layers if not isinstance(layer, nn.ReLU)] for half in halves)
    identity = torch.eye(number, dtype=torch.float64)
    _set(encoder[0], encode, lift - encode @ mean)
    _set(encoder[-1], identity, -lift)
    _set(decoder[0], identity, lift)
    _set(decoder[-1], decode, mean - decode @ lift)
    for block in (*encoder[1:-1], *decoder[1:-1]):
        nn.init.zeros_(block.conv[-1].weight)
        nn.init.zeros_(block.conv[-1].bias)


def _set(convolution: nn.Conv2d, matrix: Tensor, bias: Tensor) -> None:
    """Rows of a 3x3 convolution become (rows, columns) of a matrix, its middle alone; other columns are silenced."""
    rows, columns = matrix.shape
    convolution.weight[:rows] = 0
    convolution.weight[:rows, :columns, 1, 1] = matrix.to(convolution.weight.dtype)
    convolution.bias[:rows] = bias.to(convolution.bias.dtype)
