"""The repetition is part of the policy: what PPO stores, scores and learns from is what is executed."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from observation import Observer
from policy import GamePPO, architecture, load_policy, save_policy
from repeating_policy import RepeatingPolicy, repeating_logits
from torch import Tensor

ACTIONS, HISTORY = 4, 3


class Counter(gymnasium.Env):
    """Shows nothing but noise, the map and the last actions; notes every action it is given. 20 steps an episode."""

    def __init__(self) -> None:
        self.observer = Observer(ACTIONS, observe_map=True, action_history=HISTORY)
        self.observation_space = self.observer.space()
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)
        self.executed: list[int] = []

    def _seen(self) -> dict[str, np.ndarray]:
        picture = self.np_random.integers(256, size=(120, 160, 3), dtype=np.uint8)
        return self.observer.observe(picture, picture)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.observer.forget()
        self.steps = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        self.executed.append(int(action))
        self.observer.note(int(action))
        self.steps += 1
        return self._seen(), float(action == 1), False, self.steps == 20, {}


def agent(repeat_probability: float, seed: int = 0, steps: int = 32) -> GamePPO:
    env = Counter()
    network = architecture(env.observation_space, repeat_probability)
    settings = {"n_steps": steps, "batch_size": 16, "n_epochs": 1, "device": "cpu"}
    return GamePPO(env=env, seed=seed, **settings, **network)


def test_probabilities_are_those_of_the_mixture() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    mixed = repeating_logits(probabilities.log(), torch.tensor([2, ACTIONS]), 0.25).softmax(dim=1)
    assert mixed[0].tolist() == pytest.approx([0.075, 0.15, 0.475, 0.3])  # 0.75 of each, and 0.25 of the last action
    assert mixed[1].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4]), "at the beginning nothing is repeated"


def test_the_gradient_reaches_only_what_was_chosen_freely() -> None:
    logits = torch.zeros(1, ACTIONS, requires_grad=True)
    torch.nn.functional.log_softmax(repeating_logits(logits, torch.tensor([2]), 0.5), dim=1)[0, 2].backward()
    # d log(0.5 + 0.5 q) / d logit = 0.5 q (1 - q) / (0.5 + 0.5 q) at q = 1/4
    assert logits.grad[0, 2].item() == pytest.approx(0.5 * 0.25 * 0.75 / 0.625)


def observations(last_action: int) -> dict[str, Tensor]:
    grey = torch.full((1, 3, 120, 160), 128, dtype=torch.uint8)
    return {"screen": grey, "map": grey, "last_actions": torch.tensor([[ACTIONS] * (HISTORY - 1) + [last_action]])}


def test_every_way_of_asking_the_policy_gives_the_same_probabilities() -> None:
    policy = agent(0.4).policy
    assert isinstance(policy, RepeatingPolicy)
    seen = observations(3)
    with torch.no_grad():
        expected = policy.get_distribution(seen).distribution.probs[0]
        scored = [policy.evaluate_actions(seen, torch.tensor([action]))[1].exp().item() for action in range(ACTIONS)]
        drawn = [policy.forward(seen) for _ in range(20)]
    assert scored == pytest.approx(expected.tolist(), abs=1e-6) and expected[3] > 0.4
    for actions, _, log_prob in drawn:
        assert log_prob.exp().item() == pytest.approx(expected[actions.item()].item(), abs=1e-6)
    values = [policy.forward(seen)[1], policy.evaluate_actions(seen, actions)[0], policy.predict_values(seen)]
    assert len({round(value.item(), 5) for value in values}) == 1


def test_ppo_learns_from_the_actions_that_were_executed() -> None:
    model = agent(0.9, steps=64)
    env = model.get_env().envs[0].unwrapped
    stored: list[int] = []
    model.learn(64, callback=lambda played, _: stored.append(int(played["actions"][0])) is None)
    assert stored == env.executed[-64:] and len(env.executed) == 64
    assert model.rollout_buffer.actions.ravel().astype(int).tolist() == env.executed
    repeated = sum(a == b for a, b in zip(stored, stored[1:], strict=False))
    assert repeated >= 40, "0.9 and more of them"


def test_a_saved_agent_with_map_history_and_repetition_plays_as_before(tmp_path: Path) -> None:
    model = agent(0.3)
    model.learn(32)
    save_policy(tmp_path / "best.zip", model, {})
    env = Counter()
    again = load_policy(tmp_path / "best.zip", env.observation_space, env.action_space, "cpu", 0.3)
    for last_action in range(ACTIONS + 1):
        seen = observations(last_action)
        with torch.no_grad():
            ours, theirs = (each.policy.get_distribution(seen).distribution.probs for each in (model, again))
        assert torch.equal(ours, theirs)
    assert model.policy.features_extractor.features_dim == 2 * 512 + HISTORY * (ACTIONS + 1)
    heads = model.policy.mlp_extractor
    for head in (heads.policy_net, heads.value_net):
        assert sum(isinstance(layer, torch.nn.Linear) for layer in head) == 2, "two-layer heads"
