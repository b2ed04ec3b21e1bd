"""What the agent is rewarded for, from the game's variables before and after one tic. Knows nothing of ViZDoom.

`doom_env.py` makes an object of the class that REWARDS names, and resets it with every game, for it may remember the
episode. To change the reward, change `points` of one of them or add a class beside them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import floor, hypot

AREA_UNITS = 128.0  # side of an area; a running player crosses one in 8 tics


@dataclass(frozen=True)
class TicVariables:
    """What the game knows of the player at one moment. Counts only ever add up over a game, but `weapons`."""

    health: float  # points, 0 when dead
    armor: float  # points
    ammo: float  # bullets + shells + rockets + cells
    frags: float  # other players killed; in a single-player game, monsters
    damage: float  # points dealt to others
    position_x: float  # map units
    position_y: float
    dead: bool
    hits: float = 0  # times somebody was hit
    hits_taken: float = 0  # times the player was
    items: float = 0  # what the engine counts as items: bonuses, power-ups
    secrets: float = 0  # secret places entered
    weapons: float = 0  # kinds in hand, fists included


class VisitedAreas:
    """Which squares of AREA_UNITS the player has been in since the episode began, and how far off they are."""

    def __init__(self, start: TicVariables) -> None:
        self._start = _square(start)
        self._seen = {self._start}

    def __len__(self) -> int:
        return len(self._seen)

    def enter(self, now: TicVariables) -> int | None:
        """The L1 distance, in squares, of the player's square from the one of the start; None where it is not new."""
        square = _square(now)
        if square in self._seen:
            return None
        self._seen.add(square)
        return abs(square[0] - self._start[0]) + abs(square[1] - self._start[1])


def _square(tic: TicVariables) -> tuple[int, int]:
    return floor(tic.position_x / AREA_UNITS), floor(tic.position_y / AREA_UNITS)


class Reward(ABC):
    """The reward of one episode: reset where it begins, called with every tic. `areas` remembers the places seen."""

    kill_points: float  # what a kill brings, the unit in which rewards compare
    areas: VisitedAreas

    def reset(self, start: TicVariables) -> None:
        """Forgets the last episode; `start` is the player's state before the first tic."""
        self.areas = VisitedAreas(start)

    def __call__(self, before: TicVariables, after: TicVariables, tics: int = 1) -> float:
        """The reward of the tics between two states that follow each other."""
        return self.points(before, after, self.areas.enter(after), tics)

    @abstractmethod
    def points(self, before: TicVariables, after: TicVariables, distance: int | None, tics: int = 1) -> float:
        """`distance` of the area entered from the start, in areas; None when the player has been there."""


class Shaped(Reward):
    """rl-doom's shaped reward (lkiel/rl-doom; the seed uses it unchanged).

    A player who was dead at the start of the tic earns only frags and damage: coming back to life is no merit."""

    kill_points = 1.0

    def points(self, before: TicVariables, after: TicVariables, distance: int | None = None, tics: int = 1) -> float:
        reward = self.kill_points * (after.frags - before.frags)  # a suicide costs one
        reward += 0.01 * (after.damage - before.damage)
        if before.dead:
            return reward
        reward += _gain_and_loss(after.health - before.health, gain=0.02, loss=0.01)
        reward += _gain_and_loss(after.ammo - before.ammo, gain=0.02, loss=0.01)
        reward += _gain_and_loss(after.armor - before.armor, gain=0.01, loss=0.0)
        distance_units = hypot(after.position_x - before.position_x, after.position_y - before.position_y)
        return reward + tics * (5e-4 if distance_units > 3.0 * tics else -5e-4)  # running covers about 16 a tic


class Paper(Reward):
    """GameNGen's reward (appendix A.5).

    The paper says neither what an area is nor from where its L1 distance counts. Ours: a square of 128 map units; the
    squares, along both axes, between it and the one the episode began in. An item is what the engine counts as one
    (health and armor bonuses, power-ups); whatever else is picked up pays through health, armor, ammo or weapons.
    A player who was dead at the start of the tic earns only hits and kills: coming back to life is no merit."""

    kill_points = 1000.0

    def points(self, before: TicVariables, after: TicVariables, distance: int | None, tics: int = 1) -> float:
        reward = 300.0 * (after.hits - before.hits)
        reward += self.kill_points * (after.frags - before.frags)
        if before.dead:
            return reward
        reward -= 100.0 * (after.hits_taken - before.hits_taken)
        reward -= 5000.0 * after.dead
        reward += 100.0 * (max(0.0, after.items - before.items) + max(0.0, after.weapons - before.weapons))
        reward += 500.0 * (after.secrets - before.secrets)
        if distance is not None:
            reward += 20.0 * (1 + 0.5 * distance)
        reward += 10.0 * (after.health - before.health) + 10.0 * (after.armor - before.armor)
        return reward + _gain_and_loss(after.ammo - before.ammo, gain=10.0, loss=1.0)


def _gain_and_loss(change: float, *, gain: float, loss: float) -> float:
    return gain * max(0.0, change) + loss * min(0.0, change)


class Hunt(Reward):
    """Ours, for a large map where enemies are rare: pays every hit, and every new place, for who stays meets nobody.

    In `shaped` a pistol's hit is a tenth of a kill and a walk through the whole map worth one; here a hit is a quarter,
    an area a twentieth, and shooting is free. A player who was dead at the start of the tic earns hits and kills only.
    """

    kill_points = 1.0

    def points(self, before: TicVariables, after: TicVariables, distance: int | None, tics: int = 1) -> float:
        reward = self.kill_points * (after.frags - before.frags)  # a suicide costs one
        reward += 0.25 * (after.hits - before.hits)
        if before.dead:
            return reward
        reward -= 0.5 * after.dead
        reward += 0.05 * (distance is not None)
        reward += _gain_and_loss(after.health - before.health, gain=0.005, loss=0.0025)
        return reward + _gain_and_loss(after.ammo - before.ammo, gain=0.01, loss=0.0)


REWARDS: dict[str, type[Reward]] = {"shaped": Shaped, "hunt": Hunt, "paper": Paper}
