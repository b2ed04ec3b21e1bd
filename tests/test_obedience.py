"""Promises of obedience.py: known shifts come out as known, a dream that disobeys is told, real Doom passes.

The dream here shifts and zooms its last frame by known amounts, behind an autoencoder that loses nothing."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from episode_factory import write_episode
from PIL import Image
from stage_one import GENERATE, call
from torch import Tensor, nn

from data_loader import WindowDataset
from engine import GameEngine
from model import Autoencoder, Geometry, LoadedWorldModel, WorldModelConfig, make_scheduler
from obedience import FIRE, TURNS, WALKS, ammo_change, find_holds, flash, measure_obedience, spread_px, turn_px

WIDTH, HEIGHT = 160, 120
BUTTONS = ((), ("TURN_LEFT",), ("TURN_RIGHT",), ("MOVE_FORWARD",), ("MOVE_BACKWARD",), ("ATTACK",))
TABLE = [{"id": n, "name": "+".join(b) or "NOOP", "buttons": list(b), "keys": []} for n, b in enumerate(BUTTONS)]
NOOP, LEFT, RIGHT, FORWARD, BACK, ATTACK = range(6)
REAL_PX, ZOOM = 4, 1.05
HOLD, CONTEXT = 4, 4


def wall(seed: int, width: int = 2000) -> np.ndarray:
    """uint8 (HEIGHT, width, 3): a wall with a pattern at several scales."""
    rng = np.random.default_rng(seed)
    pattern = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 80, (HEIGHT // size, width // size), dtype=np.uint8)).resize(
                (width, HEIGHT), Image.Resampling.BICUBIC
            ),
            dtype=np.float32,
        )
        for size in (20, 8, 4)
    )
    return np.repeat(pattern[..., None], 3, axis=2).clip(0, 255).astype(np.uint8)


def zoomed(frame: np.ndarray, factor: float) -> np.ndarray:
    """The picture enlarged about its middle; under 1 it shrinks, its border stretched."""
    width, height = WIDTH / factor, HEIGHT / factor
    box = ((WIDTH - width) / 2, (HEIGHT - height) / 2, (WIDTH + width) / 2, (HEIGHT + height) / 2)
    if factor >= 1:
        return np.asarray(Image.fromarray(frame).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box))
    padded = np.pad(frame, ((HEIGHT // 2,) * 2, (WIDTH // 2,) * 2, (0, 0)), mode="edge")
    box = (box[0] + WIDTH // 2, box[1] + HEIGHT // 2, box[2] + WIDTH // 2, box[3] + HEIGHT // 2)
    return np.asarray(Image.fromarray(padded).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box))


def played(path: Path, seed: int) -> Path:
    """An episode in which every key is held for a while, the view moving by known amounts."""
    actions: list[int] = []
    for action in (NOOP, LEFT, NOOP, RIGHT, FORWARD, NOOP, BACK, ATTACK) * 3:
        actions += [action] * (CONTEXT + HOLD)
    place, scale, shots, frames, pattern = 900, 1.0, 0, [], wall(seed)
    for action in actions:
        view = zoomed(pattern[:, place : place + WIDTH], scale) if scale != 1 else pattern[:, place : place + WIDTH]
        frame = view.copy()
        rng = np.random.default_rng(shots)
        frame[102:113, 2:23] = rng.integers(0, 256, (11, 21, 1))  # other digits after each shot
        if frames and actions[len(frames) - 1] == ATTACK:
            frame[50:80, 64:96] = 255
        frames.append(frame)
        place += {LEFT: -REAL_PX, RIGHT: REAL_PX}.get(action, 0)
        scale *= {FORWARD: ZOOM, BACK: 1 / ZOOM}.get(action, 1.0)
        shots += action == ATTACK
    facts = {"action_table": TABLE, "width": WIDTH, "height": HEIGHT}
    return write_episode(path, actions, frames=frames, **facts)


class Pixels(nn.Module):
    """An autoencoder's network whose latents are the picture itself."""

    config = SimpleNamespace(in_channels=3, latent_channels=3, scaling_factor=1.0)
    device, dtype = torch.device("cpu"), torch.float32

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=pixels)

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents)


@dataclass(frozen=True)
class Reaction:
    """What the dream makes of keys: shift per frame of a left turn, zoom of a step forward, whether it fires."""

    turn_px: int
    zoom: float
    fires: bool


class Obeying(nn.Module):
    """A world model that moves its last frame by known amounts; its v for one sampling step from pure noise is -x0."""

    def __init__(self, reaction: Reaction) -> None:
        super().__init__()
        self.reaction = reaction
        self.mover = self.memory = None

    def forward(self, noised: Tensor, timesteps: Tensor, context: Tensor, actions: Tensor, buckets: Tensor) -> Tensor:
        pairs = zip(context[:, -1], actions[:, -1].tolist(), strict=True)
        return -torch.stack([self.following(frame, action) for frame, action in pairs])

    def following(self, frame: Tensor, action: int) -> Tensor:
        """(3, H, W) in [-1, 1] -> the next one."""
        if action in (LEFT, RIGHT):
            return torch.roll(frame, self.reaction.turn_px * (1 if action == LEFT else -1), dims=2)
        if action in (FORWARD, BACK):
            picture = ((frame + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            zoom = self.reaction.zoom if action == FORWARD else 1 / self.reaction.zoom
            return torch.from_numpy(zoomed(picture, zoom).copy()).permute(2, 0, 1) / 127.5 - 1
        if action == ATTACK and self.reaction.fires:
            frame = frame.clone()
            frame[:, 50:80, 64:96] = 1.0
            frame[:, 102:113, 2:23] = frame[:, 102:113, 2:23].roll(1, dims=1)
        return frame


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    folder = tmp_path_factory.mktemp("play")
    paths = [played(folder / f"episode_{seed:06d}.parquet", seed) for seed in range(2)]
    return WindowDataset(paths, context_length=CONTEXT, frame_stride=1, kind="frames")


def obedience(play: WindowDataset, reaction: Reaction) -> dict[str, dict]:
    autoencoder = Autoencoder(Pixels(), Geometry("pixels", WIDTH, HEIGHT, WIDTH, HEIGHT))
    config = WorldModelConfig(
        geometry=autoencoder.geometry,
        context_length=CONTEXT,
        frame_stride=1,
        tics_per_second=35.0,
        action_table=tuple(TABLE),
        latent_shape=(3, HEIGHT, WIDTH),
        num_noise_buckets=10,
        max_noise_level=0.7,
        num_inference_steps=1,
        guidance_scale=1.0,
        encoder_sha256=None,
    )
    engine = GameEngine(LoadedWorldModel(Obeying(reaction), autoencoder, make_scheduler(), config, None))
    done: list[int] = []
    report = measure_obedience(engine, play, 6, HOLD, 0, done.append)
    assert sum(done) == sum(sum(result["contexts"]) for result in report.values())
    return report


def test_an_obedient_dream_gets_its_known_figures_and_the_real_rows_are_perfect(play: WindowDataset) -> None:
    report = obedience(play, Reaction(turn_px=6, zoom=ZOOM, fires=True))
    turning, walking, firing = (report[name]["rows"] for name in ("turning", "walking", "firing"))
    for name in ("real", "ceiling"):
        assert (turning[name]["left_share"], turning[name]["right_share"]) == (1, 1)
        assert turning[name]["px_per_frame"] == pytest.approx(REAL_PX, abs=0.3)
    assert turning["model"]["opposite_share"] == 1
    assert turning["model"]["px_per_frame"] == pytest.approx(6, abs=0.3)
    for name in ("real", "ceiling", "model"):
        assert (walking[name]["forward_share"], walking[name]["back_share"]) == (1, 1)
        assert (firing[name]["flash_share"], firing[name]["ammo_share"]) == (1, 1)
        assert firing[name]["idle_flash_share"] <= 0.2 and firing[name]["idle_ammo_share"] <= 0.2


def test_a_dream_that_does_the_opposite_or_nothing_is_told(play: WindowDataset) -> None:
    report = obedience(play, Reaction(turn_px=-3, zoom=1 / ZOOM, fires=False))
    turning, walking, firing = (report[name]["rows"]["model"] for name in ("turning", "walking", "firing"))
    assert (turning["left_share"], turning["right_share"], turning["opposite_share"]) == (0, 0, 0)
    assert turning["px_per_frame"] == pytest.approx(-3, abs=0.3)
    assert (walking["forward_share"], walking["back_share"]) == (0, 0)
    assert (firing["flash_share"], firing["ammo_share"]) == (0, 0)


def test_contexts_are_where_the_key_was_held_and_overlap_nowhere(play: WindowDataset) -> None:
    for buttons, action in (((TURNS[0],), LEFT), ((WALKS[1],), BACK), ((FIRE,), ATTACK), ((), NOOP)):
        found = find_holds(play, buttons, HOLD)
        assert len(found) >= 6
        items = [play.stretch(index, HOLD) for index in found]
        assert all(item["actions"][-HOLD:].tolist() == [action] * HOLD for item in items)
        ends = {(item["episode"], item["rows"][-HOLD]): item["rows"][-1] for item in items}
        places = sorted(ends)
        for one, other in zip(places, places[1:], strict=False):
            assert one[0] != other[0] or ends[one] < other[1]
    assert find_holds(play, ("USE",), HOLD) == []
    assert find_holds(play, (TURNS[0],), 2 * (CONTEXT + HOLD)) == []


@pytest.mark.slow
def test_on_the_real_games_own_frames_the_measures_are_right(tmp_path: Path) -> None:
    flags = ["--policy", "explore", "--episodes", "4", "--episode_tics", "2100", "--record_stride", "2", "--seed", "5"]
    flags += ["--screen_resolution", "RES_160X120", "--level", "0", "--bots", "2", "--output_dir", tmp_path]
    result = call(GENERATE, *flags, "--num_workers", "2")
    assert result.returncode == 0, result.stderr
    paths = sorted(tmp_path.rglob("episode_*.parquet"))
    play = WindowDataset(paths, context_length=4, frame_stride=2, kind="frames")
    frames = 8

    def films(*buttons: str) -> list[np.ndarray]:
        found = find_holds(play, buttons, frames)
        assert len(found) >= 8
        return [play.stretch(index, frames)["frames"][3:].numpy() for index in found]

    left, right = ([turn_px(film) for film in films(turn)] for turn in TURNS)
    assert np.mean(np.array(left) > 0) >= 0.95 and np.mean(np.array(right) < 0) >= 0.95
    degrees = 2 * 640 / 65536 * 360  # two tics of the scenario's turnspeeds
    middle_px = 80 * np.tan(np.deg2rad(degrees))  # where the view is 90 degrees wide, in the picture's middle
    assert np.median(left) == pytest.approx(middle_px, rel=0.1)
    assert np.median(right) == pytest.approx(-middle_px, rel=0.1)
    forward, back = ([spread_px(film) for film in films(walk)] for walk in WALKS)
    assert np.mean(np.array(forward) > 0) >= 0.9 and np.mean(np.array(back) < 0) >= 0.9
    shots, still = films(FIRE), films()
    for measure, least in ((flash, 0.6), (ammo_change, 0.9)):
        threshold = np.quantile([measure(film) for film in still], 0.95)
        assert np.mean([measure(film) > threshold for film in shots]) >= least, measure.__name__
