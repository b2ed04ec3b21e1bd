"""Promises of dream_env.py and sb3_dream.py: the dream is a gymnasium environment, alone and in a batch."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from tiny_models import ACTION_TABLE, LEFT, NOOP, RIGHT, Recorder, tiny_world_model

from command_line import BadInput
from dream_env import DreamEnv, DreamVectorEnv
from engine import GameEngine

ID = "dream_env:NeuralDoom-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny") / "world_model"
    tiny_world_model().save(path)
    return str(path)


def brightening(before: np.ndarray, after: np.ndarray) -> float:
    return float(after.mean() - before.mean())


def make(folder: str, **settings: object) -> gymnasium.Env:
    return gymnasium.make(ID, model_folder=folder, device="cpu", **settings)


def make_vec(folder: str, number: int, **settings: object) -> gymnasium.vector.VectorEnv:
    return gymnasium.make_vec(ID, num_envs=number, model_folder=folder, device="cpu", **settings)


# ------------------------------------------------------------------------------------------------ one dream


@pytest.mark.filterwarnings("error")
def test_both_checkers_pass_it_without_a_warning(folder: str) -> None:
    from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

    check_env(make(folder, render_mode="rgb_array").unwrapped)
    check_env_of_sb3(make(folder, render_mode="rgb_array").unwrapped)


def test_it_is_the_checkpoints_game_and_draws_what_the_engine_draws(folder: str) -> None:
    env = make(folder, render_mode="rgb_array", num_inference_steps=1, discretized_noise_level=2)
    assert env.action_space == gymnasium.spaces.Discrete(3)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (60, 80, 3), np.uint8)
    assert env.metadata["render_fps"] == 10 and env.unwrapped.get_action_meanings() == ["NOOP", "LEFT", "RIGHT"]
    frame, info = env.reset(seed=3, options={"start": 1})
    engine = GameEngine.from_pretrained(folder, num_inference_steps=1, discretized_noise_level=2)
    engine.reset_to_start(1, seed=info["noise_seed"])
    assert info["start"] == 1 and np.array_equal(frame, engine.decode_latents(engine.latents[:, -1])[0])
    for action in (LEFT, RIGHT, NOOP):
        seen = env.step(action)
        assert np.array_equal(seen[0], engine.step(action)) and seen[1:] == (0.0, False, False, {})
        assert np.array_equal(env.render(), seen[0])


def test_a_seed_repeats_a_game_and_all_that_follow_it(folder: str) -> None:
    env = make(folder)

    def two_games(seed: int) -> list:
        played = []
        for given in (seed, None):
            frame, info = env.reset(seed=given)
            played += [info["noise_seed"], frame.tobytes(), env.step(RIGHT)[0].tobytes()]
        return played

    first, other = two_games(1), two_games(2)
    assert two_games(1) == first and other[0] != first[0] != first[3]
    assert {env.reset()[1]["start"] for _ in range(20)} == {0, 1}
    fixed = make(folder, start=1)
    assert {fixed.reset()[1]["start"] for _ in range(8)} == {1}
    assert fixed.reset(options={"start": 0})[1]["start"] == 0


def test_the_reward_is_zero_unless_a_function_of_two_frames_gives_one_and_time_alone_ends_it(folder: str) -> None:
    env = make(folder, reward_function=brightening, max_episode_steps=3)
    frame, _ = env.reset(seed=0)
    for step in range(1, 4):
        before = frame
        frame, reward, terminated, truncated, _ = env.step(LEFT)
        assert reward == pytest.approx(brightening(before, frame)) and reward != 0
        assert (terminated, truncated) == (False, step == 3)


def test_wrong_input_is_one_line(folder: str, tmp_path: Path) -> None:
    for settings, said in (
        ({"model_folder": str(tmp_path)}, "not a world-model folder"),
        ({"model_folder": folder, "start": 2}, "0 to 1"),
        ({"model_folder": folder, "num_inference_steps": 0}, "--num_inference_steps 0"),
    ):
        for making in (gymnasium.make, gymnasium.make_vec):
            with pytest.raises(BadInput, match=said) as error:
                making(ID, **settings)
            assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match="start 7"):
        make(folder).reset(options={"start": 7})
    for env in (DreamEnv(folder), DreamVectorEnv(folder, 2)):
        with pytest.raises(ResetNeeded):
            env.step(np.array([0, 0]))


def test_a_checkpoint_without_beginnings_begins_from_black(tmp_path: Path) -> None:
    model = tiny_world_model()
    model.start_contexts = None
    model.save(tmp_path / "world_model")
    env = make(str(tmp_path / "world_model"))
    frame, info = env.reset(seed=1)
    engine = GameEngine(model)
    assert info["start"] == 0 and np.array_equal(frame, engine.decode_latents(engine.black_latent[None])[0])
    env.step(LEFT)


# ------------------------------------------------------------------------------------------------ a batch of dreams


def test_a_batch_is_one_pass_of_the_network_per_sampling_step(folder: str) -> None:
    envs = make_vec(folder, 5, num_inference_steps=2)
    assert isinstance(envs, DreamVectorEnv) and envs.single_action_space.n == len(ACTION_TABLE)
    envs.reset(seed=0)
    recorder = Recorder(envs._games.engine.world_model)
    envs.step(np.array([LEFT, RIGHT, NOOP, LEFT, RIGHT]))
    assert [len(call.noised) for call in recorder.calls] == [5, 5]
    assert recorder.calls[0].actions[:, -1].tolist() == [LEFT, RIGHT, NOOP, LEFT, RIGHT]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_batch_plays_what_single_dreams_of_its_seeds_play(folder: str, mode: AutoresetMode) -> None:
    """Against gymnasium's own SyncVectorEnv over three single dreams, over the ends of two episodes."""
    settings = {"reward_function": brightening, "max_episode_steps": 3, "render_mode": "rgb_array"}
    batch = make_vec(folder, 3, autoreset_mode=mode, **settings)
    singles = make_vec(folder, 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **settings)
    assert batch.metadata["autoreset_mode"] == singles.metadata["autoreset_mode"] == mode
    frames, infos = batch.reset(seed=7)
    expected_frames, expected_infos = singles.reset(seed=7)
    draw = np.random.default_rng(0)
    for _ in range(8):
        # Several games at once add up numbers in another order than one: a rounding apart, now and then.
        assert np.abs(frames.astype(int) - expected_frames).max() <= 1
        assert infos.keys() == expected_infos.keys()
        for name in infos.keys() & {"start", "noise_seed", "_start", "_final_obs"}:
            assert infos[name].tolist() == expected_infos[name].tolist()
        actions = draw.integers(3, size=3)
        frames, rewards, terminations, truncations, infos = batch.step(actions)
        expected_frames, expected_rewards, _, expected_truncations, expected_infos = singles.step(actions)
        assert rewards == pytest.approx(expected_rewards, abs=0.05) and not terminations.any()
        assert truncations.tolist() == expected_truncations.tolist()
        assert all(np.array_equal(*pair) for pair in zip(batch.render(), frames, strict=True))
    if mode == AutoresetMode.SAME_STEP:
        assert "final_obs" in batch.step(actions)[-1]


def test_a_game_of_a_batch_depends_on_none_beside_it(folder: str) -> None:
    """Bit for bit: other seeds, other actions, another place in the batch, others that begin anew."""

    def game(place: int, others: int) -> list[bytes]:
        envs, seen = make_vec(folder, 4, max_episode_steps=None), []
        seeds = [others + each for each in range(4)]
        seeds[place] = 11
        frames, _ = envs.reset(seed=seeds)
        for step in range(6):
            seen.append(frames[place].tobytes())
            actions = np.full(4, others % 3)
            actions[place] = step % 3
            frames = envs.step(actions)[0]
            if step == 2 and others > 50:
                mask = np.ones(4, bool)
                mask[place] = False
                frames, infos = envs.reset(options={"reset_mask": mask})
                assert infos["_start"].tolist() == mask.tolist()
        return seen

    alone = game(0, 0)
    assert game(0, 100) == alone and game(2, 50) == alone


def test_games_that_are_over_wait_for_a_reset_where_none_comes_by_itself(folder: str) -> None:
    envs = DreamVectorEnv(folder, 2, max_episode_steps=2, autoreset_mode="Disabled")
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(seed=0, options={"start": [1, 0]})
    envs.step([0, 0])
    envs.reset(options={"reset_mask": np.array([False, True])})
    assert envs.step([0, 0])[3].tolist() == [True, False]
    with pytest.raises(ResetNeeded, match="\\[0\\]"):
        envs.step([0, 0])
    envs.reset(options={"reset_mask": np.array([True, False])})
    assert envs.step([0, 0])[3].tolist() == [False, True]


# ------------------------------------------------------------------------------------------------ stable-baselines3


def learned(env: object) -> dict[str, object]:
    from stable_baselines3 import PPO

    agent = PPO("CnnPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    agent.learn(16)
    moved = [name for name, tensor in agent.policy.state_dict().items() if not tensor.equal(before[name])]
    assert moved and agent.num_timesteps == 16
    return {"lengths": [each["l"] for each in agent.ep_info_buffer], "buffer": agent.rollout_buffer}


def test_stable_baselines3_learns_in_one_dream_and_in_a_batch(folder: str) -> None:
    from stable_baselines3.common.vec_env import VecMonitor

    from sb3_dream import DreamVecEnv

    settings = {"reward_function": brightening, "max_episode_steps": 5}
    single = learned(make(folder, **settings))
    assert single["lengths"] == [5, 5, 5]
    envs = DreamVecEnv(folder, 2, device="cpu", **settings)
    batch = learned(VecMonitor(envs))
    assert batch["lengths"] == [5, 5] and batch["buffer"].rewards.any()


def test_the_last_frame_of_an_episode_reaches_stable_baselines3(folder: str) -> None:
    from sb3_dream import DreamVecEnv

    envs = DreamVecEnv(folder, 2, device="cpu", max_episode_steps=2)
    plain = DreamVectorEnv(folder, 2, device="cpu", max_episode_steps=None)
    envs.seed(5)
    envs.set_options({"start": 1})
    assert np.array_equal(envs.reset(), plain.reset(seed=5, options={"start": 1})[0])
    assert [info["start"] for info in envs.reset_infos] == [1, 1]
    for step in range(2):
        frames, rewards, dones, infos = envs.step(np.array([LEFT, RIGHT]))
        expected = plain.step(np.array([LEFT, RIGHT]))[0]
        assert dones.tolist() == [step == 1] * 2 and not rewards.any()
    assert [info["TimeLimit.truncated"] for info in infos] == [True, True]
    assert np.array_equal(np.stack([info["terminal_observation"] for info in infos]), expected)
    assert not np.array_equal(frames, expected) and envs.get_images()[0].shape == (60, 80, 3)
