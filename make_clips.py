"""Reads a world model and episodes, writes pairs of short films, real game and dream, for the blind test of play.py.

Both films of a pair begin after the same recorded frames and are led by the same recorded keys; the dream sees no real
frame after that. Shown are the frames that follow, of the real game as recorded, at the model's frame size, not passed
through its autoencoder (as in GameNGen sec. 5.1), both in the same JPEG quality. --results prints what raters said.

    python make_clips.py --model_folder runs/small/world_model_run --dataset_basepath episodes --output_dir clips \\
        --num_pairs 5
    python make_clips.py --model_folder runs/sd14 --dataset_basepath episodes --output_dir clips
    python play.py --model_folder runs/sd14 --clips clips
    python make_clips.py --results clips
"""

import argparse
import math
from pathlib import Path

import command_line
from command_line import BadInput


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add("--results", metavar="DIR", help="print what the raters of these clips said, and make none")
    add("--model_folder", help="world-model folder, run folder or Hub id")
    add("--dataset_basepath", help="folder of episode_*.parquet; or data set on the Hub")
    add("--output_dir", help="folder for the films and clips.json; the same command goes on where it stopped")
    add("--vae_ft_model_folder", help="tuned decoder: folder or Hub id; default: the world model's own")
    add(
        "--num_pairs",
        type=command_line.positive,
        default=65,
        help="pairs of each length; the paper showed 130 of two lengths",
    )
    add(
        "--seconds",
        type=command_line.positive_float,
        nargs="+",
        default=[1.6, 3.2],
        help="lengths of clips, seconds of play",
    )
    add("--num_inference_steps", type=command_line.positive, help="sampling steps per frame; default: the checkpoint's")
    add("--guidance_scale", type=float, help="guidance on the past frames, 1 is none; default: the checkpoint's")
    add("--discretized_noise_level", type=int, default=0, help="noise bucket of the context: 0 (clean) to 9 (most)")
    add("--seed", type=command_line.not_negative, default=0, help="picks the places and the sampling noise")
    command_line.add_device_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    if args.results:
        print_results(args.results)
        return
    for flag in ("model_folder", "dataset_basepath", "output_dir"):
        if getattr(args, flag) is None:
            raise BadInput(f"--{flag} is missing; name it, or say --results DIR to read the answers to a set of clips")
    from artifacts import check_writable, remove_leftovers
    from clip_sets import CLIPS_NAME, ClipSet, read_clip_set
    from dataset_folders import dataset_folder
    from episodes import common_facts, find_episodes, inspect_episode, rows_per_stride, split_episodes
    from model_folders import Geometry, autoencoder_of, find_autoencoder, find_world_model, read_world_model_config

    folder = find_world_model(args.model_folder)
    config = read_world_model_config(folder)
    find_autoencoder(args.vae_ft_model_folder or autoencoder_of(folder), geometry=Geometry(**config["geometry"]))
    paths = find_episodes(dataset_folder(args.dataset_basepath, "episodes"))
    infos = [inspect_episode(path) for path in paths]
    common_facts(infos)
    rows_per_stride(infos, config.get("frame_stride", 1))
    train_paths, held_out_paths = split_episodes(paths)
    out = Path(args.output_dir)
    check_writable("--output_dir", out)
    known = read_clip_set(out, is_whole=False) if (out / CLIPS_NAME).exists() else None
    settings = {name: value for name, value in vars(args).items() if name not in ("results", "output_dir", "device")}
    settings["trained_steps"] = config.get("trained_steps")
    if known is not None and known.settings != settings:
        name = next(name for name in settings if known.settings.get(name) != settings[name])
        was = known.settings.get(name)
        raise BadInput(f"--output_dir {out} holds clips made with --{name} {was}; say the same, or name another folder")
    lengths = sorted(set(args.seconds))
    command_line.print_settings(args, episodes=len(paths), held_out_episodes=len(held_out_paths))
    if not held_out_paths:
        print("no held-out episodes: these were trained on, which flatters the dream", flush=True)

    from tqdm import tqdm

    from data_loader import WindowDataset
    from engine import GameEngine
    from validation import check_dataset, choose_starts, read_stretches, roll_out

    engine = GameEngine.from_pretrained(
        args.model_folder,
        vae_folder_or_id=args.vae_ft_model_folder,
        device=command_line.resolve_device(args.device),
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        discretized_noise_level=args.discretized_noise_level,
    )
    print(f"device: {engine.device}, {engine.num_inference_steps} steps, guidance {engine.guidance_scale}", flush=True)
    dataset = WindowDataset(
        held_out_paths or train_paths,
        context_length=engine.config.context_length,
        frame_stride=engine.config.frame_stride,
        kind="frames",
        black_moments=engine.autoencoder.black_moments(),
        with_scene=engine.world_model.memory is not None,
    )
    check_dataset(dataset, engine.config, args.dataset_basepath, args.model_folder, engine.world_model.memory)
    rate = engine.config.frames_per_second
    places: list[tuple[float, int, int]] = []  # seconds, frames, window
    for number, seconds in enumerate(lengths):
        frames = max(1, math.floor(seconds * rate + 0.5))
        starts = choose_starts(dataset, args.num_pairs, frames, args.seed + number)
        if len(starts) < args.num_pairs:
            raise BadInput(
                f"{args.dataset_basepath}: {len(starts)} places with {frames} frames ({seconds:g} s) after them, "
                f"{args.num_pairs} wanted; lower --num_pairs or --seconds, or record longer episodes"
            )
        places += [(seconds, frames, start) for start in starts]
    geometry = engine.config.geometry
    clips = known or ClipSet(out, geometry.frame_width, geometry.frame_height, rate, len(places), settings)
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    bar = tqdm(total=len(places), initial=len(clips.pairs), desc="clips", unit="pair", disable=None)
    for number in range(len(clips.pairs), len(places)):
        seconds, frames, index = places[number]
        stretches = read_stretches(dataset, engine.autoencoder, [index], frames)
        dream = roll_out(engine, stretches, [args.seed + number])[0]
        episode, row = where(dataset, index)
        clips.add(stretches.real[0, 1:], dream, seconds, episode, row)
        bar.update()
    bar.close()
    print(
        f"wrote {len(clips.pairs)} pairs to {out}; let people rate them: "
        f"python play.py --model_folder {args.model_folder} --clips {out}"
    )


def where(dataset, index: int) -> tuple[str, int]:
    """(the episode's path, the row of a window's first frame to predict)."""
    item = dataset.stretch(index, 1)
    return str(dataset.paths[item["episode"]]), int(item["rows"][-1])


def print_results(folder: str) -> None:
    """One line per length of clips."""
    from blind_test import read_answers, results
    from clip_sets import read_clip_set

    clips = read_clip_set(folder, is_whole=False)
    answers, broken = read_answers(clips)
    if broken:
        print(f"{broken} lines of the answers are none of ours and are left out")
    for result in results(clips, answers):
        print(result)
    print("GameNGen, sec. 5.1 (10 raters, 130 clips): 58% at 1.6 s, 60% at 3.2 s")


if __name__ == "__main__":
    command_line.run(main, build_parser())
