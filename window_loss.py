"""The loss of one micro-batch of windows: latents from what the loader yields, own frames, every draw seeded.

Between diffusion.py, which knows no run, and train_text_to_image.py, which knows no tensors.
"""

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffusion import draw, seeded_generator, timesteps_to_train, training_loss, with_own_frames
from model import Autoencoder
from presets import Preset
from training import TrainingRun


def loss_of(
    run: TrainingRun,
    batch: dict[str, Tensor],
    micro: int,
    preset: Preset,
    batch_size: int,
    autoencoder: Autoencoder,
    scheduler: DDIMScheduler,
) -> Tensor:
    """The loss of one micro-batch, every draw of it seeded by its samples' places in the global batch."""
    own_frames = run.args.own_frames
    first = run.first_index(micro, batch_size)
    draws = draw(
        run.args.seed,
        run.step,
        range(first, first + batch_size),
        (preset.context_length + own_frames + 1, preset.latent_channels, preset.latent_height, preset.latent_width),
        device=run.accelerator.device,
        train_timesteps=timesteps_to_train(scheduler, preset.sampler_steps),
        max_noise_level=preset.max_noise_level if run.args.context_noise is None else run.args.context_noise,
        context_dropout=preset.context_dropout,
    )
    latents = to_latents(batch, autoencoder, draws.posterior_eps)  # (B, L + K + 1, C, h, w)
    actions = batch["actions"]
    if own_frames:
        latents, actions = draw_own_frames(run, latents, actions, micro, preset, scheduler, batch.get("poses"))
        draws.context_eps = draws.context_eps[:, own_frames:]
    world_model = run.accelerator.unwrap_model(run.model, keep_torch_compile=False)
    moved = world_model.moved(latents[:, :-1], actions, *world_model.ahead(batch.get("poses")))
    latents = torch.cat([moved.context, latents[:, -1:]], dim=1)
    return training_loss(
        run.model,
        scheduler,
        latents,
        actions,
        draws,
        max_noise_level=preset.max_noise_level,
        num_noise_buckets=preset.num_noise_buckets,
        change_std=moved.std,
    )


def number_of_own_frames(run: TrainingRun) -> int:
    """Of a window's last context frames how many the model draws itself in this step: none, or 1 to --own_frames.

    The logarithm is drawn evenly: a few matter as much as many, and cost less. The same for every sample and process,
    so that all take the same time."""
    if not run.args.own_frames:
        return 0
    is_own, amount = torch.rand(2, generator=seeded_generator("cpu", run.args.seed, run.step, 0, 1)).tolist()
    return int((1 + run.args.own_frames) ** amount) if is_own < run.args.own_frames_share else 0


def draw_own_frames(
    run: TrainingRun,
    latents: Tensor,
    actions: Tensor,
    micro: int,
    preset: Preset,
    scheduler: DDIMScheduler,
    poses: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(B, L + K + 1) latents and (B, L + K) actions -> (B, L + 1) and (B, L), none to K context frames the
    model's own."""
    args, device = run.args, run.accelerator.device
    count = number_of_own_frames(run)
    first = run.first_index(micro, len(latents))
    noise = torch.stack(
        [
            torch.randn(
                (count, *latents.shape[2:]),
                generator=seeded_generator(device, args.seed, run.step, first + j, 2),
                device=device,
            )
            for j in range(len(latents))
        ]
    )
    world_model = run.accelerator.unwrap_model(run.model)
    return with_own_frames(
        world_model,
        scheduler,
        latents,
        actions,
        noise,
        num_inference_steps=preset.num_inference_steps,
        poses=poses,
    )


def to_latents(batch: dict[str, Tensor], autoencoder: Autoencoder, posterior_eps: Tensor) -> Tensor:
    """A loader's batch -> scaled latents (B, L + 1, C, h, w); frames are encoded here, moments only sampled."""
    if "moments" in batch:
        moments = batch["moments"].float()
    else:
        frames = batch["frames"]
        with torch.no_grad():
            moments = autoencoder.encode_pixels(autoencoder.frames_to_pixels(frames.flatten(0, 1)))
        moments = moments.float().unflatten(0, frames.shape[:2])
    return autoencoder.sample_latents(moments, posterior_eps)
