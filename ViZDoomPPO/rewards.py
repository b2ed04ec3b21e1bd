"""What the agent is rewarded for, from the game's variables before and after one tic. Knows nothing of ViZDoom.

`doom_env.py` calls the function that REWARDS names: to change the reward, change `shaped` or add a function beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import hypot


@dataclass(frozen=True)
class TicVariables:
    """What the game knows of the player at one moment. Frags and damage dealt only ever add up over a game."""

    health: float  # points, 0 when dead
    armor: float  # points
    ammo: float  # bullets + shells + rockets + cells
    frags: float  # other players killed; in a single-player game, monsters
    damage: float  # points dealt to others
    position_x: float  # map units
    position_y: float
    dead: bool


def shaped(before: TicVariables, after: TicVariables) -> float:
    """rl-doom's shaped reward of one tic (lkiel/rl-doom; the seed uses it unchanged).

    A player who was dead at the start of the tic earns only frags and damage: coming back to life is no merit."""
    reward = 1.0 * (after.frags - before.frags)  # a suicide costs one
    reward += 0.01 * (after.damage - before.damage)
    if before.dead:
        return reward
    reward += _gain_and_loss(after.health - before.health, gain=0.02, loss=0.01)
    reward += _gain_and_loss(after.ammo - before.ammo, gain=0.02, loss=0.01)
    reward += _gain_and_loss(after.armor - before.armor, gain=0.01, loss=0.0)
    distance = hypot(after.position_x - before.position_x, after.position_y - before.position_y)
    return reward + (5e-4 if distance > 3.0 else -5e-4)  # units in a tic; running covers about 16


def _gain_and_loss(change: float, *, gain: float, loss: float) -> float:
    return gain * max(0.0, change) + loss * min(0.0, change)


REWARDS: dict[str, Callable[[TicVariables, TicVariables], float]] = {"shaped": shaped}
