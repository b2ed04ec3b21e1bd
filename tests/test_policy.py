"""Policy files: what is saved comes back, nothing in them is ever unpickled, and training repeats."""

import base64
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import toy_world
from console import BadInput
from policy import (
    CustomCNN,
    GamePPO,
    architecture,
    count_actions,
    load_policy,
    read_member,
    restore_training,
    save_policy,
)
from stable_baselines3 import PPO

FACTS = {"scenario": "square", "action_table": [{"id": 0, "name": "NOOP", "buttons": [], "keys": []}]}


def trained(seed: int = 0, steps: int = 32) -> PPO:
    """A policy after a little training on the toy world."""
    env = toy_world.Square()
    network = architecture(env.observation_space)
    return GamePPO(env=env, n_steps=16, batch_size=16, n_epochs=1, seed=seed, device="cpu", **network).learn(steps)


@pytest.fixture(scope="module")
def model() -> PPO:
    return trained()


def probabilities(model: PPO) -> np.ndarray:
    """(14, 3): what the policy does at every second place of the square."""
    observations = np.stack([toy_world.picture(x) for x in range(0, toy_world.MAX_X + 1, 4)])
    with torch.no_grad():
        return model.policy.get_distribution(model.policy.obs_to_tensor(observations)[0]).distribution.probs.numpy()


def spaces_of(env: gymnasium.Env) -> tuple[gymnasium.Space, gymnasium.spaces.Discrete]:
    return env.observation_space, env.action_space


class Payload:
    """Unpickling it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def with_member(source: Path, target: Path, name: str, content: bytes) -> Path:
    """A copy of a policy file with one member replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            new.writestr(member, content if member == name else old.read(member))
    return target


def test_training_twice_with_one_seed_gives_equal_actions() -> None:
    assert np.array_equal(probabilities(trained(3)), probabilities(trained(3)))
    assert not np.array_equal(probabilities(trained(3)), probabilities(trained(4)))


def test_a_saved_policy_plays_as_before_and_opens_with_plain_ppo(model: PPO, tmp_path: Path) -> None:
    path = tmp_path / "best_model.zip"
    save_policy(path, model, FACTS)
    again = load_policy(path, *spaces_of(toy_world.Square()), "cpu")
    assert np.array_equal(probabilities(again), probabilities(model))
    assert np.array_equal(probabilities(PPO.load(path, device="cpu")), probabilities(model))
    assert read_member(path, "policy.json") == FACTS
    assert count_actions(path) == 3
    assert os.listdir(tmp_path) == ["best_model.zip"]


def test_a_checkpoint_brings_back_policy_optimizer_and_counters(model: PPO, tmp_path: Path) -> None:
    path = tmp_path / "last_model.zip"
    save_policy(path, model, FACTS, state={"agent_steps": 32})
    other = trained(seed=9)
    assert restore_training(path, other) == {"agent_steps": 32}
    assert np.array_equal(probabilities(other), probabilities(model))
    moments = [value["exp_avg"] for value in other.policy.optimizer.state_dict()["state"].values()]
    expected = [value["exp_avg"] for value in model.policy.optimizer.state_dict()["state"].values()]
    assert len(moments) == len(expected) > 10
    assert all(torch.equal(a, b) for a, b in zip(moments, expected, strict=True))


def test_a_payload_in_the_pickled_part_is_never_run(model: PPO, tmp_path: Path) -> None:
    path, mark = tmp_path / "policy.zip", tmp_path / "mark"
    save_policy(path, model, FACTS, state={})
    pickled = base64.b64encode(pickle.dumps(Payload(mark))).decode()
    poison = json.dumps({"policy_class": {":type:": "x", ":serialized:": pickled}}).encode()
    poisoned = with_member(path, tmp_path / "poisoned.zip", "data", poison)
    load_policy(poisoned, *spaces_of(toy_world.Square()), "cpu")
    restore_training(poisoned, trained(seed=9, steps=16))
    assert not mark.exists()
    with pytest.raises(Exception):  # noqa: B017 - the payload is real: stable-baselines3's own loader runs it
        PPO.load(poisoned, device="cpu")
    assert mark.exists()


def test_a_payload_among_the_weights_is_refused_and_never_run(model: PPO, tmp_path: Path) -> None:
    path, mark = tmp_path / "policy.zip", tmp_path / "mark"
    save_policy(path, model, FACTS, state={})
    buffer = io.BytesIO()
    torch.save({"action_net.bias": Payload(mark)}, buffer)
    poisoned = with_member(path, tmp_path / "poisoned.zip", "policy.pth", buffer.getvalue())
    with pytest.raises(BadInput, match="not a policy file of plain weights"):
        load_policy(poisoned, *spaces_of(toy_world.Square()), "cpu")
    with pytest.raises(BadInput, match="does not fit this run"):
        restore_training(poisoned, trained(seed=9, steps=16))
    assert not mark.exists()


@pytest.mark.parametrize("network", ["CnnPolicy", "MlpPolicy"])
def test_plain_stable_baselines3_policies_load_by_their_weights(network: str, tmp_path: Path) -> None:
    env = toy_world.Square() if network == "CnnPolicy" else gymnasium.make("CartPole-v1")
    widths = {"net_arch": [32, 16]} if network == "MlpPolicy" else {}
    original = PPO(network, env, n_steps=16, batch_size=16, device="cpu", policy_kwargs=widths)
    original.save(tmp_path / "other.zip")
    assert read_member(tmp_path / "other.zip", "policy.json") is None
    again = load_policy(tmp_path / "other.zip", *spaces_of(env), "cpu")
    observation, _ = env.reset(seed=0)
    assert again.predict(observation, deterministic=True)[0] == original.predict(observation, deterministic=True)[0]


def test_a_policy_of_another_game_is_refused_in_one_line(model: PPO, tmp_path: Path) -> None:
    path = tmp_path / "policy.zip"
    save_policy(path, model, FACTS)
    picture, _ = spaces_of(toy_world.Square())
    with pytest.raises(BadInput, match="chooses among 3 actions, the game has 54"):
        load_policy(path, picture, gymnasium.spaces.Discrete(54), "cpu")
    larger = gymnasium.spaces.Box(0, 255, (100, 156, 3), np.uint8)
    with pytest.raises(BadInput, match="does not fit observations"):
        load_policy(path, larger, gymnasium.spaces.Discrete(3), "cpu")
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    with pytest.raises(BadInput, match="is not a policy file"):
        load_policy(tmp_path / "broken.zip", picture, gymnasium.spaces.Discrete(3), "cpu")


def test_the_network_is_the_seeds_at_its_size() -> None:
    network = CustomCNN(gymnasium.spaces.Box(0, 255, (3, 100, 156), np.uint8))
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["cnn.0.weight"] == (3, 100, 156)
    assert [shapes[f"cnn.{i}.weight"] for i in (1, 4, 7)] == [(32, 3, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    assert [shapes[f"cnn.{i}.weight"] for i in (2, 5, 8)] == [(32, 24, 38), (64, 11, 18), (64, 9, 16)]
    assert shapes["linear.0.weight"] == (128, 9216)
    assert network(torch.zeros(2, 3, 100, 156)).shape == (2, 128)
