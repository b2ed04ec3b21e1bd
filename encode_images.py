"""Stage 2: reads episodes and an autoencoder, writes latents: one latent_episode_<n>.pt per episode, in the same tree.

Frames stream through, so memory does not grow with an episode's length. The same command again encodes only what is
missing or changed (rows or bytes of the episode, the encoder, the stride). Several GPUs share the episodes under
`accelerate launch`, or with --num_chunks: one process each, with its own --chunk_id and --gpu_id. The autoencoder is
kept beside the latents.

    python encode_images.py --dataset_basepath episodes --save_dir_path latents --model_folder_or_id runs/autoencoder
    python encode_images.py --dataset_basepath episodes --save_dir_path latents --model_folder_or_id runs/autoencoder \\
        --batch_size 64 --dtype bf16 --dataloader_num_workers 8 --num_chunks 3 --chunk_id 0 --gpu_id 0
"""

import argparse
import dataclasses
import glob
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import command_line
import processes
from artifacts import check_writable, remove_leftovers, replacing_folder, sha256_of_tensors
from command_line import BadInput
from dataset_folders import dataset_folder
from episodes import (
    BLACK_NAME,
    Episode,
    EpisodeInfo,
    common_facts,
    find_episodes,
    held_strides,
    inspect_episode,
    rows_per_stride,
)
from model_folders import find_autoencoder
from presets import Preset, get_preset

if TYPE_CHECKING:
    from model import Autoencoder

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
AUTOENCODER_NAME = "autoencoder"


def build_parser() -> argparse.ArgumentParser:
    arguments = command_line.parser(__doc__)
    add = arguments.add_argument
    add("--dataset_basepath", type=Path, required=True, help="folder of episode_*.parquet, or data set on the Hub")
    add("--save_dir_path", type=Path, required=True, help="folder for the latents")
    add(
        "--model_folder_or_id",
        help="autoencoder folder or Hub id, see finetune_vae.py; default: Stable Diffusion 1.4's, for preset sd14",
    )
    add(
        "--preset",
        help="sd14, small, smoke, seed, gamengen_repro (published models), or a .json file based on one of them; "
        "default: the one the autoencoder was made for",
    )
    add("--frame_stride", type=command_line.positive, help="tics between two frames; default: the preset's")
    add(
        "--thin",
        type=thinning,
        metavar="FOLDER=N",
        help="of the episodes under this folder of the data set encode every N-th only; what lies under "
        "--save_dir_path already stays; default: all",
    )
    add("--all_tics", action="store_true", help="encode every recorded tic, not only those of the preset's stride")
    add("--batch_size", type=command_line.positive, default=32, help="frames through the autoencoder at a time")
    add(
        "--dataloader_num_workers",
        type=command_line.not_negative,
        default=2,
        help="threads that decode pictures; 0: the main one",
    )
    add("--dtype", choices=[*DTYPES, *DTYPES.values()], default="fp32", help="precision of the autoencoder")
    add("--num_chunks", type=command_line.positive, default=1, help="processes that share the episodes")
    add("--chunk_id", type=command_line.not_negative, default=0, help="which share this process takes, from 0")
    add("--gpu_id", type=command_line.not_negative, help="CUDA device number to use; default: the first")
    command_line.add_device_flag(arguments)
    return arguments


def thinning(text: str) -> tuple[str, int]:
    """argparse type: FOLDER=N, N at least 1."""
    folder, _, number = text.rpartition("=")
    if not folder or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not FOLDER=N, e.g. training/train=4")
    return folder, int(number)


@dataclass
class Job:
    """One episode to encode: its rows to store, and where the latents go."""

    info: EpisodeInfo
    rows: np.ndarray  # (N,) ascending
    columns: dict[str, np.ndarray]  # actions, tics, held, (N,) each; events, depth and poses, where recorded
    camera: dict[str, float] | None  # of depth and poses
    output: Path


def main(args: argparse.Namespace) -> None:
    args.dataset_basepath = dataset_folder(args.dataset_basepath, "episodes")
    preset = choose_preset(args)
    if not 0 <= args.chunk_id < args.num_chunks:
        known = f"0..{args.num_chunks - 1} with --num_chunks {args.num_chunks}"
        raise BadInput(f"--chunk_id {args.chunk_id}: it is one of {known}")
    check_writable("--save_dir_path", args.save_dir_path)
    infos = inspect_all(args.dataset_basepath)
    if args.thin:
        infos = thinned(infos, args.dataset_basepath, *args.thin)
    rows = rows_per_stride(infos, preset.frame_stride)
    step = 1 if args.all_tics else rows
    chunk = infos[args.chunk_id :: args.num_chunks]
    mine = chunk[processes.rank() :: processes.count()]

    device = choose_device(args)
    command_line.print_settings(
        args, preset=preset.name, device=device, episodes=len(infos), episodes_of_this_chunk=len(chunk),
        tics_per_stored_row=step * infos[0].tics_per_row,
    )  # fmt: skip
    import torch

    from model import load_autoencoder

    autoencoder = load_autoencoder(args.model_folder_or_id, preset=preset, device=device)
    facts = encoder_facts(autoencoder, infos[0], step)  # before rounding to --dtype: the weights as stored
    is_first = args.chunk_id == 0 and processes.rank() == 0
    if is_first:
        keep_autoencoder(autoencoder, args.save_dir_path / AUTOENCODER_NAME)
    autoencoder.to(dtype=getattr(torch, DTYPES.get(args.dtype, args.dtype)), memory_format=torch.channels_last)
    if is_first:
        keep_black(autoencoder, args.save_dir_path, facts["encoder_sha256"])
    wanted = [(info, output_path(info, args)) for info in mine]
    pending = [(info, output) for info, output in wanted if not is_current(output, {**facts, **source_facts(info)})]
    frames = encode_all(pending, autoencoder, facts, step, args.batch_size, args.dataloader_num_workers)
    done = processes.gathered((len(pending), frames))
    if processes.rank() > 0:
        return
    files, frames = (sum(each) for each in zip(*done, strict=True))
    others = f"; chunk {args.chunk_id} of {args.num_chunks}, run the others too" if args.num_chunks > 1 else ""
    print(
        f"wrote {files} of {len(chunk)} latent files ({frames} frames) under {args.save_dir_path}{others}; next: "
        f"python train_text_to_image.py --dataset_basepath {args.save_dir_path} --output_dir runs/world_model "
        f"--preset {args.preset or preset.name}"
    )


def choose_preset(args: argparse.Namespace) -> Preset:
    """The preset named, or the one the autoencoder was made for. Raises BadInput without importing torch."""
    named = get_preset(args.preset) if args.preset else None
    if not args.model_folder_or_id:
        named = named or get_preset("sd14")
        if named.pretrained is None:
            raise BadInput(
                f"--preset {named.name} needs --model_folder_or_id; finetune_vae.py --train_from_scratch makes one"
            )
        args.model_folder_or_id = named.pretrained
    _, geometry = find_autoencoder(args.model_folder_or_id, named)
    preset = named or get_preset(geometry.preset)
    return dataclasses.replace(preset, frame_stride=args.frame_stride) if args.frame_stride else preset


def inspect_all(dataset_basepath: Path) -> list[EpisodeInfo]:
    """Every episode's footer, in order. Raises BadInput for the first broken one, or when they do not go together."""
    infos = [inspect_episode(path) for path in find_episodes(dataset_basepath)]
    common_facts(infos)
    return infos


def thinned(infos: list[EpisodeInfo], dataset_basepath: Path, folder: str, number: int) -> list[EpisodeInfo]:
    """All episodes, of those under `folder` every `number`-th. Raises BadInput where there is none, or no `eval`
    folder: what is held out would then be a matter of counting, and come out differently for latents."""
    inside = [info for info in infos if info.path.is_relative_to(dataset_basepath / folder)]
    if not inside:
        raise BadInput(f"--thin {folder}={number}: no episode lies under {dataset_basepath / folder}")
    if not any("eval" in info.path.relative_to(dataset_basepath).parts[:-1] for info in infos):
        raise BadInput(f"--thin {folder}={number}: no folder `eval` is held out; record some with --split eval first")
    kept = {info.path for info in inside[::number]}
    return [info for info in infos if info.path in kept or not info.path.is_relative_to(dataset_basepath / folder)]


def choose_device(args: argparse.Namespace) -> str:
    """`--device`, its number from --gpu_id or, of several processes, from this one's place on its machine.

    Raises BadInput when that GPU is not there, or when a number is given for what is no GPU or for several processes.
    """
    device = command_line.resolve_device(args.device)
    if args.gpu_id is not None and processes.count() > 1:
        raise BadInput(f"--gpu_id {args.gpu_id}: each of the {processes.count()} processes takes its own; leave it out")
    number = args.gpu_id
    if number is None and device == "cuda" and processes.count() > 1:
        number = processes.local_rank()
    if number is None:
        return device
    import torch

    if device != "cuda":
        raise BadInput(f"--gpu_id {number}: the device is {device}; leave it out, or use --device cuda")
    if number >= torch.cuda.device_count():
        which = f"--gpu_id {number}" if args.gpu_id is not None else f"process {number} of this machine"
        raise BadInput(f"{which}: there are {torch.cuda.device_count()} GPUs, numbered from 0; use fewer processes")
    return f"cuda:{number}"


def output_path(info: EpisodeInfo, args: argparse.Namespace) -> Path:
    from latents import latent_path

    return latent_path(info.path, args.dataset_basepath, args.save_dir_path)


def encoder_facts(autoencoder: "Autoencoder", info: EpisodeInfo, step: int) -> dict[str, Any]:
    """The metadata that all latents of this run share."""
    width, height = autoencoder.frame_size
    return {
        "tics_per_row": step * info.tics_per_row,
        "tics_per_second": info.tics_per_second,
        "action_table": info.action_table,
        "encoder_sha256": autoencoder.encoder_sha256,
        "posterior": autoencoder.posterior,
        "scaling_factor": autoencoder.scaling_factor,
        "preset": autoencoder.preset_name,
        "frame_width": width,
        "frame_height": height,
    }


def source_facts(info: EpisodeInfo) -> dict[str, Any]:
    return {"source": str(info.path.resolve()), "source_rows": info.rows, "source_bytes": info.file_bytes}


def is_current(output: Path, metadata: dict[str, Any]) -> bool:
    """Whether the latents there were made from the same episode by the same encoder at the same stride."""
    from latents import open_latents

    if not output.is_file():
        return False
    try:
        stored = open_latents(output)["metadata"]
    except BadInput:
        return False
    decisive = ("source_rows", "source_bytes", "encoder_sha256", "tics_per_row")  # a tree may move: not `source`
    return all(stored.get(name) == metadata[name] for name in decisive)


def keep_autoencoder(autoencoder: "Autoencoder", folder: Path) -> None:
    """Copies the autoencoder beside its latents, so that the next stages find it; leaves an equal one alone."""
    from model import load_autoencoder

    remove_leftovers(folder.parent, folder.name)
    if folder.is_dir():
        try:
            if fingerprint(load_autoencoder(folder)) == fingerprint(autoencoder):
                return
        except BadInput:
            pass  # an incomplete one is replaced
    with replacing_folder(folder) as temporary:
        autoencoder.save(temporary)


def fingerprint(autoencoder: "Autoencoder") -> str:
    """Of encoder and decoder; `encoder_sha256` covers the encoder and the geometry alone."""
    return sha256_of_tensors(autoencoder.vae.state_dict(), {"encoder": autoencoder.encoder_sha256})


def keep_black(autoencoder: "Autoencoder", save_dir_path: Path, encoder_sha256: str) -> None:
    """Writes the moments of a black frame at the root of the tree, unless they are there."""
    import torch

    from latents import open_latents, save_latents

    path = save_dir_path / BLACK_NAME
    remove_leftovers(path.parent, path.name)
    if path.is_file() and open_latents(path)["metadata"].get("encoder_sha256") == encoder_sha256:
        return
    moments = autoencoder.black_moments().to("cpu", torch.float16).clone()
    save_latents(path, moments, {"encoder_sha256": encoder_sha256})


def plan(info: EpisodeInfo, episode: Episode, autoencoder: "Autoencoder", step: int, output: Path) -> Job:
    """Which rows of an episode to store, every `step`-th of each of its games, and what the file says of them."""
    from scenes import camera_of, has_scene, read_scene

    ends = [*episode.starts[1:], info.rows]
    games = [np.arange(start, end, step) for start, end in zip(episode.starts, ends, strict=True)]
    rows = np.concatenate(games)
    tics = np.concatenate([(game - game[0]) * info.tics_per_row for game in games])
    held = held_strides(episode.actions, episode.starts, step)[rows]
    columns = {"actions": episode.actions[rows], "tics": tics, "held": held}
    if (events := episode.events(rows)) is not None:
        columns["events"] = events
    camera = None
    if has_scene(episode):
        geometry = autoencoder.geometry
        camera = camera_of(info.metadata["camera"], geometry)
        columns |= read_scene(episode, rows, geometry, tuple(autoencoder.black_moments().shape[-2:]))
    return Job(info, rows, columns, camera, output)


def encode_all(
    pending: list[tuple[EpisodeInfo, Path]],
    autoencoder: "Autoencoder",
    facts: dict[str, Any],
    step: int,
    batch_size: int,
    num_workers: int,
) -> int:
    """Encodes episode after episode, each file appearing when it is whole. Returns how many frames that were."""
    from tqdm import tqdm

    from latents import save_latents

    batches = decoded_ahead(encoded_batches(pending, autoencoder, step, batch_size), num_workers)
    frames = 0
    with tqdm(
        total=sum(-(-info.rows // step) for info, _ in pending),
        unit="frame",
        desc="encode",
        mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file is not flooded
        disable=processes.rank() > 0,
    ) as bar:
        for info, output in pending:
            output.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(output.parent, glob.escape(output.name))  # of this very file; others write other files
            bar.set_postfix_str(info.path.name)
            with tempfile.TemporaryFile(dir=output.parent) as scratch:
                job, shape = encode_episode(batches, autoencoder, scratch, bar.update)
                metadata = {**source_facts(info), **facts, **({"camera": job.camera} if job.camera else {})}
                save_latents(output, mapped_moments(scratch, shape), metadata, **tensors(job))
            frames += len(job.rows)
    return frames


def encoded_batches(
    pending: list[tuple[EpisodeInfo, Path]], autoencoder: "Autoencoder", step: int, batch_size: int
) -> Iterator[tuple[Job, bool, Callable[[], np.ndarray]]]:
    """(job, whether its last batch, what decodes the batch's pictures), all episodes in one stream."""
    for info, output in pending:
        episode = Episode(info.path)
        job = plan(info, episode, autoencoder, step, output)
        done = 0
        for encoded in episode.iter_encoded(job.rows, batch_size):
            rows = job.rows[done : done + len(encoded)]
            done += len(encoded)

            yield job, done == len(job.rows), partial(episode.decode, encoded, rows)
        episode.close()


def decoded_ahead(
    batches: Iterable[tuple[Job, bool, Callable[[], np.ndarray]]], num_workers: int
) -> Iterator[tuple[Job, bool, np.ndarray]]:
    """Decodes in threads, in order, at most one batch per thread and one more ahead: so much is resident, no more."""
    if num_workers == 0:
        for job, is_last, decode in batches:
            yield job, is_last, decode()
        return
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque = deque()
        for job, is_last, decode in batches:
            waiting.append((job, is_last, pool.submit(decode)))
            if len(waiting) > num_workers:
                job, is_last, frames = waiting.popleft()
                yield job, is_last, frames.result()
        while waiting:
            job, is_last, frames = waiting.popleft()
            yield job, is_last, frames.result()


def encode_episode(
    batches: Iterator[tuple[Job, bool, np.ndarray]],
    autoencoder: "Autoencoder",
    scratch: Any,
    report: Callable[[int], object],
) -> tuple[Job, tuple[int, ...]]:
    """Takes one episode off the stream; its moments go to a file, not to memory. Returns (job, shape (N, M, h, w))."""
    import torch

    for job, is_last, frames in batches:  # frames: uint8 (n, H0, W0, 3)
        with torch.inference_mode():
            moments = autoencoder.encode_pixels(autoencoder.frames_to_pixels(frames)).to("cpu", torch.float16)
        if not moments.isfinite().all():
            raise BadInput(f"{job.info.path}: its latents are not finite numbers; use another --dtype (fp32, bf16)")
        scratch.write(moments.contiguous().numpy().tobytes())  # (n, M, h, w)
        report(len(frames))
        if is_last:
            return job, (len(job.rows), *moments.shape[1:])
    raise RuntimeError("the stream of batches ended within an episode")


def mapped_moments(scratch: Any, shape: tuple[int, ...]) -> Any:
    """The scratch file as a tensor that stays on disk."""
    import torch

    scratch.flush()
    return torch.from_numpy(np.memmap(scratch, dtype=np.float16, mode="r+", shape=shape))


def tensors(job: Job) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(column) for name, column in job.columns.items()}


if __name__ == "__main__":
    command_line.run(main, build_parser(), is_shared=True)
