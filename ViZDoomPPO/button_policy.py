"""Policies that learn what each button is good for: an action's logit is the sum of those of the buttons it presses.

Of 54 actions 27 fire. A logit for each would have to be taught 27 times that firing at an enemy pays, every time from a
54th of the play; seven buttons share all of it. Given what is seen, buttons are then pressed independently of each
other, within the combinations that the action table allows. Used by `policy.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from repeating_policy import RepeatingPolicy
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from torch import Tensor, nn

PRESSES = "action_net.presses"  # in a policy's weights


class SummedLogits(nn.Module):
    """A linear layer to the buttons' logits and their sums. presses: (A, buttons) 0 or 1, by row of the action table.

    latent: (B, latent_dim). Returns (B, A)."""

    def __init__(self, latent_dim: int, presses: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.buttons = nn.Linear(latent_dim, len(presses[0]))
        self.register_buffer("presses", torch.tensor(presses, dtype=torch.float32))

    def forward(self, latent: Tensor) -> Tensor:
        return self.buttons(latent) @ self.presses.T  # (B, buttons) -> (B, A)


class ButtonDistribution(CategoricalDistribution):
    """stable-baselines3's distribution over actions, with `SummedLogits` as the layer before it."""

    def __init__(self, presses: Sequence[Sequence[int]]) -> None:
        super().__init__(len(presses))
        self.presses = presses

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return SummedLogits(latent_dim, self.presses)


class SumsButtons:
    """Mixed into a policy: its logits are sums over the pressed buttons."""

    def __init__(self, *args: Any, presses: Sequence[Sequence[int]], **kwargs: Any) -> None:
        self._presses = presses
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = ButtonDistribution(self._presses)
        super()._build(lr_schedule)


class ButtonMlpPolicy(SumsButtons, ActorCriticPolicy):
    """Of plain numbers."""


class ButtonCnnPolicy(SumsButtons, ActorCriticCnnPolicy):
    """Of one picture."""


class ButtonMultiInputPolicy(SumsButtons, MultiInputActorCriticPolicy):
    """Of a dictionary."""


class ButtonRepeatingPolicy(SumsButtons, RepeatingPolicy):
    """Of a dictionary, repeating its last action more often."""
