"""Both scripts of stage 1 through their real command lines: real games, tiny numbers, real kills."""

import base64
import contextlib
import io
import json
import os
import pickle
import random
import re
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import toy_world
from episode_recorder import MIN_KEPT_STEPS
from PIL import Image
from progress import RETURNS_PER_LEVEL, Progress
from stage_one import (
    GENERATE,
    ONE_GAME,
    SMALL_GAME,
    STAGE1,
    TINY,
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


@pytest.mark.parametrize("script", [TRAIN, GENERATE])
def test_help_answers_at_once_with_every_default(script: Path) -> None:
    began_s = time.monotonic()
    result = call(script, "--help")
    assert time.monotonic() - began_s < 2
    assert result.returncode == 0
    assert "(default: RES_320X240)" in " ".join(result.stdout.split())


PARTNER = {TRAIN: "training_games.py", GENERATE: "recording.py"}  # whatever else reads a script's flags


@pytest.mark.parametrize("script", [TRAIN, GENERATE])
def test_every_flag_is_read(script: Path) -> None:
    flags = re.findall(r'add\(\s*"--(\w+)"', script.read_text())
    source = script.read_text() + (STAGE1 / PARTNER[script]).read_text()
    for flag in flags:
        code = source.replace(f'add("--{flag}"', "")
        assert re.search(rf"args\.{flag}\b|\"{flag}\"|^    {flag}: ", code, re.MULTILINE), f"--{flag} is read nowhere"


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--n_steps", "1"], "--n_steps 1"),
        (["--scenario", "no_such_place"], "no scenario 'no_such_place'"),
        (["--screen_resolution", "RES_1X1"], "RES_1X1"),
        (["--record_stride", "3"], "record_stride 3"),
    ],
)
def test_bad_training_flags_are_refused_in_one_line(flags: list[str], word: str, tmp_path: Path) -> None:
    began_s = time.monotonic()
    assert is_refused(call(TRAIN, "--out_base_dir", tmp_path / "new", *flags), word)
    assert time.monotonic() - began_s < 2
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 64 agent steps on one game."""
    folder = tmp_path_factory.mktemp("trained")
    result = call(TRAIN, "--out_base_dir", folder, *ONE_GAME, "--total_timesteps", "64")
    assert result.returncode == 0, result.stderr
    assert "encode_images.py --dataset_basepath" in result.stdout.splitlines()[-1]
    return folder


def test_training_records_all_its_play_and_keeps_the_best_policy(trained: Path) -> None:
    episodes = sorted((trained / "train" / "level_0" / "env_0").glob("episode_*.parquet"))
    assert episodes[0].name == "episode_000000.parquet"
    # An agent step is 4 rows with one action, so what PPO stored is what was executed.
    tables = [pq.read_table(path) for path in episodes]
    # The run may end just after an episode began; a beginning that short is not kept.
    assert 64 - MIN_KEPT_STEPS < sum(table["step_ids"][-1].as_py() + 1 for table in tables) <= 64
    for table in tables[:-1]:
        steps, actions = table["step_ids"].to_numpy(), table["actions"].to_numpy()
        assert all(len(set(actions[steps == step])) == 1 for step in set(steps))
        assert np.bincount(steps)[:-1].tolist() == [4] * steps[-1]
    facts = [footer(path) for path in episodes]
    assert [fact["agent_step"] for fact in facts][:2] == [0, tables[0]["step_ids"][-1].as_py() + 1]
    assert {fact["run_id"] for fact in facts} == {state(trained)["run_id"]}
    assert len(list((trained / "eval" / "level_0" / "env_0").glob("episode_*.parquet"))) == 1
    policy = trained / "policy"
    evaluation = json.loads((policy / "evaluations.json").read_text())[-1]
    assert (evaluation["agent_steps"], evaluation["level"]) == (64, 0)
    assert {"best_model.zip", "last_model.zip", "metrics.jsonl"} <= {path.name for path in policy.iterdir()}
    assert list((policy / "tensorboard").glob("events*"))
    assert (state(trained)["agent_steps"], state(trained)["updates"]) == (64, 2)  # no rollout goes unlearned


def test_a_finished_or_foreign_run_is_never_overwritten(trained: Path, tmp_path: Path) -> None:
    before = contents(trained)
    again = call(TRAIN, "--out_base_dir", trained, *ONE_GAME, "--total_timesteps", "64")
    assert is_refused(again, "another run", "--resume")
    resumed = call(TRAIN, "--out_base_dir", trained, *ONE_GAME, "--total_timesteps", "64", "--resume")
    assert resumed.returncode == 0
    assert "already complete" in resumed.stdout
    other = call(TRAIN, "--out_base_dir", trained, *ONE_GAME, "--record_stride", "2", "--resume")
    assert is_refused(other, "record_stride 1", "asks for 2", "another --out_base_dir")
    assert contents(trained) == before
    (tmp_path / "episode_000000.parquet").write_bytes(b"precious")
    assert is_refused(call(TRAIN, "--out_base_dir", tmp_path, "--resume"), "unknown origin", "--out_base_dir")
    assert [path.name for path in tmp_path.iterdir()] == ["episode_000000.parquet"]


def saved_steps(folder: Path) -> int | None:
    """The agent steps of the newest checkpoint; a kill between two renames leaves the one before it alone."""
    for name in ("last_model.zip", "previous_model.zip"):
        with contextlib.suppress(FileNotFoundError):
            return state(folder, name)["agent_steps"]
    return None


@pytest.mark.slow
def test_a_run_killed_again_and_again_loses_no_finished_episode_and_its_counters_go_on(tmp_path: Path) -> None:
    flags = ["--out_base_dir", tmp_path, *TINY, "--n_train_envs", "2", "--resume"]
    moments = random.Random(5)
    kept: dict[str, bytes] = {}
    steps = 0
    for _ in range(3):
        run, mark = start(TRAIN, *flags, "--total_timesteps", "100000")
        try:
            wait_for(lambda kept=kept: len(contents(tmp_path)) >= len(kept) + 4, 120)
            wait_for(lambda before=steps: (saved_steps(tmp_path) or 0) >= before + 64, 120)
            time.sleep(moments.uniform(0, 0.3))
        finally:
            run.kill()
            run.wait()
        wait_for(lambda mark=mark: not still_running(mark))  # the games notice and end
        now = contents(tmp_path)
        assert kept.items() <= now.items()
        kept, steps = now, saved_steps(tmp_path)
    half = tmp_path / "train" / "level_0" / "env_1" / ".episode_000999.partial.parquet"
    half.write_bytes(b"half")
    result = call(TRAIN, *flags, "--total_timesteps", str(steps + 64))
    assert result.returncode == 0, result.stderr
    now = contents(tmp_path)
    assert kept.items() <= now.items() and len(now) > len(kept)
    assert not list(tmp_path.rglob("*.partial*"))
    assert state(tmp_path)["agent_steps"] == steps + 64
    for env in sorted((tmp_path / "train" / "level_0").iterdir()):
        episodes = sorted(env.glob("episode_*.parquet"))
        assert [path.name for path in episodes] == [f"episode_{n:06d}.parquet" for n in range(len(episodes))]
        began = [footer(path)["agent_step"] for path in episodes]
        assert began == sorted(set(began))


def test_sigterm_saves_policy_and_the_episodes_begun(tmp_path: Path) -> None:
    run, mark = start(TRAIN, "--out_base_dir", tmp_path, *ONE_GAME, "--total_timesteps", "100000")
    wait_for(lambda: (tmp_path / "policy" / "last_model.zip").exists() and state(tmp_path)["agent_steps"] >= 32)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 128 + signal.SIGTERM
    assert not still_running(mark)
    assert not list(tmp_path.rglob("*.partial*"))
    episodes = sorted((tmp_path / "train").rglob("episode_*.parquet"))
    played = sum(pq.read_table(path, columns=["step_ids"])["step_ids"][-1].as_py() + 1 for path in episodes)
    assert 0 <= state(tmp_path)["agent_steps"] - played < MIN_KEPT_STEPS  # a lone step is no episode


def test_the_next_level_takes_ten_good_episodes_on_this_one() -> None:
    progress = Progress(run_id="x")
    good = [progress.add_return(0, 5.1) for _ in range(RETURNS_PER_LEVEL)]
    assert good == [False] * (RETURNS_PER_LEVEL - 1) + [True]
    assert (progress.level, progress.last_returns) == (1, [])
    assert not progress.add_return(0, 100.0)  # began on the old level
    assert not any(progress.add_return(1, 10.0) for _ in range(20))  # the threshold itself is not enough
    assert progress.level == 1
    progress.level, progress.last_returns = 5, [1000.0] * 9
    assert not progress.add_return(5, 1000.0)


RANDOM_PLAY = ["--policy", "random", *SMALL_GAME, "--output", "parquet", "--level", "2"]


@pytest.fixture(scope="module")
def three_episodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What RANDOM_PLAY records with one worker."""
    folder = tmp_path_factory.mktemp("three")
    result = call(GENERATE, *RANDOM_PLAY, "--episodes", "3", "--output_dir", folder, "--num_workers", "1")
    assert result.returncode == 0, result.stderr
    return contents(folder)


def test_generation_repeats_exactly_for_any_number_of_workers(three_episodes: dict[str, bytes], tmp_path: Path) -> None:
    assert list(three_episodes) == [f"train/level_2/random/episode_{n:06d}.parquet" for n in range(3)]
    assert len(set(three_episodes.values())) == 3
    flags = [*RANDOM_PLAY, "--episodes", "3", "--output_dir", tmp_path]
    assert call(GENERATE, *flags, "--num_workers", "2").returncode == 0
    assert contents(tmp_path) == three_episodes
    # A repeated run adds what is missing and touches nothing else; other settings are refused.
    folder = tmp_path / "train" / "level_2" / "random"
    (folder / "episode_000001.parquet").unlink()
    times = {path: path.stat().st_mtime_ns for path in folder.glob("episode_*")}
    result = call(GENERATE, *flags, "--num_workers", "1")
    assert "2 were there already" in result.stdout
    assert contents(tmp_path) == three_episodes
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert is_refused(call(GENERATE, *flags, "--seed", "5"), "seed 0", "asks for 5", "--output_dir")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_generation_cut_short_leaves_no_half_episode_and_no_game(
    number: int, three_episodes: dict[str, bytes], tmp_path: Path
) -> None:
    run, mark = start(GENERATE, *RANDOM_PLAY, "--episodes", "500", "--output_dir", tmp_path, "--num_workers", "2")
    try:
        wait_for(lambda: len(contents(tmp_path)) >= 2)
    finally:
        run.send_signal(number)
        code = run.wait(timeout=60)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    wait_for(lambda: not still_running(mark))
    assert not list(tmp_path.rglob("*.partial*"))
    recorded = contents(tmp_path)
    assert {name: recorded[name] for name in three_episodes if name in recorded}.items() <= three_episodes.items()
    assert all(pq.read_metadata(tmp_path / name).num_rows > 0 for name in recorded)


def test_the_trained_policy_plays_its_own_game(trained: Path, tmp_path: Path) -> None:
    best = trained / "policy" / "best_model.zip"
    game = ["--screen_resolution", "RES_160X120", "--episode_tics", "80", "--split", "eval", "--device", "cpu"]
    result = call(GENERATE, "--policy", best, *game, "--output_dir", tmp_path, "--num_workers", "1")
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.rglob("episode_*.parquet")
    assert str(path.relative_to(tmp_path)) == "eval/level_5/best_model/episode_000000.parquet"
    facts = footer(path)
    assert (facts["scenario"], facts["level"], facts["agent_step"]) == ("basic", 5, 0)
    other = call(GENERATE, "--policy", best, *game, "--scenario", "defend_the_center", "--output_dir", tmp_path / "no")
    assert is_refused(other, "other actions", "leave out --scenario")
    assert not (tmp_path / "no").exists()


def test_a_poisoned_policy_file_is_refused_unrun(trained: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Payload:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(mark),)

    best, poisoned = trained / "policy" / "best_model.zip", tmp_path / "poisoned.zip"
    payload = pickle.dumps(Payload())
    data = json.dumps({"x": {":type:": "x", ":serialized:": base64.b64encode(payload).decode()}})
    with zipfile.ZipFile(best) as source, zipfile.ZipFile(poisoned, "w") as target:
        target.writestr("policy.json", source.read("policy.json"))
        target.writestr("data", data)
        target.writestr("policy.pth", payload)
    result = call(GENERATE, "--policy", poisoned, "--device", "cpu", "--output_dir", tmp_path / "out")
    assert is_refused(result, "poisoned.zip is not a policy file of plain weights")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_a_missing_policy_names_the_cure_at_once(tmp_path: Path) -> None:
    began_s = time.monotonic()
    result = call(GENERATE, "--policy", tmp_path / "none.zip", "--output_dir", tmp_path / "out")
    assert time.monotonic() - began_s < 2
    assert is_refused(result, "none.zip", "train_ppo_and_collect_data_parallel.py", "--policy random")


def test_any_gymnasium_game_is_recorded_exactly(tmp_path: Path) -> None:
    flags = ["--env", "toy_world:Square-v0", "--policy", "random", "--image_format", "png", "--episode_tics", "30"]
    result = call(GENERATE, *flags, "--episodes", "2", "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert list(contents(tmp_path)) == [f"train/level_0/random/episode_{n:06d}.parquet" for n in range(2)]
    table = pq.read_table(tmp_path / "train" / "level_0" / "random" / "episode_000000.parquet")
    frames = [np.asarray(Image.open(io.BytesIO(frame))) for frame in table["frames"].to_pylist()]
    assert len(frames) == 30
    places = [int(np.flatnonzero(frame[24, :, 0] == 240)[0]) for frame in frames]
    moved = [toy_world.moved(x, a) for x, a in zip(places, table["actions"].to_pylist(), strict=True)]
    assert moved[:-1] == places[1:]


def test_a_gif_shows_every_agent_step_with_its_action_at_game_speed(tmp_path: Path) -> None:
    flags = ["--output", "gif", "--policy", "random", *SMALL_GAME, "--num_workers", "1"]
    result = call(GENERATE, *flags, "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode_000000.gif", "recording.json"]
    with Image.open(tmp_path / "episode_000000.gif") as gif:
        assert gif.size == (320, 240 + 14)
        assert gif.n_frames > 10
        assert gif.info["duration"] == 110  # 4 tics at 35 a second, in the hundredths of a second a gif knows
        assert len(set(gif.convert("RGB").crop((0, 240, 320, 254)).getdata())) > 1  # there is writing below the picture
