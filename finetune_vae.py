"""Stage 4 (and before stage 2 for the small presets): reads episodes, writes an autoencoder folder.

Tunes the decoder of an autoencoder on a game's frames with plain MSE (GameNGen sec. 3.1); the encoder stays
bit-identical, so latents and world models made with it stay valid. With --train_from_scratch it trains a preset's small
autoencoder whole. The same command again resumes exactly where the last checkpoint was written.

    python finetune_vae.py --dataset_basepath episodes --output_dir runs/autoencoder \\
        --train_from_scratch --preset small --max_train_minutes 30
    python finetune_vae.py --dataset_basepath episodes --output_dir runs/decoder \\
        --model_folder_or_id runs/autoencoder --max_train_minutes 30
    python finetune_vae.py --dataset_basepath episodes --output_dir runs/sd14_decoder --preset sd14 \\
        --mixed_precision bf16 --batch_size 8 --gradient_accumulation_steps 256
"""

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import command_line
import hub_upload
import processes
from command_line import BadInput

if TYPE_CHECKING:
    from episodes import EpisodeInfo

FILM_FRAMES, FILM_HZ = 32, 8  # of the sample film, four seconds
MOST_MOVED = (0.06, 0.12, 0.06)  # of worn frames: zoom, right, down, in halves of the picture
TEXTURE_PIXELS, TEXTURE_SIZES = 8, (1, 2)  # whose mean contrast counts, and from what size of pixel to the next
SOME_FRAMES = 512  # of training: their components are the start, by them what is saved is scaled and centred


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add("--dataset_basepath", required=True, help="folder of episode_*.parquet, or data set on the Hub")
    add("--output_dir", required=True, help="run folder: checkpoints, metrics, samples, and autoencoder/ to use")
    add(
        "--model_folder_or_id",
        help="autoencoder to tune: a folder or a Hub id; default with --preset sd14: Stable Diffusion 1.4's",
    )
    add("--train_from_scratch", action="store_true", help="train the preset's own small autoencoder, encoder and all")
    add("--preset", help="sd14, small, smoke or a .json file; default: what the autoencoder folder says")
    add(
        "--batch_size",
        type=command_line.positive,
        help="frames per device and micro-batch; default: the preset's, else 32",
    )
    add(
        "--learning_rate", type=command_line.positive_float, help="peak rate of AdamW; default: the preset's, else 1e-4"
    )
    add(
        "--num_validation_frames",
        type=command_line.positive,
        default=128,
        help="held-out frames the rows are measured on",
    )
    add(
        "--worn_share",
        type=command_line.fraction,
        default=0.0,
        help="share of frames that were decoded, moved and encoded once before, as a world model's motion does with "
        "every frame it draws: learning to undo what that wears off",
    )
    add(
        "--texture_weight",
        type=command_line.fraction,
        default=0.0,
        help="of a loss beside the squared error that wants, in every 8x8 pixels, as much contrast between neighbours "
        "as the real frame has: squared error alone blurs what it cannot place",
    )
    command_line.add_training_flags(arguments)
    hub_upload.add_hub_flags(arguments)
    command_line.add_device_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from artifacts import check_writable
    from dataset_folders import dataset_folder, public_name
    from episodes import common_facts, find_episodes, inspect_episode, split_episodes
    from model_folders import find_autoencoder
    from presets import get_preset

    hub_upload.check_hub_flags(args)
    preset = get_preset(args.preset) if args.preset else None
    if preset is not None and not args.train_from_scratch:
        args.model_folder_or_id = args.model_folder_or_id or preset.pretrained
    if args.train_from_scratch == bool(args.model_folder_or_id):
        raise BadInput(
            "give either --model_folder_or_id, an autoencoder whose decoder to tune, or --train_from_scratch --preset"
        )
    if args.train_from_scratch and preset is None:
        raise BadInput("--train_from_scratch needs --preset: small, smoke or a .json file")
    if args.train_from_scratch and not preset.autoencoder:
        raise BadInput(
            f"--train_from_scratch: preset {preset.name} has no autoencoder of its own, only a pretrained one to tune; "
            f"leave the flag out, or use --preset small"
        )
    if args.model_folder_or_id:
        find_autoencoder(args.model_folder_or_id, preset)
    data = public_name(args.dataset_basepath)
    args.dataset_basepath = str(dataset_folder(args.dataset_basepath, "episodes"))
    paths = find_episodes(args.dataset_basepath)
    common_facts([inspect_episode(path) for path in paths])
    train_paths, validation_paths = split_episodes(paths)
    if not validation_paths:
        raise BadInput(f"{args.dataset_basepath}: {len(paths)} episode, none left to validate on; record at least two")
    batch_size = args.batch_size or (preset.autoencoder_batch_size if preset else 32)
    learning_rate = args.learning_rate or (preset.autoencoder_learning_rate if args.train_from_scratch else 1e-4)
    check_writable("--output_dir", Path(args.output_dir))
    hub_upload.open_repository(args)
    command_line.print_settings(
        args,
        batch_size=batch_size,
        learning_rate=learning_rate,
        train_episodes=len(train_paths),
        validation_episodes=len(validation_paths),
    )

    import torch

    import linear_start
    from data_loader import FrameDataset, evenly
    from diffusion import seeded_generator
    from model import build_autoencoder, load_autoencoder
    from training import TrainingRun, make_accelerator

    accelerator = make_accelerator(args)
    torch.manual_seed(args.seed)
    if args.train_from_scratch:
        autoencoder = build_autoencoder(preset)
        trained = autoencoder.vae.parameters()
    else:
        autoencoder = load_autoencoder(args.model_folder_or_id, preset=preset)
        trained = decoder_parameters(autoencoder)
    for parameter in trained:
        parameter.requires_grad_(True)
    dataset, held_out = FrameDataset(train_paths), FrameDataset(validation_paths)
    some_frames = dataset.frames(evenly(len(dataset), SOME_FRAMES))
    has_components = args.train_from_scratch and linear_start.suits(autoencoder)
    if has_components:  # at a resume, too: the checkpoint's weights then replace these
        linear_start.start_from_components(autoencoder, autoencoder.frames_to_pixels(some_frames))
    global_batch = batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    identity = {
        "geometry": autoencoder.geometry.facts(),
        "seed": args.seed,
        "global_batch_size": global_batch,
        "trained_from_scratch": args.train_from_scratch,
        "autoencoder": preset.autoencoder if args.train_from_scratch else None,
        "encoder_sha256": None if args.train_from_scratch else autoencoder.encoder_sha256,
        "worn_share": args.worn_share,
        "texture_weight": args.texture_weight,
    }
    run = TrainingRun(args, accelerator, autoencoder, identity, learning_rate=learning_rate, unit="frames")
    told = {
        "data": data,
        "train_episodes": len(train_paths),
        "validation_episodes": len(validation_paths),
        "items": f"{len(dataset):,} frames",
        "settings": {
            "frames per step": global_batch,
            "optimizer": f"adamw, peak rate {learning_rate:g}",
            **({"worn frames": f"{args.worn_share:.0%}"} if args.worn_share else {}),
            **({"weight of texture": f"{args.texture_weight:g}"} if args.texture_weight else {}),
        },
        "base": args.model_folder_or_id,
        **({"start": "the principal components of its data"} if has_components else {}),
    }
    if run.was_finished("autoencoder"):
        push(args, told)
        return
    validation = Validation(run, autoencoder, dataset, held_out, some_frames, args)
    run.write(
        f"{sum(p.numel() for p in run.parameters) / 1e6:.2f}M parameters to train, {len(dataset)} frames, "
        f"global batch {global_batch}"
    )
    batches = run.batches(dataset, batch_size)

    def train_step() -> None:
        """One optimizer step."""
        for micro in range(args.gradient_accumulation_steps):
            frames = run.arrived(batches)  # (B, H0, W0, 3) uint8
            pixels = autoencoder.frames_to_pixels(frames)  # (B, 3, H', W')
            noise = None
            if autoencoder.posterior == "gaussian":
                first = run.first_index(micro, batch_size)
                generators = [
                    seeded_generator(accelerator.device, args.seed, run.step, first + j) for j in range(batch_size)
                ]
                shape = validation.latent_shape
                noise = torch.stack([torch.randn(shape, generator=g, device=accelerator.device) for g in generators])
            seen = pixels
            if args.worn_share > 0:
                seen = worn(autoencoder, pixels, args, run.step, run.first_index(micro, batch_size))
            with accelerator.accumulate(run.model), accelerator.autocast():
                shown = run.model(seen, noise).float()
                loss = torch.nn.functional.mse_loss(shown, pixels)
                if args.texture_weight > 0:
                    loss = loss + args.texture_weight * texture_loss(shown, pixels)
                run.update(loss)
        run.finish_step(items=global_batch)

    run.train(train_step, validation)
    run.write(
        f"wrote {validation.folder} after {run.step} steps; encode with it: python encode_images.py "
        f"--dataset_basepath {args.dataset_basepath} --save_dir_path latents --model_folder_or_id {validation.folder}"
    )
    push(args, told)


def worn(autoencoder, pixels, args: argparse.Namespace, step: int, first: int):
    """Pixels (B, 3, H', W') of which a share was moved back, decoded and moved ahead to where it is: as a rollout's.

    The movement is a zoom and a shift, drawn for each frame by its place `first` + i in the global batch of `step`. At
    the edges, where it brings in what nobody saw, a frame is as it was."""
    import torch

    from diffusion import seeded_generator
    from motion import places, warp

    draws = torch.stack(
        [
            torch.rand(4, generator=seeded_generator("cpu", args.seed, step, first + number, 3))
            for number in range(len(pixels))
        ]
    ).to(pixels.device)
    zoom, right, down = (((2 * draws[:, :3] - 1) * draws.new_tensor(MOST_MOVED)).T)[:, :, None, None]  # (B, 1, 1) each
    x, y = places(*pixels.shape[-2:], pixels.float()).unbind(1)  # (1, H', W') each
    ahead = torch.stack([zoom * x + right, zoom * y + down], dim=1)  # (B, 2, H', W')
    back = torch.stack([(x - right) / (1 + zoom) - x, (y - down) / (1 + zoom) - y], dim=1)
    with torch.no_grad():
        moved = warp(autoencoder(warp(pixels, back).to(pixels.dtype)).clamp(-1, 1), ahead).to(pixels.dtype)
    was_x, was_y = x + ahead[:, 0], y + ahead[:, 1]
    was_seen = torch.maximum(was_x.abs(), was_y.abs()) < 1
    is_worn = (draws[:, 3] < args.worn_share)[:, None, None] & was_seen
    return torch.where(is_worn[:, None], moved, pixels)


@contextlib.contextmanager
def centred(autoencoder, frames):
    """Within it the decoder of an AutoencoderTiny is right on average over frames, uint8 (T, H0, W0, 3), in each place
    of a block and each colour.

    A thousandth of red too little, left by low precision or by a rate that was still high, is a tint after a second of
    a rollout, which decodes and encodes every frame. The last layer's bias is all that changes. What is saved plays in
    float32, whatever it was trained in."""
    import torch
    from diffusers import AutoencoderTiny
    from torch.nn.functional import pixel_unshuffle

    if not isinstance(autoencoder.vae, AutoencoderTiny):
        yield
        return
    bias = autoencoder.vae.decoder.layers[-1].bias
    before = bias.detach().clone()
    with torch.no_grad():
        errors = []
        for pixels in autoencoder.frames_to_pixels(frames).split(32):
            error = pixel_unshuffle(autoencoder.encode_and_decode(pixels) - pixels, autoencoder.unshuffle)
            errors.append(error.float().mean(dim=(2, 3)))  # (32, 3 * f * f)
        bias -= torch.cat(errors).mean(dim=0).to(bias.dtype) / 2  # the decoder works in [0, 1]
        if before.equal(before.half().to(before.dtype)):
            bias.copy_(bias.half())  # weights of --save_dtype float16 stay such
    try:
        yield
    finally:
        with torch.no_grad():
            bias.copy_(before)


def texture_loss(shown, pixels):
    """Mean absolute difference of the local contrasts of two sets of pixels (B, 3, H', W'), a scalar.

    Contrast: the mean absolute difference of neighbours within TEXTURE_PIXELS squared, for both directions and for
    pixels of TEXTURE_SIZES. It tells how much texture there is and not where: statistics of filter responses, as in
    Heeger & Bergen 1995, "Pyramid-Based Texture Analysis/Synthesis"."""
    from torch.nn.functional import avg_pool2d

    def contrasts(picture):
        for size in TEXTURE_SIZES:
            coarse = avg_pool2d(picture, size)
            for direction in (2, 3):
                steps = coarse.diff(dim=direction).abs()
                yield avg_pool2d(steps, TEXTURE_PIXELS // size, ceil_mode=True)

    pairs = zip(contrasts(shown), contrasts(pixels), strict=True)
    return sum((ours - real).abs().mean() for ours, real in pairs)


def push(args: argparse.Namespace, told: dict) -> None:
    """With --push_to_hub, and once for all processes, uploads `autoencoder/` with a card and the last picture.

    told: the fields of model_card.Training."""
    if not args.push_to_hub or processes.rank() > 0:
        return
    from model_card import Training, autoencoder_card

    run_folder = Path(args.output_dir)
    card, pictures = autoencoder_card(run_folder, args.hub_model_id, Training(**told))
    hub_upload.push(args, run_folder / "autoencoder", card, pictures)


def decoder_parameters(autoencoder) -> list:
    """What decoder tuning may change: `decoder` and `post_quant_conv`; never `encoder` nor `quant_conv`."""
    return [
        parameter
        for name, parameter in autoencoder.vae.named_parameters()
        if name.startswith(("decoder.", "post_quant_conv."))
    ]


def film_rows(episode: "EpisodeInfo") -> tuple[range, float]:
    """(rows, frames per second): of FILM_FRAMES from the middle of an episode about FILM_HZ a second, as it was played.

    Fewer where it is shorter."""
    rows_per_s = episode.tics_per_second / episode.tics_per_row
    stride = min(max(1, round(rows_per_s / FILM_HZ)), episode.rows)
    length = min(FILM_FRAMES, episode.rows // stride) * stride
    start = (episode.rows - length) // 2
    return range(start, start + length, stride), rows_per_s / stride


class Validation:
    """Measures the autoencoder on held-out frames, keeps samples, and writes the folder to use."""

    def __init__(self, run, autoencoder, dataset, held_out, some_frames, args: argparse.Namespace) -> None:
        """some_frames: of training, uint8 (n, H0, W0, 3), by which what is saved is scaled and centred."""
        from data_loader import evenly
        from episodes import inspect_episode
        from metrics import mean_frame
        from validation import MEAN_FRAMES

        self.run, self.autoencoder = run, autoencoder
        self.folder = run.output_dir / "autoencoder"
        self.train_from_scratch = args.train_from_scratch
        self.some_frames = some_frames
        self.real = (
            autoencoder.resize_frames(held_out.frames(evenly(len(held_out), args.num_validation_frames))).cpu().numpy()
        )
        mean = mean_frame(autoencoder.resize_frames(dataset.frames(evenly(len(dataset), MEAN_FRAMES))).cpu().numpy())
        self.constant = mean[None].repeat(len(self.real), axis=0)
        rows, self.film_hz = film_rows(inspect_episode(held_out.paths[0]))  # the data set begins with that episode
        self.film = autoencoder.resize_frames(held_out.frames(rows)).cpu().numpy()
        self.latent_shape = tuple(autoencoder.sample_latents(autoencoder.black_moments()).shape[1:])

    def __call__(self, *, is_last: bool) -> None:
        """Prints the rows; writes `samples/step_<n>.png`, real frames above, decoded ones below, and a film of both."""
        if not self.run.accelerator.is_main_process:
            return
        import numpy as np
        from PIL import Image

        from artifacts import replacing
        from metrics import format_rows, measure_rows, psnr
        from pictures import side_by_side, write_gif

        with self.run.averaged(), centred(self.autoencoder, self.some_frames):
            ceiling, film = self.autoencoder.reconstruct(self.real), self.autoencoder.reconstruct(self.film)
        rows = measure_rows(self.real, {"constant": self.constant, "ceiling": ceiling})
        self.run.log(**{f"{name}_{key}": value for name, row in rows.items() for key, value in row.items()})
        self.run.write(
            f"held-out frames after {self.run.step} steps{' (last)' if is_last else ''}:\n{format_rows(rows)}"
        )
        picked = np.linspace(0, len(self.real) - 1, min(4, len(self.real))).astype(int)
        picture = np.concatenate([np.concatenate(list(frames[picked]), axis=1) for frames in (self.real, ceiling)])
        sample = self.run.output_dir / "samples" / f"step_{self.run.step:06d}.png"
        with replacing(sample) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        captions = [f"{decibels:.1f} dB" for decibels in psnr(film, self.film)]
        write_gif(
            sample.with_suffix(".gif"), side_by_side({"real": self.film, "decoded": film}, captions), self.film_hz
        )

    def save_model(self) -> None:
        """Writes `autoencoder/` with the averaged weights; from scratch also the scaling factor, 1 / std of latents."""
        if not self.run.accelerator.is_main_process:
            return
        import torch

        from artifacts import replacing_folder

        with self.run.averaged(), centred(self.autoencoder, self.some_frames):
            if self.train_from_scratch:
                with torch.no_grad():
                    batches = self.autoencoder.frames_to_pixels(self.some_frames).split(32)
                    moments = [self.autoencoder.encode_pixels(pixels) for pixels in batches]
                self.autoencoder.vae.register_to_config(scaling_factor=1 / float(torch.cat(moments).float().std()))
            with replacing_folder(self.folder) as temporary:
                self.autoencoder.save(temporary)
            if self.train_from_scratch:  # training goes on unscaled, so that a resumed run rounds alike
                self.autoencoder.vae.register_to_config(scaling_factor=1.0)


if __name__ == "__main__":
    command_line.run(main, build_parser(), is_shared=True)
