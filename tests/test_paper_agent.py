"""The paper's agent through the real command line: its settings, its policy file, and that a kill costs nothing."""

import json
import random
import time
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from progress import add_line, forget_lines_after
from stage_one import (
    GENERATE,
    TRAIN,
    call,
    contents,
    footer,
    is_refused,
    start,
    state,
    still_running,
    wait_for,
)
from train_ppo_and_collect_data_parallel import PAPER, build_parser

ONE_GAME = ["--n_train_envs", "1", "--screen_resolution", "RES_160X120", "--device", "cpu"]
TINY = [*ONE_GAME, "--n_steps", "32", "--batch_size", "32", "--n_epochs", "1", "--eval_episodes", "1"]
DOOR = ["--scenario", "one_door", "--episode_tics", "80"]


def parsed(*flags: str) -> dict:
    return vars(build_parser().parse_args(["--out_base_dir", "x", *flags]))


def test_paper_sets_the_papers_settings_and_given_flags_override_them() -> None:
    expected = {
        **{"reward": "paper", "observe_map": True, "action_history": 32, "total_timesteps": 50_000_000},
        **{"n_train_envs": 8, "n_steps": 512, "batch_size": 64, "n_epochs": 10},
        **{"learning_rate": 1e-4, "gamma": 0.99, "ent_coef": 0.1},
    }
    settings = parsed("--paper")
    assert {name: settings[name] for name in expected} == expected
    assert 0 < settings["repeat_probability"] < 1
    given = ["--reward", "shaped", "--no-observe_map", "--action_history", "0", "--repeat_probability", "0"]
    given += ["--ent_coef", "0.0", "--n_train_envs", "4", "--n_steps", "2048"]
    # Given before or after --paper, and also where what is given is the ordinary default.
    assert parsed(*given, "--paper") == parsed("--paper", *given) == {**parsed(*given), "paper": True}
    assert {name: parsed()[name] for name in ("reward", "observe_map", "action_history", "repeat_probability")} == {
        **{"reward": "shaped", "observe_map": False},
        **{"action_history": 0, "repeat_probability": 0.0},
    }, "without --paper all is as it was"
    assert set(PAPER) <= set(parsed())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--repeat_probability", "0.5"], ["--repeat_probability 0.5", "--action_history 1"]),
        (["--repeat_probability", "1", "--action_history", "1"], ["--repeat_probability 1.0", "less than 1"]),
        (["--gamma", "1.5"], ["--gamma 1.5", "0 to 1"]),
        (["--ent_coef", "-1"], ["--ent_coef -1.0"]),
        (["--clip_range", "0"], ["--clip_range 0.0"]),
        (["--action_history", "-1"], ["--action_history -1"]),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_in_one_line(
    flags: list[str], words: list[str], tmp_path: Path
) -> None:
    assert is_refused(call(TRAIN, "--out_base_dir", tmp_path / "new", *flags), *words)
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 agent steps of the whole paper's agent, behind a door."""
    folder = tmp_path_factory.mktemp("paper")
    result = call(TRAIN, "--out_base_dir", folder, "--paper", *TINY, *DOOR, "--total_timesteps", "64")
    assert result.returncode == 0, result.stderr
    return folder


def test_the_policy_file_says_what_the_agent_sees_and_it_replays_without_a_flag(
    paper_run: Path, tmp_path: Path
) -> None:
    best = paper_run / "policy" / "best_model.zip"
    with zipfile.ZipFile(best) as archive:
        facts = json.loads(archive.read("policy.json"))
    expected = {"scenario": "one_door", "reward": "paper", "observe_map": True, "action_history": 32}
    expected |= {"repeat_probability": PAPER["repeat_probability"], "action_set": "full"}
    assert {name: facts[name] for name in expected} == expected
    game = ["--screen_resolution", "RES_160X120", "--episode_tics", "400", "--device", "cpu", "--num_workers", "1"]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        result = call(GENERATE, "--policy", best, *game, "--output_dir", folder)
        assert result.returncode == 0, result.stderr
    assert contents(folders[0]) == contents(folders[1]), "it repeats exactly"
    (path,) = folders[0].rglob("episode_*.parquet")
    table = pq.read_table(path)
    assert footer(path)["scenario"] == "one_door"
    # The paper's points, not rl-doom's: nothing is lost by standing, and a new area pays 30 and more.
    rewards = table["reward"].to_numpy()
    assert rewards.min() == 0 and set(rewards[rewards > 0] % 10) == {0.0}
    actions = table["actions"].to_numpy()[::4]
    assert len(actions) > 10 and (actions[1:] == actions[:-1]).mean() > 0.2, "of 10 actions, a quarter more is repeated"
    # Whoever recorded it knows what is in the pictures: the game's screen, not the map.
    assert (footer(path)["width"], footer(path)["height"]) == (160, 120)


def test_a_run_goes_on_only_as_the_agent_it_began_with(paper_run: Path) -> None:
    flags = ["--out_base_dir", paper_run, *TINY, *DOOR, "--total_timesteps", "96", "--resume"]
    other = call(TRAIN, *flags, "--paper", "--reward", "shaped")
    assert is_refused(other, "recorded with reward paper", "another --out_base_dir")
    assert is_refused(call(TRAIN, *flags, "--paper", "--action_history", "4"), "recorded with action_history 32")


def test_lines_of_steps_that_a_kill_took_back_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    forget_lines_after(path, 5)
    assert not path.exists()
    for step in (2, 4, 6):
        add_line(path, {"step": step, "level": 0})
    with open(path, "a") as file:
        file.write('{"step": 3, "lev')
    forget_lines_after(path, 4)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": s, "level": 0} for s in (2, 4)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.slow
def test_killed_again_and_again_no_episode_is_lost_and_counters_go_on(tmp_path: Path) -> None:
    flags = ["--out_base_dir", tmp_path, *TINY, "--scenario", "basic", "--episode_tics", "80", "--resume"]
    moments = random.Random(0)
    kept: dict[str, bytes] = {}
    steps = 0
    marks: list[str] = []
    for _ in range(3):
        run, mark = start(TRAIN, *flags, "--total_timesteps", "100000")
        try:
            wait_for(
                lambda steps=steps: (
                    (tmp_path / "policy" / "last_model.zip").exists() and state(tmp_path)["agent_steps"] > steps
                ),
                limit_s=240,
            )
            time.sleep(moments.uniform(0, 2))  # anywhere: within a step, an update, an evaluation, a save
        finally:
            run.kill()
            run.wait()
        marks.append(mark)
        now = contents(tmp_path)
        assert {name: now[name] for name in kept} == kept, "a finished episode changed or is gone"
        assert state(tmp_path)["agent_steps"] > steps
        kept, steps = now, state(tmp_path)["agent_steps"]
    result = call(TRAIN, *flags, "--total_timesteps", str(steps + 64))
    assert result.returncode == 0, result.stderr
    wait_for(lambda: not any(map(still_running, marks)))  # the next start ends the games of those killed
    now = contents(tmp_path)
    assert {name: now[name] for name in kept} == kept and len(now) > len(kept)
    assert not list(tmp_path.rglob("*.partial*"))
    for name in now:
        assert pq.read_table(tmp_path / name).num_rows > 0
    lines = [json.loads(line) for line in (tmp_path / "policy" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(32, steps + 64 + 1, 32)), "each step once, in order"
    assert (state(tmp_path)["agent_steps"], state(tmp_path)["updates"]) == (steps + 64, (steps + 64) // 32)
    began = [footer(path)["agent_step"] for path in sorted((tmp_path / "train" / "level_0" / "env_0").iterdir())]
    assert began == sorted(set(began))
