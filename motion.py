"""Where the picture moves to: an optical flow from past frames and keys, by which the last frame is moved ahead.

Most of a game's next frame is its last one, turned or walked into. A diffusion model that has to redraw that from codes
of 8x8 pixels spends its training on what one bilinear warp does exactly, so a world model may have a `MotionModel`: its
last context frame is decoded, moved by the predicted flow and encoded again before the UNet sees it. The flow comes
from the keys first (a turn shifts everything alike), then from the picture (what is near moves further; weapon and
status bar stay). It also says how far off the moved frame may be, cell by cell: next to nothing where a wall was only
shifted, all where something comes into view. That is the prior about which the world model draws, so that it leaves
what is known alone and makes up the rest. Flow-warped prediction: Finn et al. 2016, "Unsupervised Learning for Physical
Interaction through Video Prediction"; its loss is photometric, over a pyramid (Yu et al. 2016, "Back to Basics"),
and that of the errors to expect a Gaussian likelihood (Nix & Weigend 1994).

Knows no diffusion. Trained by train_motion.py; model.py loads it into a `WorldModel`.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, pixel_shuffle, silu

SEEN_FRAMES = 4
PYRAMID = (1, 2, 4, 8, 16)  # pixels averaged before comparing: a far shift is only felt in a coarse picture
SMOOTHNESS = 0.2
UNITS = 0.1  # of the picture's half size, in which networks speak of flow
LEAST_STD, MOST_STD = 0.03, 1.5  # of latents, whose own standard deviation is about 1
STILL_PIXELS = 0.5  # a cell of which nothing moves further keeps its code as it is


class _Residual(nn.Module):
    """Two 3x3 convolutions beside the identity; the first one dilated, to see far at little cost."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, h, w) -> the same."""
        return features + self.second(silu(self.first(silu(features))))


class MotionModel(ModelMixin, ConfigMixin):
    """Optical flow of the next frame from the last `seen_frames` latents and the actions chosen on seeing them."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        latent_height: int,
        latent_width: int,
        num_actions: int,
        seen_frames: int = SEEN_FRAMES,
        width: int = 64,
        embedding_dim: int = 32,
        flow_per_cell: int = 2,
        frame_stride: int | None = None,
        encoder_sha256: str | None = None,
    ) -> None:
        """frame_stride, encoder_sha256: of the data it learns from, so that it is not taken for other data."""
        super().__init__()
        hidden = 2 * width
        self.action_embedding = nn.Embedding(num_actions, embedding_dim)
        self.encode_keys = nn.Sequential(
            nn.Linear(seen_frames * embedding_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.flow_of_keys = nn.Linear(hidden, 2 * latent_height * latent_width)
        self.conv_in = nn.Conv2d(seen_frames * latent_channels + 2, width, 3, padding=1)
        self.keys_in = nn.Linear(hidden, width)
        self.body = nn.Sequential(*(_Residual(width, dilation) for dilation in (1, 2, 4, 1)))
        self.conv_out = nn.Conv2d(width, 3 * flow_per_cell**2, 3, padding=1)
        self.conv_std = nn.Conv2d(width, 1, 3, padding=1)
        for last in (self.flow_of_keys, self.conv_out, self.conv_std):  # nothing moves at first
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """latents: (B, >= seen_frames, C, h, w), oldest first.  actions: (B, as many) int64.

        Returns the flow (B, 2, f*h, f*w) with f = flow_per_cell, x before y: how far from each place of the next frame
        that which is seen there lay in the last one, in halves of the padded picture's width and height; and the
        standard deviation (B, 1, h, w) of the next latents about the last ones so moved. Both float32."""
        config = self.config
        seen, h, w = config.seen_frames, config.latent_height, config.latent_width
        latents, actions = latents[:, -seen:], actions[:, -seen:]
        keys = self.encode_keys(self.action_embedding(actions).flatten(1))  # (B, hidden)
        from_keys = self.flow_of_keys(keys).unflatten(1, (2, h, w))
        from_keys = interpolate(from_keys, scale_factor=float(config.flow_per_cell), mode="bilinear")
        places = _places(h, w, latents).expand(len(latents), -1, -1, -1)  # (B, 2, h, w)
        features = self.conv_in(torch.cat([latents.flatten(1, 2), places], dim=1))
        features = self.body(features + self.keys_in(keys)[:, :, None, None])
        features = silu(features)
        seen_there = pixel_shuffle(self.conv_out(features), config.flow_per_cell)  # (B, 3, f*h, f*w)
        share, extra = torch.sigmoid(seen_there[:, :1] + 3), seen_there[:, 1:]
        between = torch.sigmoid(self.conv_std(features).float())
        std = LEAST_STD * (MOST_STD / LEAST_STD) ** between
        return (UNITS * (share * from_keys + extra)).float(), std


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """(1, 2, height, width): x and y of each cell's middle, -1 to 1 from edge to edge."""
    rows = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) * (2 / height) - 1
    columns = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) * (2 / width) - 1
    x, y = columns[None, :].expand(height, -1), rows[:, None].expand(-1, width)
    return torch.stack([x, y])[None].to(like.dtype)


def warp(pixels: Tensor, flow: Tensor) -> Tensor:
    """Pixels (B, 3, H', W') as a flow (B, 2, *, *) moves them, bilinearly; from beyond an edge comes the edge. float32.

    Jaderberg et al. 2015, eq. 5."""
    height, width = pixels.shape[-2:]
    flow = interpolate(flow.float(), (height, width), mode="bilinear")
    grid = (_places(height, width, flow) + flow).permute(0, 2, 3, 1)  # (B, H', W', 2)
    return grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def photometric_loss(moved: Tensor, target: Tensor, flow: Tensor) -> Tensor:
    """Mean absolute difference of moved and target pixels (B, 3, H', W') summed over PYRAMID, and a smooth flow's."""
    difference = moved - target
    loss = sum(avg_pool2d(difference, size).abs().mean() for size in PYRAMID)
    steps = (flow[:, :, 1:] - flow[:, :, :-1], flow[:, :, :, 1:] - flow[:, :, :, :-1])
    return loss + SMOOTHNESS * sum(step.abs().mean() for step in steps)


def likelihood_loss(moved: Tensor, target: Tensor, std: Tensor) -> Tensor:
    """Mean negative log-likelihood, but for a constant, of target latents (B, C, h, w) about moved ones.

    std: (B, 1, h, w)."""
    return (((target - moved) / std).square() / 2 + std.log()).mean()


class Mover(nn.Module):
    """A world model's context with its last frame moved ahead by the actions; holds the networks that it takes."""

    def __init__(self, motion: MotionModel, autoencoder: nn.Module) -> None:
        """autoencoder: a model.Autoencoder, shared with whoever else draws with it."""
        super().__init__()
        self.motion, self.autoencoder = motion, autoencoder

    @torch.no_grad()
    def forward(self, context: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """context: (B, L, C, h, w), oldest first.  actions: (B, L) int64.

        Returns the context (B, L, C, h, w) with its last frame moved, and the standard deviation (B, 1, h, w) of the
        next latents about that."""
        flow, std = self.motion(context.to(self.motion.dtype), actions)
        return torch.cat([context[:, :-1], self.moved(context[:, -1], flow)[:, None]], dim=1), std

    @torch.no_grad()
    def moved(self, last: Tensor, flow: Tensor) -> Tensor:
        """Latents (B, C, h, w) as a flow moves them.

        Cells in which nothing moves keep their codes, which a decoder and an encoder would wear down."""
        pixels = warp(self.autoencoder.decode_latents(last).clamp(-1, 1), flow)
        pixels = pixels.to(self.autoencoder.vae.dtype)
        moved = self.autoencoder.sample_latents(self.autoencoder.encode_pixels(pixels)).to(last.dtype)
        height, width = pixels.shape[-2:]
        is_moving = (flow[:, :1].abs() * width > 2 * STILL_PIXELS) | (flow[:, 1:].abs() * height > 2 * STILL_PIXELS)
        cells = nn.functional.adaptive_max_pool2d(is_moving.float(), last.shape[-2:])  # (B, 1, h, w)
        return torch.where(cells > 0, moved, last)
