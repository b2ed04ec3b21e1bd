"""From a game to a dream, through the real command lines: a toy world's square is learned and obeys the keys.

Recorder, autoencoder, latents, world model and rollout are the ones Doom uses; only the sizes are small.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from command import succeed
from PIL import Image
from torch import Tensor
from toy_dream import learned_toy_world
from toy_world import LEFT, MAX_X, NOOP, RIGHT, SIZE_PX, STEP_PX, WIDTH

from data_loader import WindowDataset
from engine import GameEngine
from episodes import find_latents

pytestmark = pytest.mark.slow

STEPS = 3  # actions held in a row


@dataclass(frozen=True)
class Dream:
    """The learned game, with starts of recorded play to dream on from."""

    folder: Path
    engine: GameEngine
    latents: Tensor  # (B, L, C, h, w)
    actions: Tensor  # (B, L - 1)

    def play(self, action: int, past: Tensor | None = None) -> np.ndarray:
        """Where the squares are, in px of the toy world, (1 + STEPS, B), while one key is held."""
        games = len(self.latents)
        self.engine.reset(self.latents, self.actions if past is None else past, range(games))
        start = self.engine.decode_latents(self.latents[:, -1])
        frames = [start, *(self.engine.step([action] * games) for _ in range(STEPS))]
        return np.stack([square_x(each) for each in frames])


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Dream:
    base = learned_toy_world(tmp_path_factory.getbasetemp())
    latents, run = base / "latents", base / "run"
    torch.set_num_threads(1)
    engine = GameEngine.from_pretrained(run)
    dataset = WindowDataset(
        find_latents(latents), context_length=engine.config.context_length, frame_stride=engine.config.frame_stride
    )
    items = [dataset[index] for index in range(5, len(dataset), len(dataset) // 100)]
    starts = torch.stack([engine.autoencoder.sample_latents(item["moments"][:-1].float()) for item in items])
    actions = torch.stack([item["actions"][:-1] for item in items])
    return Dream(base, engine, starts, actions)


def square_x(frames: np.ndarray) -> np.ndarray:
    """The left edge of the square in px of the toy world, from frames (B, H, W, 3): only the square is green."""
    green = frames[..., 1].astype(float).mean(axis=1)  # (B, W)
    green = np.clip(green - np.median(green, axis=1, keepdims=True) - 5, 0, None)
    centre = (green * (np.arange(green.shape[1]) + 0.5)).sum(axis=1) / green.sum(axis=1).clip(1e-9)
    return centre * WIDTH / green.shape[1] - SIZE_PX / 2


def test_the_dreamed_square_follows_the_keys_in_nearly_all_starts(dream: Dream) -> None:
    positions = {action: dream.play(action) for action in (NOOP, LEFT, RIGHT)}
    start = positions[NOOP][0]
    moved = {action: (x - start)[STEPS] for action, x in positions.items()}
    has_room = {LEFT: start > STEPS * STEP_PX, RIGHT: start < MAX_X - STEPS * STEP_PX, NOOP: start > -np.inf}
    assert has_room[LEFT].sum() > 30 and has_room[RIGHT].sum() > 30
    held = STEPS * STEP_PX
    follows = {
        LEFT: moved[LEFT] < -held / 2,
        RIGHT: moved[RIGHT] > held / 2,
        NOOP: np.abs(moved[NOOP]) < held / 2,
    }
    shares = {action: follows[action][has_room[action]].mean() for action in follows}
    print({action: (share, moved[action][has_room[action]].mean()) for action, share in shares.items()})
    assert min(shares.values()) > 0.9
    assert moved[LEFT][has_room[LEFT]].mean() == pytest.approx(-held, abs=held / 3)
    assert moved[RIGHT][has_room[RIGHT]].mean() == pytest.approx(held, abs=held / 3)


def test_past_actions_shuffled_change_what_is_dreamed(dream: Dream) -> None:
    is_mixed = torch.tensor([len(set(past.tolist())) == 3 for past in dream.actions])
    assert is_mixed.sum() > 10
    dream.engine.reset(dream.latents, dream.actions, range(len(dream.latents)))
    one = dream.engine.step_latents([NOOP] * len(dream.latents))
    dream.engine.reset(dream.latents, dream.actions.roll(1, dims=1), range(len(dream.latents)))
    other = dream.engine.step_latents([NOOP] * len(dream.latents))
    difference = (one - other).abs().amax(dim=(1, 2, 3))  # (B,), of latents whose standard deviation is 1
    print("difference", difference[is_mixed].quantile(torch.tensor([0.0, 0.5, 1.0])))
    assert (difference[is_mixed] > 0.01).all()


def test_the_rollout_shows_the_real_game_beside_the_dream(dream: Dream) -> None:
    out = dream.folder / "rollouts"
    succeed(
        "run_autoregressive.py",
        *("--dataset_basepath", dream.folder / "latents", "--unet_model_folder", dream.folder / "run"),
        *("--num_episodes", 2, "--episode_length", 8, "--out", out, "--device", "cpu"),
    )
    report = json.loads((out / "rollouts.json").read_text())
    rows = report["rows"]
    print(rows)
    assert rows["ceiling"]["psnr_db"] > 22 and rows["constant"]["psnr_db"] < rows["ceiling"]["psnr_db"]
    assert rows["model"]["psnr_db"] > rows["constant"]["psnr_db"]
    with Image.open(out / "rollout_0.gif") as film:
        assert film.width == 2 * 2 * 80
