"""Held-out measures of a world model: the rows of one step, and rollouts beside the real game.

Everything is drawn by `GameEngine`, as a player would see it. Used by train_text_to_image.py while it trains and by
run_autoregressive.py and make_clips.py; knows neither optimizers nor command lines.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from command_line import BadInput
from data_loader import WindowDataset, evenly
from engine import GameEngine
from metrics import format_rows, mean_frame, measure_rows
from model import Autoencoder, LoadedWorldModel, StartContexts, WorldModelConfig
from pictures import side_by_side, write_gif
from scene_memory import SceneMemory

if TYPE_CHECKING:
    from training import TrainingRun

MEAN_FRAMES = 64  # training frames averaged for the row `constant`
SAMPLE_FRAMES = 64  # length of the film that a validation leaves


@dataclass
class Stretches:
    """S stretches of play: L context frames, then N frames to predict.

    latents: (S, L + N, C, h, w) scaled, the posterior's mode.  actions: (S, L + N - 1) int64, recorded.
    poses: float32 (S, L + N, 4), where the data set tells them.
    real: uint8 (S, 1 + N, H, W, 3), the last context frame and the N after it at the model's frame size; None where the
    recorded episodes are gone.
    """

    latents: Tensor
    actions: Tensor
    real: np.ndarray | None
    poses: Tensor | None = None


@torch.no_grad()
def read_stretches(dataset: WindowDataset, autoencoder: Autoencoder, indices: Sequence[int], length: int) -> Stretches:
    """The stretches of `length` predicted frames that begin with windows `indices`; each must have that many."""
    items = [dataset.stretch(index, length) for index in indices]
    latents, real = [], []
    for item in items:
        if "moments" in item:
            moments = item["moments"].to(autoencoder.device).float()
        else:
            moments = autoencoder.encode_pixels(autoencoder.frames_to_pixels(item["frames"])).float()
        latents.append(autoencoder.sample_latents(moments))
        frames = dataset.source_frames(item["episode"], item["rows"][-length - 1 :])
        real.append(None if frames is None else autoencoder.resize_frames(frames).cpu().numpy())
    is_complete = all(frames is not None for frames in real)
    actions = torch.stack([item["actions"] for item in items])
    poses = torch.stack([item["poses"] for item in items]) if "poses" in items[0] else None
    return Stretches(torch.stack(latents), actions, np.stack(real) if is_complete else None, poses)


def check_dataset(
    dataset: WindowDataset,
    config: WorldModelConfig,
    dataset_name: str,
    model_name: str,
    memory: SceneMemory | None = None,
) -> None:
    """Raises BadInput where latents are of another encoder, actions are not those of the model's table, or the data
    does not go with the model's memory of the map, where it has one."""
    if memory is not None:
        memory.check(dataset, config.geometry)
    ours, theirs = config.encoder_sha256, dataset.encoder_sha256
    if theirs and theirs != ours:
        raise BadInput(
            f"{dataset_name}: latents of encoder {theirs[:12]}, but {model_name} was trained on {ours[:12]}; "
            f"encode again with encode_images.py --model_folder_or_id {model_name}, or start from the episodes"
        )
    if dataset.action_table and list(dataset.action_table) != list(config.action_table):
        raise BadInput(
            f"{dataset_name}: its action table is not the one {model_name} was trained with, so ids mean other keys; "
            "use data of the game it was trained on"
        )
    if dataset.num_actions > config.num_actions:
        raise BadInput(
            f"{dataset_name}: has {dataset.num_actions} actions, {model_name} knows {config.num_actions}; "
            "use data of the game it was trained on"
        )


def choose_starts(dataset: WindowDataset, wanted: int, length: int, seed: int) -> list[int]:
    """At most `wanted` windows, in an order picked by the seed, each the first of `length` frames to predict."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    found = (int(index) for index in order if dataset.stretch(int(index), length) is not None)
    return list(itertools.islice(found, wanted))


def has_real_frames(dataset: WindowDataset, indices: Sequence[int]) -> bool:
    """Whether the recorded episodes that these windows came from are still there."""
    items = [dataset.stretch(index, 1) for index in indices]
    return all(dataset.source_frames(item["episode"], item["rows"][-1:]) is not None for item in items)


def training_mean(dataset: WindowDataset, autoencoder: Autoencoder) -> np.ndarray | None:
    """The mean real training frame, uint8 (H, W, 3), over windows spread evenly; None where the episodes are gone."""
    frames = []
    for index in evenly(len(dataset), MEAN_FRAMES):
        item = dataset.stretch(index, 1)
        real = dataset.source_frames(item["episode"], item["rows"][-1:])
        if real is None:
            return None
        frames.append(autoencoder.resize_frames(real).cpu().numpy())
    return mean_frame(np.concatenate(frames))


def start_contexts(dataset: WindowDataset, autoencoder: Autoencoder, wanted: int) -> StartContexts:
    """Beginnings to play from, spread evenly over a data set; where there are any, whole histories in whose last frames
    nothing happens: a game that begins amid a shot is hard to take up."""
    indices = evenly(len(dataset), 8 * wanted)
    whole = [index for index in indices if dataset.stretch(index, 1)["rows"][0] >= 0] or indices
    loud = set(dataset.event_windows().tolist())
    quiet = [index for index in whole if index not in loud] or whole
    stretches = read_stretches(dataset, autoencoder, [quiet[i] for i in evenly(len(quiet), wanted)], 1)
    poses = None if stretches.poses is None else stretches.poses[:, :-1]
    return StartContexts(stretches.latents[:, :-1], stretches.actions[:, :-1], poses)


def take_up(engine: GameEngine, stretches: Stretches, seeds: Sequence[int]) -> None:
    """Resets an engine to the context frames of stretches."""
    length = engine.config.context_length
    poses = None if stretches.poses is None else stretches.poses[:, :length]
    engine.reset(stretches.latents[:, :length], stretches.actions[:, : length - 1], seeds, poses)


def roll_out(engine: GameEngine, stretches: Stretches, seeds: Sequence[int]) -> np.ndarray:
    """The model's own N frames after each context, led by the recorded actions: uint8 (S, N, H, W, 3)."""
    length = engine.config.context_length
    take_up(engine, stretches, seeds)
    steps = range(length - 1, stretches.actions.shape[1])
    return np.stack([engine.step(stretches.actions[:, step]) for step in steps], axis=1)


def picture_rows(
    engine: GameEngine, stretches: Stretches, dream: np.ndarray, constant: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(real, {row: pictures}), each uint8 (S, N, H, W, 3): what DESIGN calls the rows, for measure_rows.

    copy_last: the last context frame held still.  constant: the mean training frame.  ceiling: the true frames encoded
    and decoded.  model: the dream.
    """
    real = stretches.real[:, 1:]
    ceiling = np.stack(
        [engine.decode_latents(latents[engine.config.context_length :]) for latents in stretches.latents]
    )
    pictures = {
        "copy_last": np.broadcast_to(stretches.real[:, :1], real.shape),
        "constant": np.broadcast_to(constant, real.shape),
        "ceiling": ceiling,
        "model": dream,
    }
    return real, pictures


def one_step_rows(
    engine: GameEngine, dataset: WindowDataset, indices: Sequence[int], constant: np.ndarray, batch_size: int = 16
) -> dict[str, dict[str, float]]:
    """The four rows one step ahead from recorded history (teacher-forced), over the windows `indices`."""
    reals, rows = [], []
    for first in range(0, len(indices), batch_size):
        part = indices[first : first + batch_size]
        stretches = read_stretches(dataset, engine.autoencoder, part, 1)
        real, pictures = picture_rows(engine, stretches, roll_out(engine, stretches, list(part)), constant)
        reals.append(real[:, 0])
        rows.append({name: frames[:, 0] for name, frames in pictures.items()})
    return measure_rows(np.concatenate(reals), {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


class Validation:
    """Measures the averaged weights on held-out episodes, keeps a rollout as a gif, and writes the folder to play."""

    def __init__(
        self,
        run: "TrainingRun",
        loaded: LoadedWorldModel,
        dataset: WindowDataset,
        held_out: WindowDataset,
        num_windows: int,
        num_start_contexts: int,
    ) -> None:
        self.run, self.loaded, self.held_out = run, loaded, held_out
        self.steps_before = loaded.config.trained_steps  # of the world model that this run goes on from
        self.folder = run.output_dir / "world_model"
        self.indices = evenly(len(held_out), num_windows)
        self.constant = training_mean(dataset, loaded.autoencoder)
        if not has_real_frames(held_out, self.indices):
            self.constant = None
        loaded.start_contexts = start_contexts(held_out, loaded.autoencoder, num_start_contexts)

    def __call__(self, *, is_last: bool) -> None:
        """Prints the four rows one step ahead and writes `samples/step_<n>.gif`."""
        if not self.run.accelerator.is_main_process:
            return
        if self.constant is None:
            self.run.write(
                "no rows: the episodes these latents were encoded from are gone, and with them the real frames"
            )
            return
        self.loaded.world_model.eval()
        with self.run.averaged():
            engine = GameEngine(self.loaded)
            rows = one_step_rows(engine, self.held_out, self.indices, self.constant)
            rollout_rows, length = self.write_sample(engine)
        self.loaded.world_model.train()
        numbers = {f"{name}_{key}": value for name, row in rows.items() for key, value in row.items()}
        numbers |= {f"rollout_{name}_{key}": value for name, row in rollout_rows.items() for key, value in row.items()}
        self.run.log(**numbers, rollout_frames=length)
        when = f"after {self.run.step} steps{' (last)' if is_last else ''}"
        self.run.write(f"one step ahead on {len(self.indices)} held-out windows {when}:\n{format_rows(rows)}")
        self.run.write(f"on its own, the rollout of {length} frames in samples/:\n{format_rows(rollout_rows)}")

    def write_sample(self, engine: GameEngine) -> tuple[dict[str, dict[str, float]], int]:
        """The longest of some rollouts from held-out play, beside the real game; returns its rows and its length."""
        length, index = next(
            (length, index)
            for length in (SAMPLE_FRAMES, 8, 1)
            for index in self.indices
            if self.held_out.stretch(index, length)
        )
        stretches = read_stretches(self.held_out, self.loaded.autoencoder, [index], length)
        dream = roll_out(engine, stretches, [self.run.args.seed])
        real, pictures = picture_rows(engine, stretches, dream, self.constant)
        names = {row["id"]: row["name"] for row in self.loaded.config.action_table}
        captions = [
            f"{number + 1}  {names[int(action)]}" for number, action in enumerate(stretches.actions[0, -length:])
        ]
        film = side_by_side({"real": real[0], "dream": dream[0]}, captions)
        path = self.run.output_dir / "samples" / f"step_{self.run.step:06d}.gif"
        write_gif(path, film, self.loaded.config.frames_per_second)
        return measure_rows(real[0], {name: frames[0] for name, frames in pictures.items()}), length

    def save_model(self) -> None:
        """Writes `world_model/` with the averaged weights."""
        if not self.run.accelerator.is_main_process:
            return
        steps = self.steps_before + self.run.step
        self.loaded.config = dataclasses.replace(self.loaded.config, trained_steps=steps)
        with self.run.averaged():
            self.loaded.save(self.folder)
