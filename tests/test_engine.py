"""Promises of engine.py: its window is the loader's window, games do not touch each other, a state replays exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import ROWS, random_latents
from tiny_models import LEFT, NOOP, RIGHT, Recorder, tiny_world_model
from torch import Tensor

from command_line import BadInput
from data_loader import WindowDataset
from engine import GameEngine
from episodes import find_latents
from model import StartContexts, load_world_model

LENGTH = 4  # the tiny model's context


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    """The windows of one encoded episode; the first ones begin before the game."""
    paths = find_latents(random_latents(tmp_path_factory.getbasetemp()) / "eval")
    return WindowDataset(paths, context_length=LENGTH, frame_stride=1)


def random_start(games: int = 1, seen: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Latents (B, k, C, h, w) and the actions between them, each game another."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(games, seen, 4, 8, 10, generator=generator)
    return latents, torch.randint(0, 3, (games, seen - 1), generator=generator)


def started(seeds: tuple[int, ...] = (0,), **settings: float) -> GameEngine:
    engine = GameEngine(tiny_world_model(), **settings)
    engine.reset(*random_start(len(seeds)), seeds)
    return engine


# ------------------------------------------------------------------------------------------------ the window


@pytest.mark.parametrize("seen", [1, 2, 3, 4, 7])
def test_the_network_sees_the_very_window_the_loader_yields(dataset: WindowDataset, seen: int) -> None:
    """From the first `seen` frames of a game; black and the no-op stand before them where they are too few."""
    engine = GameEngine(tiny_world_model())
    item = dataset[seen - 1]  # its target is the frame after those seen
    assert dataset.window_rows(seen - 1).tolist() == [*[-1] * (LENGTH - seen), *range(max(0, seen - LENGTH), seen + 1)]
    game = dataset.stretch(0, ROWS - 1)
    latents = engine.autoencoder.sample_latents(game["moments"][LENGTH - 1 :].float())  # (ROWS, C, h, w), no padding
    actions = game["actions"][LENGTH - 1 :]
    recorder = Recorder(engine.world_model)
    engine.reset(latents[None, :seen], actions[None, : seen - 1])
    engine.step(int(actions[seen - 1]))
    for call in recorder.calls:
        assert call.context[0].equal(engine.autoencoder.sample_latents(item["moments"][:-1].float()))
        assert call.actions.tolist() == [item["actions"].tolist()]
    assert call.actions.shape[1] == call.context.shape[1] == LENGTH


def test_the_window_slides_over_the_models_own_frames_with_their_actions() -> None:
    engine = started()
    latents, actions = random_start()
    recorder = Recorder(engine.world_model)
    own = [engine.step_latents([action]) for action in (LEFT, RIGHT, NOOP)]
    seen = recorder.calls[:: engine.num_inference_steps]
    past = [*actions[0].tolist(), LEFT, RIGHT, NOOP]
    frames = torch.cat([latents[0], *own])
    for number, call in enumerate(seen):
        assert call.context[0].equal(frames[number : number + LENGTH])
        assert call.actions[0].tolist() == past[number : number + LENGTH]


def test_only_the_last_frames_of_a_longer_history_count() -> None:
    latents, actions = random_start(seen=LENGTH + 3)
    engine = GameEngine(tiny_world_model())
    engine.reset(latents, actions)
    long = engine.step(LEFT)
    engine.reset(latents[:, 3:], actions[:, 3:])
    assert np.array_equal(engine.step(LEFT), long)


def test_a_short_history_is_padded_with_black_not_grey() -> None:
    engine = GameEngine(tiny_world_model())
    recorder = Recorder(engine.world_model)
    engine.reset(*random_start(seen=1))
    engine.step(RIGHT)
    height, width = engine.config.geometry.frame_height, engine.config.geometry.frame_width
    black = engine.encode_frames(np.zeros((1, height, width, 3), np.uint8))
    assert torch.allclose(recorder.calls[0].context[0, :3], black.expand(3, -1, -1, -1), atol=1e-3)
    assert recorder.calls[0].actions.tolist() == [[NOOP, NOOP, NOOP, RIGHT]]


def test_the_no_op_that_pads_is_the_tables_not_id_zero() -> None:
    table = (
        {"id": 0, "name": "LEFT", "buttons": ["a"], "keys": ["KeyA"]},
        {"id": 1, "name": "RIGHT", "buttons": ["d"], "keys": ["KeyD"]},
        {"id": 2, "name": "NOOP", "buttons": [], "keys": []},
    )
    engine = GameEngine(tiny_world_model(action_table=table))
    recorder = Recorder(engine.world_model)
    engine.reset(*random_start(seen=1))
    engine.step(0)
    assert recorder.calls[0].actions.tolist() == [[2, 2, 2, 0]]


# ------------------------------------------------------------------------------------------------ context noise


@pytest.mark.parametrize("bucket", [0, 1, 5, 9])
def test_announcing_bucket_k_adds_noise_of_that_level(bucket: int) -> None:
    engine = started(seeds=tuple(range(16)), discretized_noise_level=bucket)
    recorder = Recorder(engine.world_model)
    before = engine.latents.clone()
    following = engine.step_latents([LEFT] * 16)
    added = recorder.calls[0].context - before  # 16 * 4 * 320 values
    assert recorder.calls[0].noise_buckets.tolist() == [bucket] * 16
    assert float(added.std()) == pytest.approx(0.07 * bucket, rel=0.02)
    assert recorder.calls[1].context.equal(recorder.calls[0].context)  # one draw for all sampling steps
    assert engine.latents[:, :-1].equal(before[:, 1:]) and engine.latents[:, -1].equal(following)  # kept clean


def test_context_noise_and_starting_noise_are_drawn_apart_and_anew_each_frame() -> None:
    engine = started(discretized_noise_level=9)
    recorder = Recorder(engine.world_model)
    noises = []
    for _ in range(2):
        before = engine.latents.clone()
        engine.step_latents([NOOP])
        call = recorder.calls[-engine.num_inference_steps]
        noises += [*((call.context - before)[0] / 0.63), call.noised[0]]
    correlations = torch.corrcoef(torch.stack([noise.flatten() for noise in noises])).fill_diagonal_(0)
    assert correlations.abs().max() < 0.25  # 320 values each


# ------------------------------------------------------------------------------------------------ replay, independence


@pytest.mark.parametrize("settings", [{}, {"discretized_noise_level": 5, "guidance_scale": 1.5}])
def test_a_restored_state_replays_exactly(settings: dict[str, float]) -> None:
    engine = started(seeds=(3, 4), **settings)
    engine.step([LEFT, RIGHT])
    state = engine.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    first = [engine.step([RIGHT, action]) for action in (LEFT, NOOP, RIGHT)]
    assert all(state[name].equal(kept[name]) for name in state)  # playing on does not reach into a saved state
    for other in (engine, started(seeds=(8, 9), **settings)):
        other.restore(state)
        again = [other.step([RIGHT, action]) for action in (LEFT, NOOP, RIGHT)]
        assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
        assert other.frame_number == 4


def test_a_reset_with_the_same_seed_plays_the_same_game_and_another_seed_another() -> None:
    engine = started(seeds=(3,))
    first = engine.step_latents([LEFT])
    engine.reset(*random_start(), (3,))
    assert engine.step_latents([LEFT]).equal(first)
    engine.reset(*random_start(), (4,))
    assert not engine.step_latents([LEFT]).equal(first)


def test_each_game_of_a_batch_is_the_game_it_is_alone() -> None:
    latents, actions = random_start(games=3)
    together, alone = (GameEngine(tiny_world_model(), discretized_noise_level=3) for _ in range(2))
    together.reset(latents, actions, (5, 6, 7))
    alone.reset(latents[1:2], actions[1:2], (6,))
    recorders = Recorder(together.world_model), Recorder(alone.world_model)
    for action in (LEFT, RIGHT):
        batch = together.step_latents([NOOP, action, RIGHT])
        assert torch.allclose(batch[1:2], alone.step_latents([action]), atol=1e-4)
    for in_batch, single in zip(*(recorder.calls for recorder in recorders), strict=True):
        assert torch.allclose(in_batch.noised[1:2], single.noised, atol=1e-4)
    assert recorders[0].calls[0].noised[1:2].equal(recorders[1].calls[0].noised)  # the noise is the same to the bit


# ------------------------------------------------------------------------------------------------ frames, errors


def test_a_step_draws_the_latent_it_has_added_without_the_padding() -> None:
    engine = started(seeds=(0, 1))
    frames = engine.step([LEFT, RIGHT])
    assert frames.shape == (2, 60, 80, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, engine.decode_latents(engine.latents[:, -1]))
    assert started().step(LEFT).shape == (60, 80, 3)  # an int for a single game
    with torch.no_grad():
        pixels = engine.autoencoder.decode_latents(engine.latents[:, -1])
    assert np.array_equal(frames, ((pixels.clamp(-1, 1) + 1) * 127.5).round()[:, :, :60, :80].permute(0, 2, 3, 1))


def test_settings_left_out_are_the_checkpoints_own(tmp_path: Path) -> None:
    tiny_world_model(num_inference_steps=3, guidance_scale=1.5).save(tmp_path / "model")
    engine = GameEngine.from_pretrained(tmp_path / "model")
    recorder = Recorder(engine.world_model)
    engine.reset(*random_start())
    engine.step(NOOP)
    assert [len(call.noised) for call in recorder.calls] == [2, 2, 2]  # three steps, two passes each
    engine = GameEngine(load_world_model(tmp_path / "model"), num_inference_steps=1, guidance_scale=1.0)
    recorder = Recorder(engine.world_model)
    engine.reset(*random_start())
    engine.step(NOOP)
    assert [len(call.noised) for call in recorder.calls] == [1]


def test_a_checkpoints_own_start_plays_without_any_data() -> None:
    loaded = tiny_world_model()
    loaded.start_contexts = None
    with pytest.raises(BadInput, match="start context 0: the checkpoint has 0"):
        GameEngine(loaded).reset_to_start()
    latents, actions = random_start(games=2)
    loaded.start_contexts = StartContexts(latents, actions)
    engine, other = GameEngine(loaded), GameEngine(loaded)
    engine.reset_to_start(1, seed=7)
    other.reset(latents[1:], actions[1:], [7])
    assert np.array_equal(engine.step(LEFT), other.step(LEFT))
    with pytest.raises(BadInput, match="start context 2: the checkpoint has 2"):
        engine.reset_to_start(2)


def test_settings_and_actions_out_of_range_are_refused() -> None:
    for settings in ({"discretized_noise_level": 10}, {"discretized_noise_level": -1}, {"num_inference_steps": 0}):
        with pytest.raises(BadInput, match=next(iter(settings))):
            GameEngine(tiny_world_model(), **settings)
    engine = started(seeds=(0, 1))
    for wrong in ([3, 0], [-1, 0], [0]):
        with pytest.raises(ValueError, match="action"):
            engine.step(wrong)
    latents, actions = random_start()
    with pytest.raises(ValueError, match="expected latents"):
        engine.reset(latents, torch.zeros(1, LENGTH, dtype=torch.int64))  # one action too many
    with pytest.raises(ValueError, match="expected latents"):
        engine.reset(latents, actions, (0, 1))
