"""What stands beside one player's dream at this moment, and how far the two have come together.

Nothing but the state: beside.py changes it, in the engine's thread; players.py keeps it with its player.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from agent import Agent
from messages import Picture
from real_process import RealGame
from replays import RecordedKeys, ReplayedEpisode

Pose = tuple[float, ...] | None  # (x, y, z, angle) as in scenes.py; None where a game does not tell


@dataclass
class RealMoment:
    """A real frame at the model's size, uint8 (H, W, 3), the action that led to it, where it was seen from, and its
    latent once it is needed."""

    frame: np.ndarray
    action: int
    pose: Pose
    latent: Tensor | None = None


@dataclass(eq=False)
class Beside:
    """One player's companion. what: "nothing", "game" or "episode", as the page names them."""

    recent: deque[RealMoment]  # as many as the model's context holds
    what: str = "nothing"
    source: RealGame | ReplayedEpisode | None = None
    agent: Agent | RecordedKeys | None = None  # who has the keys in a person's place
    observation: Any = None  # what an agent sees of the real game now
    screen: np.ndarray | None = None  # its frame now, at its own size
    dream: np.ndarray | None = None  # the frame drawn last
    action: int = 0  # that leads to the real frame that is to come
    is_in_step: bool = False
    is_resyncing: bool = False  # the real frames are being encoded, or one is still to come
    still: np.ndarray | None = None  # the real frame of the last re-sync
    ceiling_db: float | None = None  # of that frame encoded and decoded
    waiting: tuple[Picture, np.ndarray] | None = None  # a dreamed frame until its real one has come

    def told(self) -> dict[str, Any]:
        """What the page is told: what stands there, whether in step, who has the keys, how good a dream can be."""
        state = "nothing" if self.what == "nothing" else "in_step" if self.is_in_step else "apart"
        if isinstance(self.source, RealGame) and not self.source.is_on:
            state = "starting"
        is_recorded = isinstance(self.agent, RecordedKeys) or self.what == "episode"
        keys = "recording" if is_recorded else "person" if self.agent is None else "agent"
        return {"what": self.what, "state": state, "keys": keys, "ceiling_db": self.ceiling_db}
