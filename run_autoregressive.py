"""Stage 5: reads a world model and episodes or latents, writes a gif of the dream beside the real game, and figures.

The buffer is filled with frames of recorded play; from then on every frame is the model's own, led by the actions that
were recorded. The JSON next to the gif has every row of the measures for every frame.

    python run_autoregressive.py --dataset_basepath latents --unet_model_folder runs/world_model --episode_length 64
    python run_autoregressive.py --dataset_basepath episodes --start_from_pixels --unet_model_folder runs/world_model \\
        --vae_ft_model_folder runs/decoder --num_episodes 8 --episode_length 300 \\
        --num_inference_steps 4 --discretized_noise_level 1
"""

import argparse
from pathlib import Path

import command_line
from command_line import BadInput


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add(
        "--dataset_basepath",
        required=True,
        help="folder of latents, with --start_from_pixels of episode_*.parquet; or data set on the Hub",
    )
    add("--unet_model_folder", required=True, help="world-model folder, run folder or Hub id")
    add("--vae_ft_model_folder", help="tuned decoder: folder or Hub id; default: the world model's own")
    add(
        "--start_from_pixels", action="store_true", help="fill the buffer from recorded frames, not from stored latents"
    )
    add("--num_episodes", type=command_line.positive, default=1, help="rollouts, each from another place in the data")
    add("--episode_length", type=command_line.positive, default=64, help="frames to dream in each rollout")
    add("--num_inference_steps", type=command_line.positive, help="sampling steps per frame; default: the checkpoint's")
    add("--guidance_scale", type=float, help="guidance on the past frames, 1 is none; default: the checkpoint's")
    add(
        "--discretized_noise_level",
        type=int,
        default=0,
        help="noise bucket announced and added to the context: 0 (clean) to 9 (most)",
    )
    add("--legacy_alignment", choices=("before", "after"), default="before", help="for .pt files without metadata")
    add("--seed", type=command_line.not_negative, default=0, help="picks the places and the sampling noise")
    add("--out", default="rollouts", help="folder for rollout_<k>.gif and rollouts.json")
    add("--overwrite", action="store_true", help="replace the rollouts that --out already holds")
    command_line.add_device_flag(arguments)
    command_line.add_backend_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from dataset_folders import dataset_folder
    from episodes import (
        common_facts,
        find_episodes,
        find_latents,
        inspect_episode,
        rows_per_stride,
        split_episodes,
    )
    from model_folders import Geometry, autoencoder_of, find_autoencoder, find_world_model, read_world_model_config

    command_line.check_backend(args)
    folder = find_world_model(args.unet_model_folder)
    config = read_world_model_config(folder)
    find_autoencoder(args.vae_ft_model_folder or autoencoder_of(folder), geometry=Geometry(**config["geometry"]))

    files = "episodes" if args.start_from_pixels else "latents"
    args.dataset_basepath = str(dataset_folder(args.dataset_basepath, files))
    if args.start_from_pixels:
        paths = find_episodes(args.dataset_basepath)
        infos = [inspect_episode(path) for path in paths]
        common_facts(infos)
        rows_per_stride(infos, config.get("frame_stride", 1))
    else:
        paths = find_latents(args.dataset_basepath)
    train_paths, held_out_paths = split_episodes(paths)
    out = Path(args.out)
    if (out / "rollouts.json").exists() and not args.overwrite:
        raise BadInput(f"--out {out} already holds rollouts; say --overwrite, or name another folder")
    command_line.print_settings(args, episodes=len(paths), held_out_episodes=len(held_out_paths))

    from tqdm import tqdm

    from artifacts import write_json
    from data_loader import WindowDataset
    from engine import GameEngine
    from metrics import format_rows, measure_rows
    from pictures import side_by_side, write_gif
    from validation import check_dataset, has_real_frames, picture_rows, read_stretches, roll_out, training_mean

    engine = GameEngine.from_pretrained(
        args.unet_model_folder,
        vae_folder_or_id=args.vae_ft_model_folder,
        device=command_line.device_of_backend(args),
        backend=args.backend,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        discretized_noise_level=args.discretized_noise_level,
    )
    print(
        f"drawn by {engine.backend}, {engine.num_inference_steps} steps, guidance {engine.guidance_scale}", flush=True
    )
    settings = {
        "context_length": engine.config.context_length,
        "frame_stride": engine.config.frame_stride,
        "kind": "frames" if args.start_from_pixels else "latents",
        "legacy_alignment": args.legacy_alignment,
        "black_moments": engine.autoencoder.black_moments(),
        "with_scene": engine.world_model.memory is not None,
    }
    dataset = WindowDataset(held_out_paths or train_paths, **settings)
    memory = engine.world_model.memory
    check_dataset(dataset, engine.config, args.dataset_basepath, args.unet_model_folder, memory)
    starts = chosen_starts(dataset, args)
    constant = training_mean(WindowDataset(train_paths, **settings), engine.autoencoder)
    if constant is None or not has_real_frames(dataset, starts):
        raise BadInput(
            f"{args.dataset_basepath}: the episodes these latents were encoded from are gone, so there is no real game "
            "to show beside the dream; put them back, or use --start_from_pixels with other episodes"
        )
    names = {row["id"]: row["name"] for row in engine.config.action_table}
    reals, films, reports = [], [], []
    for number, index in enumerate(tqdm(starts, desc="rollouts", unit="rollout")):
        stretches = read_stretches(dataset, engine.autoencoder, [index], args.episode_length)
        dream = roll_out(engine, stretches, [args.seed + number])
        real, pictures = picture_rows(engine, stretches, dream, constant)
        recorded = [int(action) for action in stretches.actions[0, -args.episode_length :]]
        captions = [f"{frame + 1}  {names[action]}" for frame, action in enumerate(recorded)]
        write_gif(
            out / f"rollout_{number}.gif",
            side_by_side({"real": real[0], "dream": dream[0]}, captions),
            engine.config.frames_per_second,
        )
        reports.append(
            {
                "gif": f"rollout_{number}.gif",
                "window": index,
                "actions": recorded,
                "frames": per_frame(real[0], pictures),
            }
        )
        reals.append(real[0])
        films.append({name: frames[0] for name, frames in pictures.items()})
    import numpy as np

    rows = measure_rows(
        np.concatenate(reals), {name: np.concatenate([film[name] for film in films]) for name in films[0]}
    )
    write_json(
        out / "rollouts.json",
        {
            "settings": {
                **vars(args),
                "num_inference_steps": engine.num_inference_steps,
                "guidance_scale": engine.guidance_scale,
                "drawn_by": engine.backend.drawn_by,
            },
            "rows": rows,
            "rollouts": reports,
        },
    )
    print(f"over {args.num_episodes} rollouts of {args.episode_length} frames:\n{format_rows(rows)}")
    print(f"wrote {out}/rollout_0.gif and {out}/rollouts.json; look at the gif: the real game is left, the dream right")


def chosen_starts(dataset, args: argparse.Namespace) -> list[int]:
    """`--num_episodes` windows that --episode_length frames follow, picked by the seed. BadInput when too few."""
    from validation import choose_starts

    starts = choose_starts(dataset, args.num_episodes, args.episode_length, args.seed)
    if len(starts) < args.num_episodes:
        raise BadInput(
            f"{args.dataset_basepath}: {len(starts)} places with {args.episode_length} frames after them, "
            f"{args.num_episodes} wanted; lower --episode_length or --num_episodes, or record longer episodes"
        )
    return starts


def per_frame(real, pictures: dict) -> list[dict]:
    """For every frame of a rollout: {row: {psnr_db, detail}}, plain numbers."""
    from metrics import measure_rows

    return [
        measure_rows(real[[t]], {name: frames[0][[t]] for name, frames in pictures.items()}) for t in range(len(real))
    ]


if __name__ == "__main__":
    command_line.run(main, build_parser())
