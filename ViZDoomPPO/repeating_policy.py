"""A policy that repeats its last action more often than it would: GameNGen's smoother play, part of the policy itself.

The paper applies an action for 4 frames and "artificially" raises the probability of repeating it. Done inside the env,
PPO would credit actions that were never executed. Here the repetition is part of the distribution that is sampled,
whose likelihood and entropy PPO computes: what is chosen is executed, recorded and learned from, on policy exactly.
Used by `policy.py`.
"""

import math
from typing import Any

import torch
from observation import LAST_ACTIONS
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from torch import Tensor


def repeating_logits(logits: Tensor, last_action: Tensor, repeat_probability: float) -> Tensor:
    """Logits of: with `repeat_probability` the last action, otherwise one of the given distribution.

    logits: (B, A) any.  last_action: (B,) integers; A where there is none, which leaves a row's distribution as it is.
    Returns (B, A), normalised: log(p [a = last] + (1 - p) softmax(logits)_a)."""
    log_chosen = logits.log_softmax(dim=1)
    number = logits.shape[1]
    repeated = last_action.long().unsqueeze(1) == torch.arange(number, device=logits.device)  # (B, A)
    log_repeated = torch.where(repeated, math.log(repeat_probability), -math.inf).to(logits.dtype)
    mixed = torch.logaddexp(log_chosen + math.log1p(-repeat_probability), log_repeated)
    return torch.where(repeated.any(dim=1, keepdim=True), mixed, log_chosen)


class RepeatingPolicy(MultiInputActorCriticPolicy):
    """stable-baselines3's policy for dictionary observations with the repetition on top.

    The last action is read off the observation, so the policy knows what it will probably repeat."""

    def __init__(self, *args: Any, repeat_probability: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.repeat_probability = repeat_probability

    def forward(self, obs: dict[str, Tensor], deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        distribution, values = self._distribution_and_values(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: dict[str, Tensor], actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        distribution, values = self._distribution_and_values(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: dict[str, Tensor]) -> Distribution:
        return self._distribution_and_values(obs)[0]

    def _distribution_and_values(self, obs: dict[str, Tensor]) -> tuple[Distribution, Tensor]:
        latent_pi, latent_vf = self.mlp_extractor(self.extract_features(obs))
        last_action = obs[LAST_ACTIONS][:, -1]  # (B, history) -> (B,)
        logits = repeating_logits(self.action_net(latent_pi), last_action, self.repeat_probability)
        return self.action_dist.proba_distribution(action_logits=logits), self.value_net(latent_vf)
