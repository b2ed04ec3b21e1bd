"""Stage 3: reads latents (or episodes), writes a world-model folder.

The name is historical: this trains the world model, a UNet that draws the next frame from past frames and actions;
there is no text. The same command again resumes exactly where the last checkpoint was written.

    python train_text_to_image.py --dataset_basepath latents --output_dir runs/world_model --max_train_minutes 60
    python train_text_to_image.py --dataset_basepath latents --output_dir runs/sd14 --preset sd14 \\
        --mixed_precision bf16 --gradient_checkpointing --gradient_accumulation_steps 8 --dry_run
    python train_text_to_image.py --dataset_basepath episodes --from_pixels --vae_folder_or_id runs/autoencoder \\
        --output_dir runs/world_model
    python train_text_to_image.py --dataset_basepath latents --output_dir runs/continued \\
        --pretrained_model_name_or_path assets/models/small --learning_rate 1e-4
"""

import argparse
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import command_line
import hub_upload
import processes
from artifacts import check_writable
from command_line import BadInput

if TYPE_CHECKING:
    from presets import Preset


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add(
        "--dataset_basepath",
        required=True,
        help="folder of latent_episode_*.pt, with --from_pixels of episode_*.parquet; or data set on the Hub",
    )
    add("--output_dir", required=True, help="run folder: checkpoints, metrics, samples, and world_model/ to play")
    add(
        "--preset",
        help="sd14, small, smoke, or a .json file based on one of them; default: that of the world model started from, "
        "else small",
    )
    add(
        "--pretrained_model_name_or_path",
        help="what to start from: a finished world model (its folder, run folder or Hub id), whole, or the UNet of a "
        "folder or Hub id in Stable Diffusion's layout; default: the preset's, CompVis/stable-diffusion-v1-4 for sd14, "
        "none for the others",
    )
    add(
        "--motion_folder",
        help="motion model of train_motion.py (folder or Hub id), by which the last context frame is moved ahead; a "
        "preset of predicts_change draws about that; default: the one of the world model started from, else none",
    )
    add("--from_pixels", action="store_true", help="train from episodes, encoding each batch on the fly")
    add(
        "--vae_folder_or_id",
        help="autoencoder folder or Hub id; default: the one kept beside the latents, else the preset's pretrained one",
    )
    add("--frame_stride", type=command_line.positive, help="tics between two frames; default: the preset's")
    add(
        "--train_batch_size",
        type=command_line.positive,
        help="windows per device and micro-batch; default: the preset's",
    )
    add(
        "--learning_rate",
        type=command_line.positive_float,
        help="peak rate; default: the preset's, with another optimizer 2e-5 for Adafactor and 5e-5 for AdamW",
    )
    optimizers = arguments.add_mutually_exclusive_group()
    optimizers.add_argument(
        "--use_adamw", action="store_true", help="AdamW, by default the optimizer of all presets but sd14"
    )
    optimizers.add_argument(
        "--use_adafactor", action="store_true", help="Adafactor, the paper's optimizer and by default that of sd14"
    )
    command_line.add_own_frames_flags(arguments)
    add(
        "--context_noise",
        type=command_line.fraction,
        metavar="LEVEL",
        help="largest noise level drawn for the context; default: the preset's, to which less is for the end of a "
        "training, nearer to what is played",
    )
    add("--gradient_checkpointing", action="store_true", help="recompute activations: less memory, a third more time")
    add(
        "--num_validation_windows",
        type=command_line.positive,
        default=64,
        help="held-out windows the rows are measured on",
    )
    add(
        "--num_start_contexts",
        type=command_line.positive,
        default=8,
        help="beginnings kept in the world model's folder, from held-out play, to play from without a data set",
    )
    add(
        "--legacy_alignment",
        choices=("before", "after"),
        default="before",
        help="for .pt files without metadata: is a frame stored before or after its action",
    )
    add(
        "--dry_run",
        action="store_true",
        help="train ten steps, print memory, data set and time needed, and write nothing into --output_dir",
    )
    command_line.add_event_flag(arguments)
    command_line.add_training_flags(arguments)
    hub_upload.add_hub_flags(arguments)
    command_line.add_device_flag(arguments)
    return arguments


@dataclass(frozen=True)
class Plan:
    """What the flags come to, settled before anything heavy is imported."""

    preset: "Preset"
    data: str  # as others may know it
    batch_size: int  # windows per device and micro-batch
    optimizer: str
    learning_rate: float
    train_paths: list[Path]
    validation_paths: list[Path]
    autoencoder: str | Path  # folder or Hub id
    pretrained: str | None  # folder or Hub id of what the weights start from
    unet_folder: Path | None = None  # where that lies on disk, if it is a text-to-image UNet
    world_model_folder: Path | None = None  # where that lies on disk, if it is a world model of ours
    motion_folder: Path | None = None


def main(args: argparse.Namespace) -> None:
    hub_upload.check_hub_flags(args)
    plan = make_plan(args)
    if not args.dry_run:
        check_writable("--output_dir", Path(args.output_dir))
        hub_upload.open_repository(args)
    command_line.print_settings(
        args,
        preset=args.preset or plan.preset.name,
        frame_stride=plan.preset.frame_stride,
        train_batch_size=plan.batch_size,
        optimizer=plan.optimizer,
        learning_rate=plan.learning_rate,
        pretrained_model_name_or_path=plan.pretrained,
        vae_folder_or_id=plan.autoencoder,
        train_episodes=len(plan.train_paths),
        validation_episodes=len(plan.validation_paths),
    )
    if not args.dry_run:
        train(args, plan)
        return
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir, args.report_to = folder, "none"
        train(args, plan)


def train(args: argparse.Namespace, plan: Plan) -> None:
    """Builds the world model, or goes on with the run's own, and trains it to its end."""
    import torch

    from artifacts import sha256_of_tensors
    from data_loader import WindowDataset
    from model import LoadedWorldModel, load_autoencoder, load_motion, make_scheduler
    from model_folders import remembers
    from motion import MOVER_VERSION
    from pretrained import finished_world_model, new_world_model
    from training import TrainingRun, make_accelerator
    from validation import Validation
    from window_loss import loss_of

    preset = plan.preset
    accelerator = make_accelerator(args)
    kind = "frames" if args.from_pixels else "latents"
    windows = {
        "context_length": preset.context_length,
        "frame_stride": preset.frame_stride,
        "kind": kind,
        "legacy_alignment": args.legacy_alignment,
        "with_scene": any(map(remembers, (plan.motion_folder, plan.world_model_folder))),
    }
    autoencoder = load_autoencoder(plan.autoencoder, preset=preset, device=accelerator.device)
    windows["black_moments"] = autoencoder.black_moments()
    held_out = WindowDataset(plan.validation_paths, **windows)
    windows["context_length"] += args.own_frames
    dataset = WindowDataset(plan.train_paths, **windows)
    if kind == "latents":
        check_encoder(dataset, autoencoder, args)
    torch.manual_seed(args.seed)
    if plan.world_model_folder is None:
        world_model, config = new_world_model(preset, dataset, autoencoder, plan.unet_folder)
    else:
        name = args.dataset_basepath
        world_model, config = finished_world_model(plan.world_model_folder, preset, dataset, name, plan.autoencoder)
    if plan.motion_folder is not None:
        motion, memory = load_motion(plan.motion_folder, config.num_actions, config.encoder_sha256)
        world_model.move_with(motion, autoencoder, memory)
        config = dataclasses.replace(config, has_motion=True)
    if world_model.memory is not None:
        for each in (dataset, held_out):
            world_model.memory.check(each, autoencoder.geometry)
    if args.gradient_checkpointing:
        world_model.unet.enable_gradient_checkpointing()
    global_batch = plan.batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    identity = {
        **preset.what_is_learned(),
        "seed": args.seed,
        "global_batch_size": global_batch,
        "optimizer": plan.optimizer,
        "num_actions": config.num_actions,
        "action_table": dataset.action_table,
        "encoder_sha256": autoencoder.encoder_sha256,
        "from_pixels": args.from_pixels,
        "legacy_alignment": args.legacy_alignment,
        "event_share": args.event_share,
    }
    mover = world_model.mover
    identity["motion_sha256"] = sha256_of_tensors(mover.own_weights(), {}) if mover is not None else None
    identity["mover"] = MOVER_VERSION if mover is not None else None
    if plan.pretrained is not None:  # the shape of what was loaded, wherever it lies
        identity["unet"] = {k: v for k, v in world_model.unet.config.items() if not k.startswith("_")}
    run = TrainingRun(
        args,
        accelerator,
        world_model,
        identity,
        learning_rate=plan.learning_rate,
        optimizer=plan.optimizer,
        unit="frames",
    )
    if run.was_finished("world_model"):
        push(args, plan, len(dataset), global_batch)
        return
    scheduler = make_scheduler()
    batches = run.batches(dataset, plan.batch_size, args.event_share)

    def train_step() -> None:
        """One optimizer step."""
        for micro in range(args.gradient_accumulation_steps):
            batch = run.arrived(batches)
            with accelerator.accumulate(run.model), accelerator.autocast():
                run.update(loss_of(run, batch, micro, preset, plan.batch_size, autoencoder, scheduler))
        run.finish_step(items=global_batch)

    if args.dry_run:
        from dry_run import describe

        describe(run, train_step, dataset, plan.train_paths, global_batch, autoencoder)
        return
    loaded = LoadedWorldModel(world_model, autoencoder, scheduler, config, None)
    validation = Validation(run, loaded, dataset, held_out, args.num_validation_windows, args.num_start_contexts)
    run.write(
        f"{sum(p.numel() for p in run.parameters) / 1e6:.1f}M parameters, {len(dataset)} windows, "
        f"global batch {global_batch}"
    )
    run.train(train_step, validation, measures_first=plan.world_model_folder is not None)
    run.write(
        f"wrote {validation.folder} after {run.step} steps; roll it out: python run_autoregressive.py "
        f"--dataset_basepath {args.dataset_basepath} --unet_model_folder {validation.folder}"
        f"{' --start_from_pixels' if args.from_pixels else ''}"
    )
    push(args, plan, len(dataset), global_batch)


def push(args: argparse.Namespace, plan: Plan, num_windows: int, global_batch: int) -> None:
    """With --push_to_hub, and once for all processes, uploads `world_model/` with a card, the last film among it."""
    if not args.push_to_hub or processes.rank() > 0:
        return
    from model_card import Training, world_model_card

    training = Training(
        data=plan.data,
        train_episodes=len(plan.train_paths),
        validation_episodes=len(plan.validation_paths),
        items=f"{num_windows:,} windows",
        settings={
            "windows per step": global_batch,
            "optimizer": f"{plan.optimizer}, peak rate {plan.learning_rate:g}, {args.lr_scheduler}",
            "precision": f"{args.mixed_precision} mixed" if args.mixed_precision != "no" else "float32",
            "seed": args.seed,
            **({"windows with an event": f"{args.event_share:.0%} of what is drawn"} if args.event_share else {}),
            **({} if args.context_noise is None else {"context noise": f"up to {args.context_noise:g}"}),
            **(
                {"own frames": f"up to {args.own_frames} in {args.own_frames_share:.0%} of steps"}
                if args.own_frames
                else {}
            ),
        },
        base=plan.pretrained,
        autoencoder=plan.autoencoder,
    )
    run_folder = Path(args.output_dir)
    card, pictures = world_model_card(run_folder, args.hub_model_id, training)
    hub_upload.push(args, run_folder / "world_model", card, pictures)


def make_plan(args: argparse.Namespace) -> Plan:
    """Settles flags, preset and folders. Raises BadInput before anything heavy is imported."""
    from dataset_folders import public_name
    from model_folders import find_autoencoder, find_motion, find_unet

    preset, world_model_folder = choose_preset(args)
    if args.context_noise is not None and args.context_noise > preset.max_noise_level:
        raise BadInput(
            f"--context_noise {args.context_noise:g}: preset {preset.name} knows levels up to "
            f"{preset.max_noise_level:g}; give one of them"
        )
    named = "adamw" if args.use_adamw else "adafactor" if args.use_adafactor else None
    optimizer, learning_rate, lr_scheduler = preset.optimization(named)
    args.lr_scheduler = args.lr_scheduler or lr_scheduler
    pretrained = args.pretrained_model_name_or_path or preset.pretrained
    data = public_name(args.dataset_basepath)
    train_paths, validation_paths = find_data(args, preset)
    autoencoder = choose_autoencoder(args, preset)
    find_autoencoder(autoencoder, preset)
    return Plan(
        preset=preset,
        data=data,
        batch_size=args.train_batch_size or preset.train_batch_size,
        optimizer=optimizer,
        learning_rate=args.learning_rate or learning_rate,
        train_paths=train_paths,
        validation_paths=validation_paths,
        autoencoder=autoencoder,
        pretrained=pretrained,
        unet_folder=find_unet(pretrained, preset) if pretrained and not world_model_folder else None,
        world_model_folder=world_model_folder,
        motion_folder=find_motion(args.motion_folder, preset) if args.motion_folder else None,
    )


def choose_preset(args: argparse.Namespace) -> tuple["Preset", Path | None]:
    """(preset, folder of the world model that --pretrained_model_name_or_path names, if it is one of ours).

    Raises BadInput where the two do not go together."""
    from model_folders import check_preset_fits, find_own_world_model, preset_of_world_model
    from presets import get_preset

    named = get_preset(args.preset) if args.preset else None
    source = args.pretrained_model_name_or_path
    folder = find_own_world_model(source) if source else None
    preset = named or (preset_of_world_model(folder) if folder else get_preset("small"))
    if args.frame_stride:
        preset = dataclasses.replace(preset, frame_stride=args.frame_stride)
    if folder:
        check_preset_fits(preset, folder)
        preset = dataclasses.replace(preset, pretrained=source)  # whose autoencoder serves where no other is at hand
    return preset, folder


def choose_autoencoder(args: argparse.Namespace, preset: "Preset") -> str | Path:
    """The one named, the one kept beside the latents, or the preset's pretrained one."""
    is_kept = not args.from_pixels and (Path(args.dataset_basepath) / "autoencoder").is_dir()
    return args.vae_folder_or_id or (None if is_kept else preset.pretrained) or args.dataset_basepath


def find_data(args: argparse.Namespace, preset: "Preset") -> tuple[list[Path], list[Path]]:
    """(train, validation) files. Raises BadInput before anything heavy is imported."""
    from dataset_folders import dataset_folder
    from episodes import (
        common_facts,
        find_episodes,
        find_latents,
        inspect_episode,
        rows_per_stride,
        split_episodes,
    )

    if args.from_pixels and not (args.vae_folder_or_id or preset.pretrained):
        raise BadInput(
            "--from_pixels needs --vae_folder_or_id, the autoencoder to encode with; finetune_vae.py trains one"
        )
    files = "episodes" if args.from_pixels else "latents"
    args.dataset_basepath = str(dataset_folder(args.dataset_basepath, files))
    paths = find_episodes(args.dataset_basepath) if args.from_pixels else find_latents(args.dataset_basepath)
    if args.from_pixels:
        infos = [inspect_episode(path) for path in paths]
        common_facts(infos)
        rows_per_stride(infos, preset.frame_stride)
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


if __name__ == "__main__":
    command_line.run(main, build_parser(), is_shared=True)
