"""Stage 3: reads latents (or episodes), writes a world-model folder.

The name is historical: this trains the world model, a UNet that draws the next frame from past frames and actions;
there is no text. The same command again resumes exactly where the last checkpoint was written.

    python train_text_to_image.py --dataset_basepath latents --output_dir runs/world_model --max_train_minutes 60
    python train_text_to_image.py --dataset_basepath episodes --from_pixels --vae_folder_or_id runs/autoencoder \\
        --output_dir runs/world_model
"""

import argparse
import dataclasses
import time
from pathlib import Path

import command_line
from command_line import BadInput

START_CONTEXTS = 8
SAMPLE_FRAMES = 64


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add(
        "--dataset_basepath",
        required=True,
        help="folder of latent_episode_*.pt; with --from_pixels of episode_*.parquet",
    )
    add("--output_dir", required=True, help="run folder: checkpoints, metrics, samples, and world_model/ to play")
    add("--preset", default="small", help="small, smoke, or a .json file based on one of them")
    add("--from_pixels", action="store_true", help="train from episodes, encoding each batch on the fly")
    add("--vae_folder_or_id", help="autoencoder folder or Hub id; default: the one kept beside the latents")
    add("--frame_stride", type=command_line.positive, help="tics between two frames; default: the preset's")
    add(
        "--train_batch_size",
        type=command_line.positive,
        help="windows per device and micro-batch; default: the preset's",
    )
    add("--learning_rate", type=command_line.positive_float, help="peak rate of AdamW; default: the preset's")
    add("--gradient_checkpointing", action="store_true", help="recompute activations: less memory, a third more time")
    add(
        "--num_validation_windows",
        type=command_line.positive,
        default=64,
        help="held-out windows the rows are measured on",
    )
    add(
        "--legacy_alignment",
        choices=("before", "after"),
        default="before",
        help="for .pt files without metadata: is a frame stored before or after its action",
    )
    command_line.add_training_flags(arguments)
    command_line.add_device_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from model_folders import find_autoencoder
    from presets import get_preset

    preset = get_preset(args.preset)
    if args.frame_stride:
        preset = dataclasses.replace(preset, frame_stride=args.frame_stride)
    batch_size = args.train_batch_size or preset.train_batch_size
    learning_rate = args.learning_rate or preset.learning_rate
    train_paths, validation_paths = find_data(args, preset.frame_stride)
    find_autoencoder(args.vae_folder_or_id or args.dataset_basepath, preset)
    command_line.print_settings(
        args,
        frame_stride=preset.frame_stride,
        train_batch_size=batch_size,
        learning_rate=learning_rate,
        train_episodes=len(train_paths),
        validation_episodes=len(validation_paths),
    )

    import torch

    from data_loader import WindowDataset
    from diffusion import draw, training_loss
    from model import LoadedWorldModel, build_world_model, load_autoencoder, make_scheduler
    from training import TrainingRun, make_accelerator

    accelerator = make_accelerator(args)
    kind = "frames" if args.from_pixels else "latents"
    windows = {
        "context_length": preset.context_length,
        "frame_stride": preset.frame_stride,
        "kind": kind,
        "legacy_alignment": args.legacy_alignment,
    }
    autoencoder = load_autoencoder(
        args.vae_folder_or_id or args.dataset_basepath, preset=preset, device=accelerator.device
    )
    windows["black_moments"] = autoencoder.black_moments()
    dataset, held_out = WindowDataset(train_paths, **windows), WindowDataset(validation_paths, **windows)
    if kind == "latents":
        check_encoder(dataset, autoencoder, args)
    torch.manual_seed(args.seed)
    world_model = build_world_model(preset, dataset.num_actions)
    if args.gradient_checkpointing:
        world_model.unet.enable_gradient_checkpointing()
    global_batch = batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    identity = {
        **preset.what_is_learned(),
        "seed": args.seed,
        "global_batch_size": global_batch,
        "num_actions": dataset.num_actions,
        "action_table": dataset.action_table,
        "encoder_sha256": autoencoder.encoder_sha256,
        "from_pixels": args.from_pixels,
        "legacy_alignment": args.legacy_alignment,
    }
    run = TrainingRun(args, accelerator, world_model, identity, learning_rate=learning_rate, unit="frames")
    if run.was_finished("world_model"):
        return
    scheduler = make_scheduler()
    config = make_config(preset, autoencoder, dataset)
    loaded = LoadedWorldModel(world_model, autoencoder, scheduler, config, None)
    validation = Validation(run, loaded, dataset, held_out, args.num_validation_windows)
    run.write(
        f"{sum(p.numel() for p in run.parameters) / 1e6:.1f}M parameters, {len(dataset)} windows, "
        f"global batch {global_batch}"
    )

    latent_shape = (preset.context_length + 1, *config.latent_shape)
    run.begin()
    batches = run.batches(dataset, batch_size)
    while True:
        is_over = run.is_over()
        with run.housekeeping():
            if is_over or run.is_due(args.checkpointing_steps):
                run.save(validation.save_model)
            if is_over or run.is_due(args.validation_steps):
                validation(is_last=is_over)
        if is_over:
            break
        for micro in range(args.gradient_accumulation_steps):
            waited = time.monotonic()
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in next(batches).items()}
            run.data_seconds += time.monotonic() - waited
            first = run.first_index(micro, batch_size)
            draws = draw(
                args.seed,
                run.step,
                range(first, first + batch_size),
                latent_shape,
                device=accelerator.device,
                num_train_timesteps=scheduler.config.num_train_timesteps,
                max_noise_level=preset.max_noise_level,
                context_dropout=preset.context_dropout,
            )
            latents = to_latents(batch, autoencoder, draws.posterior_eps)  # (B, L + 1, C, h, w)
            with accelerator.accumulate(run.model), accelerator.autocast():
                loss = training_loss(
                    run.model,
                    scheduler,
                    latents,
                    batch["actions"],
                    draws,
                    max_noise_level=preset.max_noise_level,
                    num_noise_buckets=preset.num_noise_buckets,
                )
                run.update(loss)
        run.finish_step(items=global_batch)
    run.close()
    run.write(
        f"wrote {validation.folder} after {run.step} steps; roll it out: python run_autoregressive.py "
        f"--dataset_basepath {args.dataset_basepath} --unet_model_folder {validation.folder}"
        f"{' --start_from_pixels' if args.from_pixels else ''}"
    )


def find_data(args: argparse.Namespace, frame_stride: int) -> tuple[list[Path], list[Path]]:
    """(train, validation) files. Raises BadInput before anything heavy is imported."""
    from episodes import (
        common_facts,
        find_episodes,
        find_latents,
        inspect_episode,
        rows_per_stride,
        split_episodes,
    )

    if args.from_pixels and not args.vae_folder_or_id:
        raise BadInput(
            "--from_pixels needs --vae_folder_or_id, the autoencoder to encode with; finetune_vae.py trains one"
        )
    paths = find_episodes(args.dataset_basepath) if args.from_pixels else find_latents(args.dataset_basepath)
    if args.from_pixels:
        infos = [inspect_episode(path) for path in paths]
        common_facts(infos)
        rows_per_stride(infos, frame_stride)
    train, validation = split_episodes(paths)
    if not validation:
        raise BadInput(f"{args.dataset_basepath}: {len(paths)} episode, none left to validate on; record at least two")
    return train, validation


def check_encoder(dataset, autoencoder, args: argparse.Namespace) -> None:
    """Refuses latents of another encoder than the autoencoder at hand; without a fingerprint the user's word counts."""
    if dataset.encoder_sha256 and dataset.encoder_sha256 != autoencoder.encoder_sha256:
        raise BadInput(
            f"{args.dataset_basepath}: latents of encoder {dataset.encoder_sha256[:12]}, but "
            f"{args.vae_folder_or_id or 'the autoencoder there'} is {autoencoder.encoder_sha256[:12]}; "
            f"encode again with encode_images.py, or name their autoencoder with --vae_folder_or_id"
        )


def make_config(preset, autoencoder, dataset):
    """What a player needs to know of the model, from what the data and the preset say."""
    from model import WorldModelConfig

    table = dataset.action_table or [
        {"id": i, "name": str(i), "buttons": [], "keys": []} for i in range(dataset.num_actions)
    ]
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
    )


def to_latents(batch: dict, autoencoder, posterior_eps):
    """A loader's batch -> scaled latents (B, L + 1, C, h, w); frames are encoded here, moments only sampled."""
    import torch

    if "moments" in batch:
        moments = batch["moments"].float()
    else:
        frames = batch["frames"]
        with torch.no_grad():
            moments = autoencoder.encode_pixels(autoencoder.frames_to_pixels(frames.flatten(0, 1)))
        moments = moments.float().unflatten(0, frames.shape[:2])
    return autoencoder.sample_latents(moments, posterior_eps)


class Validation:
    """Measures the averaged weights on held-out episodes, keeps a rollout as a gif, and writes the folder to play."""

    def __init__(self, run, loaded, dataset, held_out, num_windows: int) -> None:
        from data_loader import evenly
        from validation import has_real_frames, start_contexts, training_mean

        self.run, self.loaded, self.held_out = run, loaded, held_out
        self.folder = run.output_dir / "world_model"
        self.indices = evenly(len(held_out), num_windows)
        self.constant = training_mean(dataset, loaded.autoencoder)
        if not has_real_frames(held_out, self.indices):
            self.constant = None
        loaded.start_contexts = start_contexts(held_out, loaded.autoencoder, START_CONTEXTS)

    def __call__(self, *, is_last: bool) -> None:
        """Prints the four rows one step ahead and writes `samples/step_<n>.gif`."""
        if not self.run.accelerator.is_main_process:
            return
        if self.constant is None:
            self.run.write(
                "no rows: the episodes these latents were encoded from are gone, and with them the real frames"
            )
            return
        from engine import GameEngine
        from metrics import format_rows
        from validation import one_step_rows

        self.loaded.world_model.eval()
        with self.run.averaged():
            engine = GameEngine(self.loaded)
            rows = one_step_rows(engine, self.held_out, self.indices, self.constant)
            self.write_sample(engine)
        self.loaded.world_model.train()
        self.run.log(**{f"{name}_{key}": value for name, row in rows.items() for key, value in row.items()})
        when = f"after {self.run.step} steps{' (last)' if is_last else ''}"
        self.run.write(f"one step ahead on {len(self.indices)} held-out windows {when}:\n{format_rows(rows)}")

    def write_sample(self, engine) -> None:
        """The longest of some rollouts from held-out play, beside the real game."""
        from pictures import side_by_side, write_gif
        from validation import read_stretches, roll_out

        length, index = next(
            (length, index)
            for length in (SAMPLE_FRAMES, 8, 1)
            for index in self.indices
            if self.held_out.stretch(index, length)
        )
        stretches = read_stretches(self.held_out, self.loaded.autoencoder, [index], length)
        dream = roll_out(engine, stretches, [self.run.args.seed])[0]
        names = {row["id"]: row["name"] for row in self.loaded.config.action_table}
        captions = [
            f"{number + 1}  {names[int(action)]}" for number, action in enumerate(stretches.actions[0, -length:])
        ]
        film = side_by_side({"real": stretches.real[0, 1:], "dream": dream}, captions)
        path = self.run.output_dir / "samples" / f"step_{self.run.step:06d}.gif"
        write_gif(path, film, self.loaded.config.frames_per_second)

    def save_model(self) -> None:
        """Writes `world_model/` with the averaged weights."""
        if not self.run.accelerator.is_main_process:
            return
        self.loaded.config = dataclasses.replace(self.loaded.config, trained_steps=self.run.step)
        with self.run.averaged():
            self.loaded.save(self.folder)


if __name__ == "__main__":
    command_line.run(main, build_parser())
