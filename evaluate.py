"""Measures a finished world model on held-out play: reads a model and episodes, writes evaluation.json and a table.

The autoencoder's ceiling; one step ahead beside copy-last, constant and ceiling; rollouts led by the recorded actions,
with detail and Fréchet distance; obedience to the keys beside the real game. Each figure stands beside its goal.
Finished pieces are kept: the same command goes on where it stopped.

    python evaluate.py --model_folder assets/models/small --episodes episodes --output_folder evaluation
    python evaluate.py --model_folder runs/world_model --episodes episodes --output_folder evaluation \\
        --num_windows 1024 --rollout_frames 64 2000 --num_rollouts 64 8 --num_contexts 128
"""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
from command_line import BadInput

if TYPE_CHECKING:
    from data_loader import WindowDataset
    from model import LoadedWorldModel

RESULT_NAME = "evaluation.json"
ONE_STEP_STEPS = (1, 2, 4)  # those of them that the model was trained for
PIECES = ("ceiling", "one_step", "rollouts", "obedience")
NOT_COMPARED = ("output_folder", "device", "pieces", "episodes", "model_folder", "vae_ft_model_folder")


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add, positive = arguments.add_argument, command_line.positive
    add("--model_folder", required=True, help="world-model folder, run folder or Hub id")
    add(
        "--episodes",
        required=True,
        help="folder of episode_*.parquet, or data set on the Hub; what lies below `eval` is held out",
    )
    add("--output_folder", type=Path, required=True, help=f"folder for {RESULT_NAME}")
    add("--vae_ft_model_folder", help="tuned decoder: folder or Hub id; default: the world model's own")
    add("--pieces", nargs="+", choices=PIECES, default=list(PIECES), help="what to measure now")
    add("--num_windows", type=positive, default=256, help="windows one step is predicted from; 4 times as many frames")
    add("--one_step_steps", type=positive, nargs="+", help="sampling steps, compared one step ahead; default: 1 2 4")
    add("--rollout_frames", type=positive, nargs="+", default=[64, 2000], help="lengths of rollouts, in model frames")
    add("--num_rollouts", type=positive, nargs="+", default=[32, 4], help="rollouts of each length; the last counts on")
    add("--num_contexts", type=positive, default=64, help="contexts each key is held from, at most")
    add("--hold_frames", type=positive, default=8, help="model frames that a key is held for")
    add("--num_inference_steps", type=positive, help="sampling steps of rollouts and keys; default: the checkpoint's")
    add("--guidance_scale", type=float, help="guidance on the past frames, 1 is none; default: the checkpoint's")
    add("--seed", type=command_line.not_negative, default=0, help="of the sampling noise")
    command_line.add_device_flag(arguments)
    command_line.add_backend_flag(arguments)
    return arguments


def main(args: argparse.Namespace) -> None:
    from artifacts import check_writable
    from dataset_folders import dataset_folder
    from episodes import common_facts, find_episodes, inspect_episode, rows_per_stride
    from model_folders import Geometry, autoencoder_of, find_autoencoder, find_world_model, read_world_model_config

    command_line.check_backend(args)
    folder = find_world_model(args.model_folder)
    config = read_world_model_config(folder)
    autoencoder = args.vae_ft_model_folder or autoencoder_of(folder)
    vae_folder, _ = find_autoencoder(autoencoder, geometry=Geometry(**config["geometry"]))
    args.episodes = str(dataset_folder(args.episodes, "episodes"))
    paths = [path.absolute() for path in find_episodes(args.episodes)]
    train_paths, held_out_paths = divide(paths)
    infos = [inspect_episode(path) for path in paths]
    common_facts(infos)
    rows_per_stride(infos, config.get("frame_stride", 1))
    if len(args.num_rollouts) > len(args.rollout_frames):
        raise BadInput(
            f"--num_rollouts {' '.join(map(str, args.num_rollouts))}: more numbers than --rollout_frames has lengths"
        )
    if len(set(args.rollout_frames)) < len(args.rollout_frames):
        raise BadInput(f"--rollout_frames {' '.join(map(str, args.rollout_frames))}: name each length once")
    check_writable("--output_folder", args.output_folder)
    identity = {name: value for name, value in vars(args).items() if name not in NOT_COMPARED}
    from motion import MOVER_VERSION  # torch takes its time, so after what can be refused without

    identity |= {
        "model": fingerprint([folder, vae_folder]),
        "play": fingerprint(held_out_paths),
        "mover": MOVER_VERSION,
    }
    pieces = finished_pieces(args.output_folder / RESULT_NAME, identity)
    settings = {"episodes": len(paths), "held_out_episodes": len(held_out_paths)}
    command_line.print_settings(args, **settings, already_measured=" ".join(pieces) or "nothing")

    if missing := [name for name in wanted_pieces(args) if name not in pieces]:
        import torch

        from model import load_world_model

        device = command_line.device_of_backend(args)
        loaded = load_world_model(folder, vae_folder_or_id=args.vae_ft_model_folder, device=device)
        with torch.no_grad():
            measured = measures(args, loaded, train_paths, held_out_paths)
            for name in missing:
                pieces[name] = measured[name]()
                write_result(args.output_folder / RESULT_NAME, args, identity, pieces)

    from evaluate_report import report

    print(report({name: pieces[name] for name in order(args) if name in pieces}))
    print(f"wrote {args.output_folder / RESULT_NAME}; next: python play.py --model_folder {args.model_folder}")


def divide(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """(train, held out): as the trainers divide; but a folder within `eval` is all held out, as is a single file."""
    from episodes import split_episodes

    if all("eval" in path.parts[:-1] for path in paths):
        return [], paths
    train, held_out = split_episodes(paths)
    return (train, held_out) if held_out else ([], train)


def wanted_pieces(args: argparse.Namespace) -> list[str]:
    """Names of what is to be measured: a rollout piece for each length."""
    return [name for name in order(args) if name.partition("_of_")[0] in args.pieces]


def order(args: argparse.Namespace) -> list[str]:
    """Names of all pieces, as they are printed."""
    return ["ceiling", "one_step", *(f"rollouts_of_{length}" for length in args.rollout_frames), "obedience"]


def fingerprint(paths: list[Path]) -> str:
    """SHA-256 of the names and sizes of files, and of the contents of those under 64 MiB that are no episodes."""
    digest = hashlib.sha256()
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    for file in files:
        if file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            if size < 2**26 and file.suffix != ".parquet":
                digest.update(file.read_bytes())
    return digest.hexdigest()


def finished_pieces(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run with the same settings measured. Raises BadInput naming the first setting that differs."""
    from artifacts import read_json

    if not path.exists():
        return {}
    found = read_json(path)
    known = found.get("identity")
    if not isinstance(known, dict) or not isinstance(found.get("pieces"), dict):
        raise BadInput(f"{path} is not an evaluation; choose another --output_folder")
    for name, value in identity.items():
        if known.get(name) != value:
            what = f"was measured with {name} {known.get(name)}, this run has {value}"
            raise BadInput(f"{path} {what}; choose another --output_folder, or repeat the flags")
    return found["pieces"]


def write_result(path: Path, args: argparse.Namespace, identity: dict[str, Any], pieces: dict[str, Any]) -> None:
    """Writes what is measured so far, with the goals that it decides."""
    from artifacts import write_json
    from evaluate_report import goals

    decided = [{**asdict(goal), "is_reached": goal.is_reached} for goal in goals(pieces)]
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    write_json(path, {"settings": settings, "identity": identity, "pieces": pieces, "goals": decided})


def measures(
    args: argparse.Namespace, loaded: "LoadedWorldModel", train_paths: list[Path], held_out_paths: list[Path]
) -> dict[str, Callable[[], dict]]:
    """The pieces by name, each a function that measures it under a progress bar."""
    from tqdm import tqdm

    import held_out_measures
    from backends import build_backend
    from data_loader import WindowDataset, evenly
    from engine import GameEngine
    from obedience import measure_obedience, number_of_contexts
    from validation import check_dataset, training_mean

    memory = loaded.world_model.memory

    def opened(paths: list[Path]) -> "WindowDataset":
        return WindowDataset(
            paths,
            context_length=loaded.config.context_length,
            frame_stride=loaded.config.frame_stride,
            kind="frames",
            black_moments=loaded.autoencoder.black_moments(),
            with_scene=memory is not None,
        )

    held_out = opened(held_out_paths)
    check_dataset(held_out, loaded.config, args.episodes, args.model_folder, memory)
    constant = training_mean(opened(train_paths) if train_paths else held_out, loaded.autoencoder)

    drawing = build_backend(args.backend, loaded)

    def engine(steps: int | None) -> GameEngine:
        built = GameEngine(loaded, num_inference_steps=steps, guidance_scale=args.guidance_scale)
        built.backend = drawing  # one for all
        return built

    played = engine(args.num_inference_steps)
    possible = [steps for steps in ONE_STEP_STEPS if steps in loaded.config.possible_steps]
    engines = {steps: engine(steps) for steps in args.one_step_steps or possible}
    print(f"drawn by {drawing}, {played.num_inference_steps} steps, guidance {played.guidance_scale}", flush=True)
    windows = evenly(len(held_out), args.num_windows)

    def measured_ceiling() -> dict:
        count = min(len(held_out), 4 * args.num_windows)
        with tqdm(total=count, desc="ceiling", unit="frame") as bar:
            return held_out_measures.ceiling(played, held_out, count, bar.update)

    def measured_one_step() -> dict:
        with tqdm(total=len(windows), desc="one step", unit="window") as bar:
            return held_out_measures.one_step(engines, held_out, windows, constant, args.seed, bar.update)

    def measured_rollouts(length: int, number: int) -> dict:
        with tqdm(total=length * number, desc=f"rollouts of {length}", unit="frame") as bar:
            return held_out_measures.rollouts(played, held_out, length, number, constant, args.seed, bar.update)

    def measured_obedience() -> dict:
        total = number_of_contexts(args.num_contexts)
        with tqdm(total=total, desc="keys", unit="context") as bar:
            return measure_obedience(played, held_out, args.num_contexts, args.hold_frames, args.seed, bar.update)

    pieces: dict[str, Callable[[], dict]] = {"ceiling": measured_ceiling, "one_step": measured_one_step}
    for place, length in enumerate(args.rollout_frames):
        number = args.num_rollouts[min(place, len(args.num_rollouts) - 1)]
        pieces[f"rollouts_of_{length}"] = lambda length=length, number=number: measured_rollouts(length, number)
    return {**pieces, "obedience": measured_obedience}


if __name__ == "__main__":
    command_line.run(main, build_parser())
