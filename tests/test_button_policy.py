"""An action's logit is the sum of those of its buttons: however it is asked for, in files, and when PPO learns."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from actions import action_table, table_rows
from observation import Observer
from policy import GamePPO, architecture, count_actions, load_policy, save_policy
from train_ppo_and_collect_data_parallel import presses

TABLE = table_rows(action_table(["ATTACK", "MOVE_FORWARD", "TURN_LEFT", "TURN_RIGHT", "USE"]))
NAMES = [row["name"] for row in TABLE]


class Lamp(gymnasium.Env):
    """A screen, bright or dark at random; ATTACK pays 1 where it is bright and -1 where it is dark, whatever else."""

    def __init__(self, observe_map: bool = False, action_history: int = 0) -> None:
        self.observer = Observer(len(TABLE), observe_map, action_history, observation_shrink=2)
        self.observation_space = self.observer.space()
        self.action_space = gymnasium.spaces.Discrete(len(TABLE))

    def _seen(self) -> np.ndarray | dict[str, np.ndarray]:
        self.is_bright = bool(self.np_random.integers(2))
        picture = np.full((120, 160, 3), 220 if self.is_bright else 20, np.uint8)
        picture[::7] = 128
        return self.observer.observe(picture, picture)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        super().reset(seed=seed)
        self.observer.forget()
        self.steps = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple:
        fires = "ATTACK" in TABLE[int(action)]["buttons"]
        reward = float(fires) * (1 if self.is_bright else -1)
        self.observer.note(int(action))
        self.steps += 1
        return self._seen(), reward, False, self.steps == 16, {}


def agent(env: Lamp, repeat_probability: float = 0.0, **settings: float) -> GamePPO:
    network = architecture(env.observation_space, repeat_probability, presses(TABLE))
    return GamePPO(env=env, seed=0, device="cpu", **{"n_steps": 32, "batch_size": 32, **settings}, **network)


def probabilities(model: GamePPO, env: Lamp) -> torch.Tensor:
    """(A,): of the actions on what the env shows at its beginning."""
    observation = model.policy.obs_to_tensor(env.reset(seed=1)[0])[0]
    with torch.no_grad():
        return model.policy.get_distribution(observation).distribution.probs[0]


def test_the_table_of_presses_has_a_row_for_each_action_and_a_column_for_each_button() -> None:
    rows = [{"buttons": []}, {"buttons": ["USE"]}, {"buttons": ["ATTACK", "TURN_LEFT"]}]
    assert presses(rows) == [[0, 0, 0], [0, 0, 1], [1, 1, 0]]  # ATTACK, TURN_LEFT, USE


def test_probabilities_are_products_of_the_buttons() -> None:
    env = Lamp()
    model = agent(env)
    net = model.policy.action_net
    with torch.no_grad():
        net.buttons.weight.zero_()
        # ATTACK, MOVE_FORWARD, TURN_LEFT, TURN_RIGHT, USE
        net.buttons.bias.copy_(torch.tensor([2.0, 3.0, 5.0, 0.5, 7.0]).log())
    probs = probabilities(model, env)
    weights = {"NOOP": 1, "ATTACK": 2, "MOVE_FORWARD+TURN_LEFT": 15, "ATTACK+MOVE_FORWARD+TURN_RIGHT": 3, "USE": 7}
    assert {name: float(probs[NAMES.index(name)] / probs[NAMES.index("NOOP")]) for name in weights} == pytest.approx(
        weights, rel=1e-4
    )
    # (1 + 2)(1 + 3)(1 + 5 + 0.5) combinations and USE alone
    assert float(probs[NAMES.index("NOOP")]) == pytest.approx(1 / (3 * 4 * 6.5 + 7), rel=1e-4)


@pytest.mark.parametrize(
    ("seen", "repeat_probability"), [({}, 0.0), ({"observe_map": True}, 0.0), ({"action_history": 2}, 0.3)]
)
def test_a_saved_policy_of_buttons_plays_as_before(seen: dict, repeat_probability: float, tmp_path: Path) -> None:
    env = Lamp(**seen)
    model = agent(env, repeat_probability, n_epochs=1).learn(32)
    path = tmp_path / "best_model.zip"
    save_policy(path, model, {})
    again = load_policy(path, env.observation_space, env.action_space, "cpu", repeat_probability)
    assert count_actions(path) == len(TABLE)
    assert torch.equal(probabilities(again, env), probabilities(model, env))


def test_when_to_fire_is_learned_for_all_actions_at_once() -> None:
    """After 40 gradient steps firing follows the lamp with every movement, those hardly tried among them."""
    env = Lamp()
    model = agent(env, n_steps=128, batch_size=128, n_epochs=8, learning_rate=3e-3, gamma=0.0).learn(640)
    fires = torch.tensor(["ATTACK" in row["buttons"] for row in TABLE])
    for brightness, chance in ((220, (0.9, 1.0)), (20, (0.0, 0.1))):
        picture = np.full((120, 160, 3), brightness, np.uint8)
        picture[::7] = 128
        observation = model.policy.obs_to_tensor(env.observer.observe(picture, picture))[0]
        with torch.no_grad():
            probs = model.policy.get_distribution(observation).distribution.probs[0]
        assert chance[0] <= float(probs[fires].sum()) <= chance[1], (brightness, probs)
