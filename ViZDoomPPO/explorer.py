"""Plays Doom as a curious person tries out the controls: what an agent that wants frags never does.

Walls faced and pushed against, corners, standing still, whole turns on the spot, walking backwards, shots into nothing:
a world model that never saw them dreams something else when a person does them. Knows only the action table and, where
the game tells it, where the player is. Used by `recording.py` for `--policy explore`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from math import hypot

import numpy as np
from actions import OPPOSITES, Action, nearest_action

Pose = tuple[float, float, float]  # x and y in map units, angle in degrees
Pressed = tuple[str, ...]  # buttons held down for one agent step; where not all may go together, the last ones stay

ATTACK, FORWARD, BACKWARD = "ATTACK", "MOVE_FORWARD", "MOVE_BACKWARD"
STRAFES, TURNS = OPPOSITES[1], OPPOSITES[2]
FULL_CIRCLE_S = 3.2  # at the 640 turn units a tic of our scenarios it takes 2.9 s; used where no angle is known
BLOCKED_UNITS_PER_S = 60.0  # slower is no walk: a running player makes 560 units a second, half of it within 0.1 s


class Explorer:
    """observation -> action id, one call for each agent step; the observation is not looked at.

    Behaviours come as cards from a shuffled deck: all of them once, then a new deck. A deck lasts 58 s at most, so an
    episode of a minute holds each of them at least once. Lengths are drawn anew, in the times a person's fingers take.
    Buttons that the table lacks are not missed; those it has beside Doom's seven are tried by `try_button`.
    actions: the game's table. steps_per_s: agent steps in a second. pose: tells where the player is, if the game does.
    The same seed and game give the same actions."""

    def __init__(
        self, actions: Sequence[Action], seed: int, steps_per_s: float, pose: Callable[[], Pose] | None = None
    ) -> None:
        self._actions, self._steps_per_s, self._pose = actions, steps_per_s, pose
        self._rng = np.random.default_rng(seed)
        known = {ATTACK, *chain(*OPPOSITES)}
        self._others = [action.buttons for action in actions if action.buttons and not known & set(action.buttons)]
        self._steps = self._play()

    def __call__(self, observation: object) -> int:
        return nearest_action(self._actions, next(self._steps))

    def _play(self) -> Iterator[Pressed]:
        behaviours = [self.stand, self.full_circle, self.look_around, self.push_wall, self.corner, self.strafe]
        behaviours += [self.back_away, self.fire, self.fire_turning, self.arc, self.wander]
        behaviours += [self.try_button] if self._others else []
        while True:
            for card in self._rng.permutation(len(behaviours)):
                yield from behaviours[card]()
                yield from self._hold((), 0.0, 0.4)

    def stand(self) -> Iterator[Pressed]:
        """Nothing pressed."""
        yield from self._hold((), 1.2, 3.0)

    def full_circle(self) -> Iterator[Pressed]:
        """Once around on the spot."""
        yield from self._turn(self._one_of(TURNS), 360.0)

    def look_around(self) -> Iterator[Pressed]:
        """Short turns to either side, with pauses, on the spot."""
        for _ in range(int(self._rng.integers(2, 5))):
            yield from self._hold((self._one_of(TURNS),), 0.1, 0.9)
            yield from self._hold((), 0.1, 0.5)

    def push_wall(self) -> Iterator[Pressed]:
        """Forward until something is in the way, and on pushing; then a look at it from close by."""
        yield from self._until_blocked((FORWARD,), 3.0)
        yield from self._hold((FORWARD,), 0.8, 1.6)
        if self._rng.random() < 0.5:
            yield from self._hold((FORWARD, self._one_of(TURNS)), 0.3, 1.0)
        yield from self._hold((), 0.3, 0.8)

    def corner(self) -> Iterator[Pressed]:
        """Forward and aside, along the wall, until a corner holds."""
        side = self._one_of(STRAFES)
        yield from self._until_blocked((FORWARD,), 2.0)
        for _ in range(4):  # where both may not be pressed together, in turn
            yield from self._until_blocked((side, FORWARD) if self._rng.random() < 0.5 else (FORWARD, side), 0.8)
        yield from self._hold((FORWARD,), 0.3, 0.8)

    def strafe(self) -> Iterator[Pressed]:
        """Sideways, there and often back."""
        side = int(self._rng.integers(2))
        yield from self._hold((STRAFES[side],), 0.6, 1.8)
        if self._rng.random() < 0.7:
            yield from self._hold((STRAFES[1 - side],), 0.6, 1.8)

    def back_away(self) -> Iterator[Pressed]:
        """Backwards, sometimes with a turn."""
        yield from self._hold((BACKWARD,), 1.0, 2.2)
        if self._rng.random() < 0.4:
            yield from self._hold((BACKWARD, self._one_of(TURNS)), 0.3, 1.2)

    def fire(self) -> Iterator[Pressed]:
        """A burst and a single shot, standing."""
        yield from self._hold((ATTACK,), 0.6, 1.6)
        yield from self._hold((), 0.2, 0.6)
        yield from self._hold((ATTACK,), 0.1, 0.3)

    def fire_turning(self) -> Iterator[Pressed]:
        """Bursts while turning on the spot."""
        side = self._one_of(TURNS)
        for _ in range(int(self._rng.integers(2, 4))):
            yield from self._hold((side,), 0.1, 0.4)
            yield from self._hold((side, ATTACK), 0.3, 0.7)

    def arc(self) -> Iterator[Pressed]:
        """Forward in a curve: the turn begins after the walk, and is steadied now and then."""
        side = self._one_of(TURNS)
        yield from self._hold((FORWARD,), 0.1, 0.4)
        for _ in range(int(self._rng.integers(2, 4))):
            yield from self._hold((FORWARD, side), 0.3, 0.9)
            yield from self._hold((FORWARD,), 0.1, 0.4)

    def wander(self) -> Iterator[Pressed]:
        """A long walk, slightly corrected; where something is in the way always to the same side, and so around it."""
        left, side = self._duration(7.0, 9.0), self._one_of(TURNS)
        for pressed in chain.from_iterable(self._leg(side) for _ in repeat(None)):
            yield pressed
            left -= 1
            if left <= 0:
                return

    def try_button(self) -> Iterator[Pressed]:
        """One of the buttons beside the seven, tapped or held."""
        yield from self._hold(self._others[int(self._rng.integers(len(self._others)))], 0.1, 0.6)

    def _leg(self, side: str) -> Iterator[Pressed]:
        """A straight piece of a walk, then a turn: a large one on the spot where the way is blocked."""
        walked = self._duration(0.8, 2.5)
        for step, pressed in enumerate(self._until_blocked((FORWARD,), 2.5)):
            yield pressed
            if step == walked:
                yield from self._hold((FORWARD, self._one_of(TURNS)), 0.1, 0.4)
                return
        yield from self._turn(side, float(self._rng.uniform(40.0, 110.0)))

    def _one_of(self, pair: Sequence[str]) -> str:
        return pair[int(self._rng.integers(len(pair)))]

    def _duration(self, least_s: float, most_s: float) -> int:
        """Agent steps, drawn evenly; none only where `least_s` is 0."""
        steps = round(float(self._rng.uniform(least_s, most_s)) * self._steps_per_s)
        return max(steps, int(least_s > 0))

    def _hold(self, pressed: Pressed, least_s: float, most_s: float) -> Iterator[Pressed]:
        yield from repeat(pressed, self._duration(least_s, most_s))

    def _until_blocked(self, pressed: Pressed, most_s: float) -> Iterator[Pressed]:
        """Holds `pressed` until the player hardly moves, `most_s` at most; the first steps only gather speed."""
        slow = 0
        for step in range(max(1, round(most_s * self._steps_per_s))):
            before = self._pose() if self._pose else None
            yield pressed
            if before is not None and step >= 1:
                after = self._pose()
                moved_units = hypot(after[0] - before[0], after[1] - before[1])
                slow = slow + 1 if moved_units * self._steps_per_s < BLOCKED_UNITS_PER_S else 0
                if slow == 2:
                    return

    def _turn(self, button: str, degrees: float) -> Iterator[Pressed]:
        """Turns on the spot by an angle, or for as long as that usually takes."""
        turned = 0.0
        for _ in range(
            max(1, round(degrees / 360.0 * FULL_CIRCLE_S * (1.4 if self._pose else 1.0) * self._steps_per_s))
        ):
            before = self._pose() if self._pose else None
            yield (button,)
            if before is not None:
                turned += abs((self._pose()[2] - before[2] + 180.0) % 360.0 - 180.0)
                if turned >= degrees:
                    return
