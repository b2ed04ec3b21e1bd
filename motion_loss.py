"""What a motion model is trained by: one micro-batch of windows in, a loss out, every draw seeded.

The moved picture's loss is photometric, over a pyramid (Yu et al. 2016, "Back to Basics"); that of the errors to expect
a Gaussian likelihood (Nix & Weigend 1994). What is moved and what is drawn over it are two experts of which the nearer
one learns (Jacobs et al. 1991, "Adaptive Mixtures of Local Experts"): their mean would be half a flash. So that what a
dream has lost comes back, some windows have lost it: in a part around the middle they show the memory of the map alone.

Knows no files. Used by train_motion.py.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, avg_pool2d, interpolate, logsigmoid, smooth_l1_loss

from diffusion import seeded_generator
from motion import Mover, Redrawn, foresee, warp
from scenes import camera_motions, scene_flow
from training import TrainingRun
from window_loss import number_of_own_frames

PYRAMID = (1, 2, 4, 8, 16)  # pixels averaged before comparing: a far shift is only felt in a coarse picture
SMOOTHNESS = 0.2
MAX_NOISE_LEVEL = 0.3  # of what is seen: in play it is the model's own
LIKELIHOOD_SHARE = 0.05  # of the loss, that of the errors to expect
SKETCH_SHARE = 1.0  # and that of the grey sketches in which past frames are compared
FLOW_SHARE = 5.0  # that of a known flow's error, in halves of the picture
PICTURES_EVERY = 4  # steps: the others of a run with depth learn from recorded frames flow alone, and decode nothing
KINK = 0.05  # of its error: squared below
CAMERA_SHARE = 0.5  # that of the camera's motions
FIXED_SHARE = 0.1  # that of what is known not to move with the world, over a memory; a gun it finds by itself
MIXTURE_SHARE = 0.2  # that of what is drawn
MIXTURE_SCALE = 0.1  # absolute error, of [-1, 1], by which an expert's likelihood falls to 1/e
FORGOTTEN_SHARE = 0.2  # of windows that show the memory alone in a part of them


def photometric_loss(moved: Tensor, target: Tensor, flow: Tensor) -> Tensor:
    """Mean absolute difference of moved and target pixels (B, 3, H', W') summed over PYRAMID, and a smooth flow's."""
    difference = moved - target
    loss = sum(avg_pool2d(difference, size).abs().mean() for size in PYRAMID)
    steps = (flow[:, :, 1:] - flow[:, :, :-1], flow[:, :, :, 1:] - flow[:, :, :, :-1])
    return loss + SMOOTHNESS * sum(step.abs().mean() for step in steps)


def sketch_loss(sketches: Tensor, pixels: Tensor) -> Tensor:
    """Mean absolute difference of sketches (B, SKETCH*h, SKETCH*w) and the grey of pixels (B, 3, H', W')."""
    grey = pixels.mean(dim=1, keepdim=True)
    return (sketches - avg_pool2d(grey, pixels.shape[-1] // sketches.shape[-1])[:, 0]).abs().mean()


def likelihood_loss(moved: Tensor, target: Tensor, std: Tensor) -> Tensor:
    """Mean negative log-likelihood, but for a constant, of target latents (B, C, h, w) about moved ones.

    std: (B, 1, h, w)."""
    return (((target - moved) / std).square() / 2 + std.log()).mean()


def mixture_loss(moved: Tensor, redrawn: Redrawn, target: Tensor) -> Tensor:
    """Mean negative log-likelihood, but for a constant, of target pixels (B, 3, H', W') under two Laplace experts, the
    moved pixels and those drawn over them (Jacobs et al. 1991, eq. 1.3). Moved ones learn nothing by it."""
    chances = []
    for pixels, sign in ((moved.detach(), -1), (redrawn.pixels, 1)):
        error = (pixels - target).abs().mean(dim=1, keepdim=True) / MIXTURE_SCALE
        chances.append(logsigmoid(sign * redrawn.logit) - error)
    return -torch.logaddexp(*chances).mean()


class MotionLoss:
    """Losses of micro-batches, as a WindowDataset `with_scene` of seen_frames + --own_frames context frames yields
    them."""

    def __init__(self, run: TrainingRun, mover: Mover, camera: dict[str, Any] | None, frame_stride: int) -> None:
        """mover: of the model in training, `run.model`.  camera: of data with depth."""
        self.run, self.mover, self.camera, self.frame_stride = run, mover, camera, frame_stride

    def __call__(self, batch: dict[str, Tensor], micro: int) -> Tensor:
        """Of a micro-batch; what is seen is noised, drawn by the model and forgotten as its place in the run says."""
        run, memory, autoencoder = self.run, self.mover.memory, self.mover.autoencoder
        seen_frames = self.mover.motion.config.seen_frames
        latents = autoencoder.sample_latents(batch["moments"].float())  # (B, seen + K + 1, C, h, w)
        first = run.first_index(micro, len(latents))
        generators = [seeded_generator("cpu", run.args.seed, run.step, first + j) for j in range(len(latents))]
        shape = (seen_frames + 1, *latents.shape[2:])
        noise = torch.stack(
            [MAX_NOISE_LEVEL * torch.rand(1, generator=g) * torch.randn(shape, generator=g) for g in generators]
        ).to(latents)
        target, count = latents[:, -1], number_of_own_frames(run)
        length = seen_frames + count
        seen, actions = latents[:, -1 - length : -1].clone(), batch["actions"][:, -length:]
        seen[:, :seen_frames] += noise[:, :-1]  # the recorded frames; those that follow have errors of their own
        poses = batch["poses"][:, -1 - length :] if "poses" in batch else None
        if count:
            seen = self.mover.rolled(seen, actions[:, :-1], count, poses)
        seen, actions = seen[:, -seen_frames:], actions[:, -seen_frames:]
        poses = None if poses is None else poses[:, -1 - seen_frames :]
        if memory is not None:
            if self.mover.motion.config.pixels_per_cell:  # else nothing could bring it back
                seen = self._with_forgotten(seen, poses, generators)
            return self._over_memory(seen, actions, poses, target, batch["depth"])
        flow, std, camera = run.model(seen, actions, with_camera=True)
        loss = 0 * (std.mean() + camera.mean())  # with many processes every weight has a gradient in every step
        if self.camera is None or count or run.step % PICTURES_EVERY == 0:
            loss = loss + self._of_pictures(seen[:, -1] if count else latents[:, -2], flow, std, target)
        if self.camera is not None and not count:  # no recorded flow tells how the model's own frame moves on
            true, is_known = scene_flow(batch["depth"], poses[:, -2:], self.camera, self.frame_stride)
            off = smooth_l1_loss(flow, true, beta=KINK, reduction="none") * is_known
            moved, is_walked = camera_motions(poses, self.frame_stride)
            missed = smooth_l1_loss(camera, moved, reduction="none") * is_walked
            loss = loss + FLOW_SHARE * off.sum(dim=1).mean() + CAMERA_SHARE * missed.mean()
        return loss

    def _over_memory(self, seen: Tensor, actions: Tensor, poses: Tensor, target: Tensor, depth: Tensor) -> Tensor:
        """Of the last frame, decoded, moved over what is remembered, drawn over, and encoded again, beside the next.

        seen: latents (B, seen_frames, C, h, w).  target: (B, C, h, w).  poses: (B, seen_frames + 1, 4).  depth: of the
        target, uint8."""
        mover, motion = self.mover, self.mover.motion
        with torch.no_grad():
            last, next_pixels = self._pictures(seen[:, -1], target)
            ahead = mover.memory.look_ahead(poses[:, -2], poses[:, -1])
        made = foresee(self.run.model, seen, actions, last, ahead)
        loss = photometric_loss(made.moved, next_pixels, made.extra)
        if made.redrawn:
            loss = loss + MIXTURE_SHARE * mixture_loss(made.moved, made.redrawn, next_pixels)
        likelihood = likelihood_loss(mover.moved_over(seen[:, -1], last, made.shown), target, made.std)
        sketched = sketch_loss(motion.sketch(seen[:, -1:])[:, 0], last)
        is_fixed = interpolate((depth == 0).float()[:, None], made.share.shape[-2:])
        fixed = -(is_fixed * (1 - made.share).clamp_min(1e-4).log()).mean()
        return loss + LIKELIHOOD_SHARE * likelihood + SKETCH_SHARE * sketched + FIXED_SHARE * fixed

    def _of_pictures(self, last: Tensor, flow: Tensor, std: Tensor, target: Tensor) -> Tensor:
        """Of the last frame, decoded, moved and encoded again, beside the next one.  last, target: (B, C, h, w)."""
        with torch.no_grad():
            pixels, next_pixels = self._pictures(last, target)
        likelihood = likelihood_loss(self.mover.moved(last, pixels, flow), target, std)
        sketched = sketch_loss(self.mover.motion.sketch(last[:, None])[:, 0], pixels)
        loss = photometric_loss(warp(pixels, flow), next_pixels, flow)
        return loss + LIKELIHOOD_SHARE * likelihood + SKETCH_SHARE * sketched

    def _pictures(self, *latents: Tensor) -> list[Tensor]:
        """Latents (B, C, h, w) each -> pixels (B, 3, H', W') in [-1, 1] each."""
        pixels = self.mover.autoencoder.decode_latents(torch.cat(latents)).float().clamp(-1, 1)
        return list(pixels.split(len(latents[0])))

    @torch.no_grad()
    def _with_forgotten(self, seen: Tensor, poses: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Seen latents (B, T, C, h, w), of which FORGOTTEN_SHARE of windows show, in a part around the middle, what is
        remembered of the map: no weapon, no status bar.  poses: (B, >= T, 4)."""
        chosen = [number for number, each in enumerate(generators) if torch.rand(1, generator=each) < FORGOTTEN_SHARE]
        if not chosen:
            return seen
        autoencoder, seen, length = self.mover.autoencoder, seen.clone(), seen.shape[1]
        pixels = autoencoder.decode_latents(seen[chosen].flatten(0, 1)).float().clamp(-1, 1)  # (n*T, 3, H', W')
        views = self.mover.memory.look(poses[chosen, :length].flatten(0, 1)).pixels
        is_lost = torch.stack([_middle(*pixels.shape[-2:], generators[number]) for number in chosen])
        is_lost = is_lost.to(pixels.device).repeat_interleave(length, dim=0)[:, None]  # (n*T, 1, H', W')
        shown = torch.where(is_lost, views, pixels).to(autoencoder.vae.dtype)
        encoded = autoencoder.sample_latents(autoencoder.encode_pixels(shown)).to(seen.dtype)
        cells = adaptive_max_pool2d(is_lost.float(), seen.shape[-2:]) > 0
        seen[chosen] = torch.where(cells, encoded, seen[chosen].flatten(0, 1)).unflatten(0, (len(chosen), length))
        return seen


def _middle(height: int, width: int, generator: torch.Generator) -> Tensor:
    """bool (height, width): true in a rectangle around the middle column, somewhere in its height."""
    top, bottom, left, right = torch.rand(4, generator=generator).tolist()
    lost = torch.zeros(height, width, dtype=torch.bool)
    rows = slice(int(height * 0.6 * top), int(height * (1 - 0.4 * bottom)) + 1)
    lost[rows, int(width * 0.45 * left) : int(width * (1 - 0.45 * right)) + 1] = True
    return lost
