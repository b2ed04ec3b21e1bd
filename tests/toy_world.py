"""A square that moves left and right: the smallest game a world model can learn. `Square-v0` once this is imported.

Knows nothing of the project. The background tells the place by its colour and the square is where it was put, so the
next picture follows from the last one and the action; used by tests, and by `--env toy_world:Square-v0`.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

WIDTH, HEIGHT = 64, 48
SIZE_PX = 12
STEP_PX = 4
MAX_X = WIDTH - SIZE_PX
NOOP, LEFT, RIGHT = range(3)


class Square(gymnasium.Env):
    """Observation and picture are the same: uint8 (48, 64, 3). Walls stop the square; reward 1 at the right wall."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = "rgb_array", length_steps: int = 40) -> None:
        self.render_mode = render_mode
        self.length_steps = length_steps
        self.observation_space = spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.x = 0
        self.steps = 0

    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "LEFT", "RIGHT"]

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        return {(): NOOP, ("a",): LEFT, ("d",): RIGHT}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = int(self.np_random.integers(MAX_X // STEP_PX + 1)) * STEP_PX
        self.steps = 0
        return self.render(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x = moved(self.x, int(action))
        self.steps += 1
        return self.render(), float(self.x == MAX_X), False, self.steps >= self.length_steps, {}

    def render(self) -> np.ndarray:
        return picture(self.x)


def moved(x: int, action: int) -> int:
    """Where the square at `x` px is after `action`."""
    return int(np.clip(x + (0, -STEP_PX, STEP_PX)[action], 0, MAX_X))


def picture(x: int) -> np.ndarray:
    """The frame with the square's left edge at `x` px: uint8 (48, 64, 3)."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[..., 0] = np.linspace(0, 160, WIDTH, dtype=np.uint8)  # red grows to the right
    frame[..., 2] = np.linspace(160, 0, HEIGHT, dtype=np.uint8)[:, None]  # blue falls downwards
    top = (HEIGHT - SIZE_PX) // 2
    frame[top : top + SIZE_PX, x : x + SIZE_PX] = (240, 240, 60)
    return frame


if "Square-v0" not in gymnasium.registry:
    gymnasium.register("Square-v0", entry_point=Square)
