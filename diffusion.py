"""The maths: v-prediction loss on the next latent, context noise, guidance on frames, the DDIM sampler.

Knows neither files nor pictures: latents in, latents out. Used by engine.py to play, train_text_to_image.py to learn.

Symbols: x0 the clean next latent, eps Gaussian noise, alpha_bar_t the schedule, x_t = sqrt(alpha_bar_t) x0 +
sqrt(1 - alpha_bar_t) eps, v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x0 (Salimans & Ho 2022, sec. 4).
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from model import WorldModel


def seeded_generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A generator that depends on `numbers` alone, e.g. (seed, step, index in the global batch)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def noise_bucket(level: Tensor, max_noise_level: float, num_buckets: int) -> Tensor:
    """Level in [0, max] -> id of one of `num_buckets` equal buckets, int64. GameNGen sec. 3.2.1."""
    return (level / max_noise_level * num_buckets).long().clamp(0, num_buckets - 1)


def noise_level(bucket: int, max_noise_level: float, num_buckets: int) -> float:
    """The level that announcing `bucket` promises: the bucket's lower edge, so that bucket 0 is a clean context."""
    return bucket * max_noise_level / num_buckets


@dataclass
class Draws:
    """Every random number of one training batch. B samples, L context frames; all float32 but the ids."""

    timesteps: Tensor  # (B,) int64
    eps: Tensor  # (B, C, h, w) noise on the target
    posterior_eps: Tensor  # (B, L + 1, C, h, w) noise of the autoencoder's posterior
    context_eps: Tensor  # (B, L, C, h, w) noise added to the context
    context_level: Tensor  # (B,) in [0, max_noise_level)
    is_dropped: Tensor  # (B,) bool: the whole context is replaced by the null input


def draw(
    seed: int,
    step: int,
    indices: Sequence[int],
    shape: tuple[int, int, int, int],
    *,
    train_timesteps: Sequence[int],
    max_noise_level: float,
    context_dropout: float,
    device: torch.device | str,
) -> Draws:
    """The draws of the samples `indices` (positions in the global batch) of a step; shape: (L + 1, C, h, w).

    train_timesteps: those to draw from, each as likely; see `timesteps_to_train`.
    Each sample has its own generator, so the rank and the number of processes change nothing and resume is exact.
    """
    window, frame = shape, shape[1:]
    allowed = torch.tensor(train_timesteps, device=device)
    columns: list[tuple[Tensor, ...]] = []
    for index in indices:
        generator = seeded_generator(device, seed, step, index)
        uniform = torch.rand(3, generator=generator, device=device)
        columns.append(
            (
                allowed[(uniform[0] * len(allowed)).long().clamp(max=len(allowed) - 1)],
                torch.randn(frame, generator=generator, device=device),
                torch.randn(window, generator=generator, device=device),
                torch.randn((window[0] - 1, *frame), generator=generator, device=device),
                uniform[1] * max_noise_level,
                uniform[2] < context_dropout,
            )
        )
    return Draws(*(torch.stack(column) for column in zip(*columns, strict=True)))


def timesteps_to_train(scheduler: DDIMScheduler, sampler_steps: int | None) -> list[int]:
    """All timesteps of the schedule, or only those that a sampler of `sampler_steps` (or a divisor of it) visits.

    A network that is only ever asked at four noise levels need not learn the other 996."""
    if sampler_steps is None:
        return list(range(scheduler.config.num_train_timesteps))
    scheduler.set_timesteps(sampler_steps)
    return scheduler.timesteps.tolist()


def null_context(context: Tensor) -> Tensor:
    """The null input of guidance and of context dropout alike: zeros, for every frame."""
    return torch.zeros_like(context)


def training_loss(
    world_model: WorldModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    actions: Tensor,
    draws: Draws,
    *,
    max_noise_level: float,
    num_noise_buckets: int,
    change_std: Tensor | None = None,
) -> Tensor:
    """v-prediction loss on the next frame.

    latents: (B, L + 1, C, h, w) scaled, oldest first, the last one the target, the one before it moved.
    actions: (B, L) int64.  change_std: (B, 1, h, w), as `WorldModel.moved` gives it.
    Plain MSE on v: min-SNR or logit-normal weights would leave the first of few sampling steps untrained.
    Salimans & Ho 2022, sec. 4; GameNGen sec. 3.2. Returns a scalar, the mean over all elements.
    """
    context, x0 = latents[:, :-1], latents[:, -1]  # (B, L, C, h, w), (B, C, h, w)
    level = draws.context_level[:, None, None, None, None]
    context = context + level * draws.context_eps  # GameNGen sec. 3.2.1: against drift
    context = torch.where(draws.is_dropped[:, None, None, None, None], null_context(context), context)
    x_t = scheduler.add_noise(x0, draws.eps, draws.timesteps)
    v = scheduler.get_velocity(x0, draws.eps, draws.timesteps)
    buckets = noise_bucket(draws.context_level, max_noise_level, num_noise_buckets)
    of_motion = () if change_std is None else (change_std,)
    prediction = world_model(x_t, draws.timesteps, context, actions, buckets, *of_motion)
    return torch.nn.functional.mse_loss(prediction.float(), v.float())


@torch.no_grad()
def with_own_frames(
    world_model: WorldModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    actions: Tensor,
    noise: Tensor,
    *,
    num_inference_steps: int,
    poses: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A window whose last context frames the model has drawn itself, one after the other, from the recorded actions.

    So training sees the mistakes that play makes, and the recorded target says how to recover from them (DAgger, Ross
    et al. 2011; scheduled sampling, Bengio et al. 2015).

    latents: (B, n + 1, C, h, w) scaled, n at least L + k.  actions: (B, n).  noise: (B, k, C, h, w), what each of the
    k own frames starts from.  poses: (B, n + 1, 4) for a model with a memory, which goes where the game went. Returns
    latents (B, L + 1, C, h, w), the target untouched, and actions (B, L).
    """
    length, count = world_model.context_length, noise.shape[1]
    latents = latents[:, -(length + count + 1) :].clone()
    actions = actions[:, -(length + count) :]
    poses = None if poses is None else poses[:, -(length + count + 1) :]
    clean = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    remembered = None  # of the last view, as the one before looked ahead to it
    for number in range(count):
        played = actions[:, number : number + length]
        ahead = world_model.ahead(None if poses is None else poses[:, number : number + length + 1], remembered)
        remembered = ahead.following if ahead else None
        moved = world_model.moved(latents[:, number : number + length], played, *ahead)
        drawn = sample_next(
            world_model,
            scheduler,
            moved.context,
            played,
            clean,
            noise[:, number],
            num_inference_steps=num_inference_steps,
            guidance_scale=1.0,
            change_std=moved.std,
        )
        latents[:, length + number] = moved.settle(drawn).to(latents.dtype)
    return latents[:, count:], actions[:, count:]


@torch.no_grad()
def sample_next(
    world_model: Callable[..., Tensor],
    scheduler: DDIMScheduler,
    context: Tensor,
    actions: Tensor,
    noise_buckets: Tensor,
    x_t: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    change_std: Tensor | None = None,
) -> Tensor:
    """The next latent by DDIM with guidance on frames only (GameNGen sec. 3.2; Song et al. 2021, eq. 12 at eta = 0).

    world_model: a `WorldModel`, or what computes the same.
    context: (B, L, C, h, w), moved and already as noisy as noise_buckets (B,) says.  actions: (B, L) int64.
    x_t: (B, C, h, w) Gaussian noise to start from.  change_std: as `WorldModel.moved` gives it.
    Returns (B, C, h, w). Guidance 1 costs one pass a step, else two.
    """
    scheduler.set_timesteps(num_inference_steps, device=context.device)
    is_guided = guidance_scale != 1.0
    if is_guided:  # rows [:B] see the context, rows [B:] the null; both see the actions
        context = torch.cat([context, null_context(context)])
        actions, noise_buckets = actions.repeat(2, 1), noise_buckets.repeat(2)
        change_std = None if change_std is None else torch.cat([change_std, change_std])
    of_motion = () if change_std is None else (change_std,)
    for timestep in scheduler.timesteps:
        noised = torch.cat([x_t, x_t]) if is_guided else x_t
        v = world_model(noised, timestep.expand(len(noised)), context, actions, noise_buckets, *of_motion)
        if is_guided:
            with_context, without = v.chunk(2)
            v = without + guidance_scale * (with_context - without)
        x_t = scheduler.step(v.float(), timestep, x_t).prev_sample
    return x_t
