"""Runs of the real scripts that several test files look at, each made once in a session below pytest's own folder.

The game is the toy world's square; the numbers are far too small to learn it. Used by the tests only.
"""

import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from command import command_of, environment, succeed
from episode_factory import write_episode
from tiny_models import ACTION_TABLE, saved, tiny_autoencoder
from toy_world import HEIGHT, MAX_X, STEP_PX, WIDTH, moved, picture

ROWS = 24
HALF_STEPS, STEPS = 12, 24
FIXED = ("--max_train_steps", STEPS, "--checkpointing_steps", HALF_STEPS, "--lr_warmup_steps", 2)
FIXED += ("--report_to", "none", "--dataloader_num_workers", 0, "--device", "cpu")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its whole command line, what it printed."""

    folder: Path
    words: tuple[object, ...]
    stdout: str


def write_play(path: Path, rows: int, seed: int, **metadata: object) -> Path:
    """An episode of the toy world, played at random: `rows` pictures and the actions chosen on them."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 3, rows)
    places = [int(rng.integers(MAX_X // STEP_PX + 1)) * STEP_PX]
    for action in actions[:-1]:
        places.append(moved(places[-1], int(action)))
    facts = {"action_table": list(ACTION_TABLE), "tics_per_second": 10.0, "tics_per_step": 1, **metadata}
    frames = [picture(x) for x in places]
    return write_episode(path, actions, frames=frames, width=WIDTH, height=HEIGHT, **facts)


@functools.cache
def episodes(base: Path) -> Path:
    """Three episodes to train on and one to validate on."""
    folder = base / "play"
    for number in range(3):
        write_play(folder / f"train/level_0/random/episode_{number:06d}.parquet", ROWS, seed=number)
    write_play(folder / "eval/level_0/random/episode_000000.parquet", ROWS, seed=9)
    return folder


@functools.cache
def random_autoencoder(base: Path) -> Path:
    """The folder of an untrained `smoke` autoencoder."""
    return saved(tiny_autoencoder(), base / "random_autoencoder")


@functools.cache
def random_latents(base: Path) -> Path:
    """All rows of `episodes` encoded by `random_autoencoder`."""
    import encode_images

    words = ["--dataset_basepath", episodes(base), "--save_dir_path", base / "random_latents", "--all_tics"]
    words += ["--model_folder_or_id", random_autoencoder(base), "--device", "cpu", "--dataloader_num_workers", 0]
    encode_images.main(encode_images.build_parser().parse_args([str(word) for word in words]))
    return base / "random_latents"


def autoencoder_words(base: Path, output_dir: Path) -> tuple[object, ...]:
    """finetune_vae.py tuning the decoder of `random_autoencoder`."""
    own = ("--dataset_basepath", episodes(base), "--output_dir", output_dir, "--batch_size", 4)
    return (*own, "--model_folder_or_id", random_autoencoder(base), "--num_validation_frames", 8, *FIXED)


def world_model_words(base: Path, output_dir: Path) -> tuple[object, ...]:
    """train_text_to_image.py on `random_latents`."""
    own = ("--dataset_basepath", random_latents(base), "--output_dir", output_dir, "--preset", "smoke")
    return (*own, "--frame_stride", 1, "--num_validation_windows", 4, "--train_batch_size", 2, *FIXED)


@functools.cache
def autoencoder_run(base: Path) -> Run:
    """A decoder tuned without interruption."""
    words = autoencoder_words(base, base / "decoder_run")
    return Run(base / "decoder_run", words, succeed("finetune_vae.py", *words))


@functools.cache
def world_model_run(base: Path) -> Run:
    """A world model trained without interruption."""
    words = world_model_words(base, base / "world_model_run")
    return Run(base / "world_model_run", words, succeed("train_text_to_image.py", *words))


def run_until_killed(name: str, *args: object, once_there: Path) -> None:
    """Starts a script and kills it, SIGKILL, as soon as a path exists. Fails when the script ended before that."""
    process = subprocess.Popen(
        command_of(name, *args), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 300
    while not once_there.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output[-4000:]


def call(name: str, *words: object) -> None:
    """Runs a script's `main` in this process: refusals arrive as BadInput, and no time goes into imports."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    script = importlib.import_module(name.removesuffix(".py"))
    script.main(script.build_parser().parse_args([str(word) for word in words]))


def changed_words(words: tuple[object, ...], **flags: object) -> tuple[object, ...]:
    """A command line with some flags set to other values; None takes a flag away."""
    words = list(words)
    for name, value in flags.items():
        if f"--{name}" in words:
            place = words.index(f"--{name}")
            del words[place : place + 2]
        if value is not None:
            words += [f"--{name}", value]
    return tuple(words)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its size and time of change: equal trees were not touched."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def logged(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
