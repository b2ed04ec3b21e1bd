"""What the recorder promises: the format, the alignment, and that an episode file is whole or not there."""

import io
import json
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
import toy_world
from actions import action_table
from console import BadInput
from episode_recorder import METADATA_KEY, ROWS_PER_GROUP, EpisodeRecorder, claimed_folder, derived_seed, partial_path
from PIL import Image


class Tics(gymnasium.Env):
    """A game like DoomEnv: `on_tic` reports 4 tics a step; tic k shows grey k, rewards 1, and episodes last 3 steps."""

    tics_per_second = 35
    tics_per_step = 4
    tics_per_look = 1
    scenario_name = "tics"
    observation_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)

    def __init__(self) -> None:
        self.actions = action_table(["ATTACK", "TURN_LEFT"])
        self.action_space = gymnasium.spaces.Discrete(len(self.actions))
        self.on_tic = None
        self.level = 0
        self.tic = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.tic = 0
        return np.zeros((4, 4, 3), np.uint8), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        for _ in range(4):
            frame = np.full((6, 8, 3), self.tic, np.uint8)
            self.on_tic(frame, action, {"health": 100 - self.tic, "position_x": 0.5, "reward": 1.0, "dead": False})
            self.tic += 1
        return np.zeros((4, 4, 3), np.uint8), 4.0, False, self.tic == 12, {}


def play(env: gymnasium.Env, steps: int) -> list[dict[str, Any]]:
    """Plays `steps` steps with actions 0, 1, 2, ... and returns the infos."""
    infos = []
    env.reset(seed=1)
    for step in range(steps):
        _, _, terminated, truncated, info = env.step(step % int(env.action_space.n))
        infos.append(info)
        if terminated or truncated:
            env.reset()
    return infos


def pictures(path: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(frame))) for frame in pq.read_table(path)["frames"].to_pylist()]


def footer(path: Path) -> dict:
    return json.loads(pq.ParquetFile(path).metadata.metadata[METADATA_KEY])


def square(directory: Path, length_steps: int = 40, **options: Any) -> EpisodeRecorder:
    env = gymnasium.make("Square-v0", render_mode="rgb_array", length_steps=length_steps)
    return EpisodeRecorder(env, directory, image_format="png", **options)


def test_action_of_a_row_was_chosen_on_its_frame_and_leads_to_the_next(tmp_path: Path) -> None:
    env = square(tmp_path)
    play(env, 40)
    path = tmp_path / "level_0" / "env_0" / "episode_000000.parquet"
    frames, table = pictures(path), pq.read_table(path)
    assert len(frames) == 40
    places = [next(x for x in range(toy_world.MAX_X + 1) if np.array_equal(f, toy_world.picture(x))) for f in frames]
    actions = table["actions"].to_pylist()
    assert actions == [step % 3 for step in range(40)]
    assert [toy_world.moved(x, a) for x, a in zip(places, actions, strict=True)][:-1] == places[1:]
    assert table["step_ids"].to_pylist() == list(range(40))
    env.close()


def test_any_gymnasium_game_brings_its_names_keys_and_speed(tmp_path: Path) -> None:
    env = square(tmp_path, seed=7)
    play(env, 40)
    env.close()
    path = tmp_path / "level_0" / "env_0" / "episode_000000.parquet"
    facts = footer(path)
    assert facts["action_table"] == [
        {"id": 0, "name": "NOOP", "buttons": [], "keys": []},
        {"id": 1, "name": "LEFT", "buttons": ["LEFT"], "keys": ["KeyA"]},
        {"id": 2, "name": "RIGHT", "buttons": ["RIGHT"], "keys": ["KeyD"]},
    ]
    assert (facts["tics_per_second"], facts["tics_per_row"], facts["tics_per_step"]) == (10.0, 1, 1)
    assert (facts["width"], facts["height"], facts["seed"], facts["scenario"]) == (64, 48, 7, "Square-v0")
    schema = pq.read_schema(path)
    assert schema.names == ["frames", "actions", "step_ids", "reward", "dead"]
    assert [str(kind) for kind in schema.types] == ["binary", "int64", "int64", "float", "bool"]


def test_every_tic_of_a_step_is_a_row_with_the_action_executed(tmp_path: Path) -> None:
    env = EpisodeRecorder(Tics(), tmp_path, "env_3", image_format="png")
    infos = play(env, 3)
    env.close()
    path = tmp_path / "level_0" / "env_3" / "episode_000000.parquet"
    table = pq.read_table(path)
    assert [int(picture.mean()) for picture in pictures(path)] == list(range(12))
    assert table["actions"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table["step_ids"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table["health"].to_pylist() == [100 - tic for tic in range(12)]
    assert table.schema.names[3:] == ["health", "position_x", "reward", "dead"]
    assert [str(kind) for kind in table.schema.types[3:]] == ["int64", "float", "float", "bool"]
    assert footer(path)["tics_per_second"] == 35.0
    assert infos[-1]["level"] == 0


def test_record_stride_keeps_every_nth_tic_but_the_whole_return(tmp_path: Path) -> None:
    env = EpisodeRecorder(Tics(), tmp_path, image_format="png", record_stride=2)
    play(env, 3)
    env.close()
    path = tmp_path / "level_0" / "env_0" / "episode_000000.parquet"
    assert [int(picture.mean()) for picture in pictures(path)] == [0, 2, 4, 6, 8, 10]
    assert pq.read_table(path)["reward"].to_pylist() == [2.0] * 6
    assert footer(path)["tics_per_row"] == 2
    with pytest.raises(BadInput, match="record_stride 3 does not divide"):
        EpisodeRecorder(Tics(), tmp_path, record_stride=3)


def test_episode_numbers_and_agent_steps_go_on_where_they_stopped(tmp_path: Path) -> None:
    for _ in range(2):
        env = square(tmp_path, length_steps=5)
        play(env, 10)
        env.close()
    facts = [footer(path) for path in sorted(tmp_path.rglob("*.parquet"))]
    assert [fact["episode"] for fact in facts] == [0, 1, 2, 3]
    assert [fact["agent_step"] for fact in facts] == [0, 5, 10, 15]


def test_an_episode_belongs_to_the_level_it_began_on(tmp_path: Path) -> None:
    game = Tics()
    env = EpisodeRecorder(game, tmp_path)
    env.reset()
    env.step(0)
    game.level = 1
    env.step(0)
    assert env.step(0)[4]["level"] == 0
    play(env, 3)
    env.close()
    names = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.parquet"))]
    assert names == ["level_0/env_0/episode_000000.parquet", "level_1/env_0/episode_000000.parquet"]


def test_rows_stream_to_a_temporary_name_until_the_episode_ends(tmp_path: Path) -> None:
    env = square(tmp_path, length_steps=200)
    play(env, ROWS_PER_GROUP + 1)
    final = tmp_path / "level_0" / "env_0" / "episode_000000.parquet"
    temporary = partial_path(final, os.getpid())
    assert list(final.parent.iterdir()) == [temporary]
    assert temporary.stat().st_size > 5000  # a row group is on disk already
    env.close()
    assert [path.name for path in final.parent.iterdir()] == [final.name]
    file = pq.ParquetFile(final)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [ROWS_PER_GROUP, 1]


def test_discard_leaves_no_trace_of_the_unfinished_episode(tmp_path: Path) -> None:
    env = square(tmp_path)
    play(env, 10)
    env.discard()
    env.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_same_play_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        env = square(tmp_path / name, episode=4)
        play(env, 40)
        env.close()
    one, two = sorted(tmp_path.rglob("episode_000004.parquet"))
    assert one.read_bytes() == two.read_bytes()


def test_only_discrete_actions_and_rgb_pictures_can_be_recorded(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="only Discrete"):
        EpisodeRecorder(gymnasium.make("Pendulum-v1"), tmp_path)
    env = EpisodeRecorder(gymnasium.make("FrozenLake-v1", render_mode="ansi"), tmp_path)
    with pytest.raises(BadInput, match="needed: render_mode rgb_array"):
        env.reset()


def claim(folder: Path, identity: dict, resume: bool = True) -> Any:
    globs = {"episodes": "**/episode_*.parquet", "partials": "**/.episode_*.partial.parquet"}
    return claimed_folder(folder, identity, resume=resume, cure="choose another folder", **globs)


def test_a_folder_with_other_episodes_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "episode_000000.parquet").write_bytes(b"precious")
    with pytest.raises(BadInput, match="unknown origin.*choose another folder"), claim(tmp_path, {"seed": 1}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["episode_000000.parquet"]


def test_a_folder_is_resumed_only_with_what_it_was_recorded_with(tmp_path: Path) -> None:
    with claim(tmp_path, {"seed": 1}):
        (tmp_path / "episode_000000.parquet").write_bytes(b"precious")
        (tmp_path / ".episode_000001.partial.parquet").write_bytes(b"half")
    with pytest.raises(BadInput, match="seed 1, this run asks for 2"), claim(tmp_path, {"seed": 2}):
        pass
    with pytest.raises(BadInput, match="another run's episodes"), claim(tmp_path, {"seed": 1}, resume=False):
        pass
    assert (tmp_path / ".episode_000001.partial.parquet").exists()
    with claim(tmp_path, {"seed": 1}):
        assert not (tmp_path / ".episode_000001.partial.parquet").exists()
        with pytest.raises(BadInput, match="another process"), claim(tmp_path, {"seed": 1}):
            pass


def test_neighbouring_episodes_get_unrelated_seeds() -> None:
    seeds = {derived_seed(seed, split, episode) for seed in range(3) for split in range(2) for episode in range(50)}
    assert len(seeds) == 300
    assert derived_seed(0, 0, 1) == derived_seed(0, 0, 1)


def test_a_recorded_doom_episode_has_four_tics_for_every_step(tmp_path: Path) -> None:
    from doom_env import DoomEnv

    env = EpisodeRecorder(
        DoomEnv("basic", episode_tics=40, screen_resolution="RES_160X120"), tmp_path, image_format="png"
    )
    play(env, 10)
    env.close()
    path = tmp_path / "level_5" / "env_0" / "episode_000000.parquet"
    table = pq.read_table(path)
    columns = ["health", "ammo", "frags", "position_x", "position_y", "position_angle", "reward", "dead"]
    assert table.schema.names == ["frames", "actions", "step_ids", *columns]
    assert table["step_ids"].to_pylist() == [step for step in range(10) for _ in range(4)]
    assert pictures(path)[0].shape == (120, 160, 3)
    assert footer(path)["scenario"] == "basic"


def test_an_episode_cut_before_its_second_step_leaves_nothing(tmp_path: Path) -> None:
    for steps, kept in ((1, 0), (2, 1)):
        env = EpisodeRecorder(gymnasium.make("Square-v0"), tmp_path / str(steps))
        env.reset(seed=0)
        for _ in range(steps):
            env.step(0)
        env.close()
        assert len(list((tmp_path / str(steps)).rglob("episode_*.parquet"))) == kept
        assert not list((tmp_path / str(steps)).rglob("*.partial*"))
