"""What the agent sees of a game: its screen, on demand also the automap and its own last actions. Knows no engine.

Used by `doom_env.py`; the network for each kind of observation is in `policy.py`.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from gymnasium import spaces
from PIL import Image

CROPPED_SIZE = (156, 100)  # width, height
CROP = (4 / 320, 40 / 240, 316 / 320, 1.0)  # left, top, right, bottom: rl-doom's [40:, 4:-4] at 320x240
PAPER_SIZE = (160, 120)  # of screen and automap, both whole (GameNGen 4.1)
SCREEN, MAP, LAST_ACTIONS = "screen", "map", "last_actions"  # names within a dictionary observation


@dataclass
class Observer:
    """Makes observations of a game of `actions` actions.

    Without extras: the screen less its upper sixth, uint8 (100, 156, 3). With `observe_map`: screen and automap, whole,
    both uint8 (120, 160, 3). With `action_history` n: also the last n actions, int64 (n,), oldest first, where
    `actions` stands for those before the game began. Extras make the observation a dictionary. `observation_shrink` k:
    pictures of a k-th of that height and width."""

    actions: int
    observe_map: bool = False
    action_history: int = 0
    observation_shrink: int = 1
    _last_actions: deque[int] = field(init=False)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begins a new game."""
        self._last_actions = deque([self.actions] * self.action_history, maxlen=self.action_history)

    def note(self, action: int) -> None:
        """Remembers an action as taken."""
        self._last_actions.append(action)

    def space(self) -> spaces.Space:
        """What `observe` returns."""
        width, height = self._size(PAPER_SIZE if self.observe_map else CROPPED_SIZE)
        picture = spaces.Box(0, 255, (height, width, 3), np.uint8)
        extras: dict[str, spaces.Space] = {MAP: picture} if self.observe_map else {}
        if self.action_history:
            extras[LAST_ACTIONS] = spaces.MultiDiscrete([self.actions + 1] * self.action_history)
        return spaces.Dict({SCREEN: picture, **extras}) if extras else picture

    def observe(self, frame: np.ndarray, automap: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        """frame, automap: uint8 (H, W, 3) of any size, shrunk by averaging; the automap is read only if wanted."""
        whole, cropped = self._size(PAPER_SIZE), self._size(CROPPED_SIZE)
        if not (self.observe_map or self.action_history):
            return _shrunk(frame, cropped, CROP)
        seen = {SCREEN: _shrunk(frame, whole) if self.observe_map else _shrunk(frame, cropped, CROP)}
        if self.observe_map:
            seen[MAP] = _shrunk(automap, whole)
        if self.action_history:
            seen[LAST_ACTIONS] = np.array(self._last_actions, np.int64)
        return seen

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.observation_shrink, size[1] // self.observation_shrink


def _shrunk(picture: np.ndarray, size: tuple[int, int], crop: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)) -> np.ndarray:
    """The part of a picture within `crop` (left, top, right, bottom as shares), at `size` (width, height)."""
    height, width = picture.shape[:2]
    box = (crop[0] * width, crop[1] * height, crop[2] * width, crop[3] * height)
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BOX, box=box))
