"""Real games: exact repeats, exact tics, the recorder's columns, parallel games, scenarios by name or path."""

import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from console import BadInput
from doom_env import MAX_BOTS, DoomEnv, bot_names, find_scenario
from gymnasium.utils.env_checker import check_env
from PIL import Image

SMALL = {"screen_resolution": "RES_160X120"}


def play(env: DoomEnv, steps: int, seed: int) -> tuple[list[np.ndarray], list[float]]:
    """Frames of every tic and rewards of every step under a scripted random player."""
    frames: list[np.ndarray] = []
    env.on_tic = lambda frame, action, columns: frames.append(frame)
    choices = np.random.default_rng(seed).integers(len(env.actions), size=steps)
    return frames, [env.step(action)[1] for action in choices]


def scripted_deaths(level: int, episode_tics: int, seed: int) -> int:
    """Deaths of a player who walks about in squares and never shoots."""
    env = DoomEnv(level=level, episode_tics=episode_tics, **SMALL)
    env.reset(seed=seed)
    names = [action.name for action in env.actions]
    walk = [names.index("MOVE_FORWARD")] * 8 + [names.index("TURN_LEFT")] * 3
    step, truncated = 0, False
    while not truncated:
        _, _, _, truncated, info = env.step(walk[step % len(walk)])
        step += 1
    env.close()
    return info["deaths"]


def test_gymnasium_accepts_the_environment() -> None:
    env = DoomEnv(**SMALL, bots=2)
    check_env(env, skip_render_check=True)
    env.close()


def test_the_same_seed_repeats_a_game_exactly_and_another_does_not() -> None:
    env = DoomEnv(**SMALL)
    games = []
    for seed in (7, 7, 8):
        first, _ = env.reset(seed=seed)
        games.append((first, *play(env, 60, seed=1)))
    env.close()
    (first, frames, rewards), (first_again, frames_again, rewards_again), (_, other_frames, _) = games
    assert np.array_equal(first, first_again) and rewards == rewards_again and len(frames) == 240
    assert all(np.array_equal(a, b) for a, b in zip(frames, frames_again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(frames, other_frames, strict=True))


def test_reset_without_a_seed_starts_another_game_that_the_first_seed_decides() -> None:
    firsts = []
    for _ in range(2):
        env = DoomEnv(seed=5, bots=1, **SMALL)
        firsts.append([env.reset()[0], env.reset()[0]])
        env.close()
    assert np.array_equal(firsts[0][0], firsts[1][0]) and np.array_equal(firsts[0][1], firsts[1][1])
    assert not np.array_equal(firsts[0][0], firsts[0][1])


@pytest.mark.parametrize(("resolution", "screen"), [("RES_160X120", (160, 120)), ("RES_320X240", (320, 240))])
def test_observation_is_the_cropped_screen_at_any_resolution(resolution: str, screen: tuple[int, int]) -> None:
    env = DoomEnv(screen_resolution=resolution, bots=0)
    observation, _ = env.reset(seed=1)
    frame = env.render()
    env.close()
    assert env.screen_size == screen and frame.shape == (screen[1], screen[0], 3) and frame.dtype == np.uint8
    scale = screen[0] // 160
    cropped = frame[20 * scale :, 2 * scale : -2 * scale].astype(float)
    means = cropped.reshape(100, scale, 156, scale, 3).mean(axis=(1, 3))
    assert np.abs(observation - means).max() <= 1


def test_every_tic_is_reported_with_the_frame_seen_before_it() -> None:
    env = DoomEnv(bots=0, tics_per_step=3, episode_tics=20, **SMALL)
    env.reset(seed=2)
    calls = []
    env.on_tic = lambda frame, action, columns: calls.append((frame, action, columns))
    forward = next(action.id for action in env.actions if action.name == "MOVE_FORWARD")
    seen, rewards, truncated = [env.render()], [], False
    while not truncated:
        _, reward, terminated, truncated, _ = env.step(forward)
        rewards.append(reward)
        seen.append(env.render())
        assert not terminated
    env.close()
    assert len(calls) == 20 and len(rewards) == 7  # 6 steps of 3 tics and the rest of 2
    assert [action for _, action, _ in calls] == [forward] * 20
    for step in range(7):
        assert np.array_equal(calls[3 * step][0], seen[step])
        tic_rewards = [columns["reward"] for _, _, columns in calls[3 * step : 3 * step + 3]]
        assert rewards[step] == pytest.approx(sum(tic_rewards))
    columns = [columns for _, _, columns in calls]
    assert columns[0]["health"] == 100 and columns[0]["ammo"] == 50 and columns[0]["dead"] is False
    moved = np.hypot(np.diff([c["position_x"] for c in columns]), np.diff([c["position_y"] for c in columns]))
    assert moved[0] > 0, "the position belongs to the frame before the tic, so the first tic's movement shows in row 1"
    names = ["health", "ammo", "frags", "position_x", "position_y", "position_angle", "reward", "dead"]
    assert list(columns[0]) == names


@pytest.mark.parametrize(("resolution", "focal_width"), [("RES_160X120", 0.5), ("RES_320X180", 0.375)])
def test_the_camera_sees_more_on_a_wider_screen(resolution: str, focal_width: float) -> None:
    env = DoomEnv(bots=0, screen_resolution=resolution, report_depth=True)
    assert env.camera is None, "known once the game shows something"
    env.reset(seed=2)
    told = []
    env.on_tic = lambda frame, action, columns: told.append(columns)
    env.step(0)
    env.close()
    assert env.camera["focal_width"] == pytest.approx(focal_width)
    assert env.camera["focal_height"] == pytest.approx(0.8) and 0.3 < env.camera["horizon"] < 0.5
    width, height = env.screen_size
    with Image.open(io.BytesIO(told[0]["depth"])) as depth:
        assert (depth.size, depth.mode) == ((width // 4, height // 4), "L")
    assert told[0]["camera_z"] > 20, "the eye is above the floor"


def test_turning_comes_in_steps_a_player_can_aim_with() -> None:
    env = DoomEnv(bots=0, **SMALL)
    env.reset(seed=2)
    angles: list[float] = []
    env.on_tic = lambda frame, action, columns: angles.append(columns["position_angle"])
    left = next(action.id for action in env.actions if action.name == "TURN_LEFT")
    for _ in range(5):
        env.step(left)
    env.close()
    turned = np.diff(np.unwrap(angles, period=360))
    assert turned[:4].sum() == pytest.approx(7, abs=0.2), "a tap of one step"
    assert turned[-4:].sum() == pytest.approx(14, abs=0.2), "a held key"


def test_the_dead_rise_and_the_episode_goes_on() -> None:
    env = DoomEnv(level=5, bots=8, episode_tics=4000, **SMALL)
    env.reset(seed=3)
    dead: list[bool] = []
    env.on_tic = lambda frame, action, columns: dead.append(columns["dead"])
    truncated, terminated = False, False
    while not (truncated or terminated):
        _, _, terminated, truncated, info = env.step(0)
    env.close()
    assert truncated and not terminated and len(dead) == 4000 and info["deaths"] > 0
    risings = [t for t in range(1, 4000) if dead[t - 1] and not dead[t]]
    assert risings, "nobody came back to life"
    assert sum(dead) < 60 * info["deaths"], "dead for much longer than a second"


def test_bots_move_fight_and_score() -> None:
    env = DoomEnv(level=5, episode_tics=2100, **SMALL)
    env.reset(seed=0)
    for _ in range(500):
        env.step(0)
    state = env._game.get_server_state()
    env.close()
    assert state.player_count == 7
    assert sum(state.players_frags[1:]) >= 3


def test_every_bot_asked_for_plays_on_every_level() -> None:
    assert bot_names(3, 2) == ["Level3-1", "Level3-2"] and bot_names(0, 0) == []
    env = DoomEnv(level=5, bots=MAX_BOTS, **SMALL)
    for level in (0, 5):
        env.set_level(level)
        env.reset(seed=0)
        assert env._game.get_server_state().player_count == MAX_BOTS + 1
    env.close()


@pytest.mark.parametrize("tics_per_look", [2, 4])
def test_a_game_looked_at_less_often_is_the_same_game(tics_per_look: int) -> None:
    games = []
    for k in (1, tics_per_look):
        env = DoomEnv(level=2, bots=4, tics_per_look=k, episode_tics=202, **SMALL)
        env.reset(seed=4)
        calls: list[tuple] = []
        env.on_tic = lambda frame, action, known, calls=calls: calls.append((frame, action, {**known, "reward": 0}))
        steps, truncated = 0, False
        while not truncated:
            *_, truncated, _ = env.step(steps % len(env.actions))
            steps += 1
        env.close()
        assert steps == 51 and len(calls) == -(-202 // k)
        games.append(calls)
    every_tic, looks = games
    for (frame, *played), (same, *same_played) in zip(looks, every_tic[::tics_per_look], strict=True):
        assert played == same_played, "action, health, ammo, frags, place, death"
        # What only flickers, such as a muzzle flash, is drawn from random numbers of its own.
        assert (frame != same).any(axis=2).mean() < 0.15


def test_an_able_level_kills_a_scripted_player_more_often() -> None:
    """Level 0 against level 5, two minutes of game each."""
    deaths = {level: sum(scripted_deaths(level, 2100, seed) for seed in (3, 4)) for level in (0, 5)}
    assert deaths[5] >= deaths[0] + 2


@pytest.mark.slow
def test_a_scripted_player_dies_more_often_with_every_level_from_the_second_on() -> None:
    """Twelve minutes of game on each level; games repeat exactly, so this is no matter of luck. 0 and 1 are alike."""
    deaths = [sum(scripted_deaths(level, 3150, seed) for seed in range(8)) for level in range(6)]
    rising = [max(deaths[:2]), *deaths[2:]]
    assert all(higher > lower for lower, higher in itertools.pairwise(rising)), deaths


def test_many_games_at_once_share_nothing() -> None:
    envs = [DoomEnv(bots=1, **SMALL) for _ in range(4)]
    for env in envs:
        env.reset(seed=4)
    histories = [play(env, 5, seed=0)[0] for env in envs]
    for env in envs:
        env.close()
    for history in histories[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(histories[0], history, strict=True))


@pytest.mark.parametrize(
    ("scenario", "actions"),
    [("basic", 6), ("defend_the_center", 6), ("my_way_home", 18), ("health_gathering", 6), ("deathmatch", 62)],
)
def test_single_player_scenarios_of_the_package_play_by_name(scenario: str, actions: int) -> None:
    env = DoomEnv(scenario, **SMALL)
    assert len(env.actions) == actions and not env.is_deathmatch
    env.reset(seed=1)
    frames, rewards = play(env, 3, seed=0)
    env.close()
    assert len(frames) == 12 and env.scenario_name == scenario and np.isfinite(rewards).all()


def test_a_scenario_may_end_its_own_episode() -> None:
    env = DoomEnv("basic", **SMALL)
    env.reset(seed=1)
    steps, terminated, truncated = 0, False, False
    while not (terminated or truncated):
        observation, _, terminated, truncated, _ = env.step(0)
        steps += 1
    env.close()
    assert truncated and not terminated and steps < 80  # its own limit: 300 tics
    assert observation.shape == (100, 156, 3)


def test_a_map_for_several_players_is_hosted_instead_of_crashing() -> None:
    env = DoomEnv("multi_duel", bots=2, **SMALL)
    env.reset(seed=1)
    assert env.is_deathmatch and env._game.get_server_state().player_count == 3
    env.close()


def test_own_cfg_and_wad_play_from_a_path_with_spaces_and_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my maps"
    folder.mkdir()
    source = find_scenario("deathmatch_simple")
    shutil.copy(source, folder / "mine.cfg")
    shutil.copy(source.with_suffix(".wad"), folder)
    shutil.copy(find_scenario("basic").with_suffix(".wad"), folder / "alone.wad")
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    for scenario, is_deathmatch in (("mine.cfg", True), ("deathmatch_simple.wad", True), ("alone.wad", False)):
        env = DoomEnv(scenario, bots=1, **SMALL)
        env.reset(seed=1)
        env.step(0)
        env.close()
        assert env.is_deathmatch == is_deathmatch and len(env.actions) == 54
    assert sorted(folder.iterdir()) == before, "a game left files in the working directory"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "no_such_map"}, r"no scenario 'no_such_map'.*deathmatch_simple.*my_way_home"),
        ({"scenario": "gone/my.cfg"}, r"no scenario 'gone/my.cfg'"),
        ({"level": 6}, "level 6 is out of range; give 0 to 5"),
        ({"bots": 13}, "bots 13 is out of range; give 0 to 12"),
        ({"observation_shrink": 3}, "observation_shrink 3 is out of range; give 1 to 2"),
        ({"tics_per_look": 3}, "tics_per_look 3 does not divide the 4 tics"),
        ({"tics_per_step": 0}, "tics_per_step 0"),
        ({"screen_resolution": "RES_1X1"}, "unknown screen resolution 'RES_1X1'"),
        ({"reward": "none"}, "unknown reward 'none'"),
        ({"action_set": "none"}, "unknown action set 'none'"),
    ],
)
def test_bad_arguments_are_refused_before_a_game_starts(arguments: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        DoomEnv(**arguments)


def test_a_broken_wad_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.wad"
    contents = {b"": "not a whole WAD", b"JPEG" + bytes(20): "not a WAD", b"PWAD" + bytes(8): "no map"}
    for content, message in contents.items():
        broken.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            DoomEnv(str(broken))


def test_close_may_be_repeated_and_step_then_says_what_to_do() -> None:
    env = DoomEnv(bots=0, **SMALL)
    env.close()
    env.reset(seed=0)
    folder = env._folder
    env.close()
    env.close()
    assert not folder.exists()
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step(0)


def test_importing_the_environment_does_not_import_vizdoom() -> None:
    check = "import sys; import doom_env; sys.exit('vizdoom' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY / "ViZDoomPPO", check=True)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for the engine in /proc")
def test_the_next_game_ends_the_engine_of_a_killed_process() -> None:
    script = (
        "import time; from doom_env import DoomEnv; env = DoomEnv(bots=0); env.reset();"
        "print(env._folder, flush=True); time.sleep(60)"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY / "ViZDoomPPO", stdout=subprocess.PIPE, text=True
    )
    folder = Path(killed.stdout.readline().strip())
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert folder.exists() and _engines_of(folder)
    env = DoomEnv(bots=0, **SMALL)
    env.reset(seed=0)
    env.close()
    deadline = time.monotonic() + 5
    while _engines_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists() and not _engines_of(folder)


def _engines_of(folder: Path) -> list[Path]:
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{folder}/".encode() in command.read_bytes():
                found.append(command)
        except OSError:
            continue
    return found
