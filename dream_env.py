"""The dream as a gymnasium environment, `NeuralDoom-v0` once this is imported: a world model in the place of a game.

    gymnasium.make("dream_env:NeuralDoom-v0", model_folder="runs/world_model", render_mode="rgb_array")
    gymnasium.make_vec("dream_env:NeuralDoom-v0", num_envs=8, model_folder="runs/world_model")

The observation is the frame, uint8 (H, W, 3); an action is a row of the checkpoint's action table. A dream knows no
score and no end: the reward is 0.0 unless `reward_function(frame_before, frame_after)` gives one, nothing terminates,
and `max_episode_steps` truncates. `make_vec` draws all games in one pass of the network, in this process. Knows no keys
and no clock. sb3_dream.py brings the batch to stable-baselines3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from command_line import BadInput, resolve_device
from model_folders import find_world_model

ENV_ID = "NeuralDoom-v0"
MAX_EPISODE_STEPS = 1000
RewardFunction = Callable[[np.ndarray, np.ndarray], float]


class _Games:
    """B dreams side by side in one engine; any of them may begin anew while the others go on."""

    def __init__(
        self,
        number: int,
        model_folder: str,
        *,
        vae_ft_model_folder: str | None = None,
        device: str = "auto",
        start: int | None = None,
        reward_function: RewardFunction | None = None,
        **settings: float | int | str | None,
    ) -> None:
        """start: the beginning of every game, None draws one for each.  settings: as of GameEngine.

        Raises BadInput for a folder that is no world model, and for a setting out of range."""
        find_world_model(model_folder)  # before anything heavy is imported
        from engine import GameEngine

        self.engine = GameEngine.from_pretrained(
            model_folder, vae_folder_or_id=vae_ft_model_folder, device=resolve_device(device), **settings
        )
        self.config = self.engine.config
        self.start = start
        self.checked_start(start)
        self.reward_function = reward_function
        width, height = self.engine.autoencoder.frame_size
        self.observation_space = spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.action_space = spaces.Discrete(self.config.num_actions)
        self.frames = np.zeros((number, height, width, 3), np.uint8)
        self.has_begun = False

    def checked_start(self, start: object) -> int | None:
        """A start context's number, or None. Raises BadInput for what is neither."""
        if start is None:
            return None
        if not isinstance(start, int | np.integer) or not 0 <= start < self.engine.number_of_starts:
            raise BadInput(f"start {start!r}: the model has 0 to {self.engine.number_of_starts - 1}, None draws one")
        return int(start)

    def begin(
        self, places: Sequence[int], randoms: Sequence[np.random.Generator], starts: Sequence[int | None]
    ) -> list[dict[str, int]]:
        """Begins the games at `places` anew, each from its own generator, and draws where they stand.

        Returns for each what was drawn: start context and seed of its noise."""
        drawn = []
        for random, start in zip(randoms, starts, strict=True):
            any_start, noise_seed = random.integers(self.engine.number_of_starts), random.integers(2**31)
            start = self.start if start is None else start
            drawn.append({"start": int(any_start if start is None else start), "noise_seed": int(noise_seed)})
        others = self.engine.state() if self.has_begun and len(places) < len(self.frames) else None
        self.engine.begin([each["start"] for each in drawn], [each["noise_seed"] for each in drawn])
        self.frames[list(places)] = self.engine.decode_latents(self.engine.latents[:, -1])
        if others is not None:
            for name, tensor in self.engine.state().items():
                others[name][list(places)] = tensor
            self.engine.restore(others)
        self.has_begun = True
        return drawn

    def step(self, actions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Plays one action per game; returns the rewards, float64 (B,). `frames` are the new ones."""
        before, self.frames = self.frames, self.engine.step(np.asarray(actions, dtype=np.int64))
        if self.reward_function is None:
            return np.zeros(len(before))
        pairs = zip(before, self.frames, strict=True)
        return np.array([float(self.reward_function(*pair)) for pair in pairs])


def _metadata(frames_per_second: float) -> dict[str, Any]:
    return {"render_modes": ["rgb_array"], "render_fps": frames_per_second}


class DreamEnv(gymnasium.Env):
    """One dream. `reset(seed=s)` and the same actions give the same frames.

    `reset` takes `options={"start": number}`, and tells in its info which start context and noise seed were drawn."""

    metadata = _metadata(35.0)

    def __init__(self, model_folder: str, render_mode: str | None = None, **settings: Any) -> None:
        """settings: vae_ft_model_folder, device, backend, start, reward_function, num_inference_steps, guidance_scale,
        discretized_noise_level; what is not given is the checkpoint's own. Raises BadInput."""
        self._games = _Games(1, model_folder, **settings)
        self.observation_space, self.action_space = self._games.observation_space, self._games.action_space
        self.metadata = _metadata(self._games.config.frames_per_second)
        self.render_mode = render_mode

    def get_action_meanings(self) -> list[str]:
        """The name of every action, by its id."""
        return [row["name"] for row in sorted(self._games.config.action_table, key=lambda row: row["id"])]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        start = self._games.checked_start((options or {}).get("start"))
        [info] = self._games.begin([0], [self.np_random], [start])
        return self._games.frames[0].copy(), info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self._games.has_begun:
            raise ResetNeeded("call reset() before step()")
        [reward] = self._games.step([int(action)])
        return self._games.frames[0].copy(), float(reward), False, False, {}

    def render(self) -> np.ndarray | None:
        return self._games.frames[0].copy() if self.render_mode == "rgb_array" else None


class DreamVectorEnv(VectorEnv):
    """`num_envs` dreams, drawn in one pass of the network.

    Game i of `reset(seed=s)` is the game that `DreamEnv.reset(seed=s + i)` begins, later episodes too. Its frames are
    the same whatever the games beside it do; but several games at once add up numbers in another order than one does,
    so that a DreamEnv's frames are a rounding apart.
    `reset` takes `options` with `start`, a number or one per game, and `reset_mask`, bool (num_envs,)."""

    metadata = {**_metadata(35.0), "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        model_folder: str,
        num_envs: int = 1,
        render_mode: str | None = None,
        *,
        max_episode_steps: int | None = MAX_EPISODE_STEPS,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ) -> None:
        """settings: as of DreamEnv. max_episode_steps: None or -1 never truncates."""
        self._games = _Games(num_envs, model_folder, **settings)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
        self.single_observation_space, self.single_action_space = (
            self._games.observation_space,
            self._games.action_space,
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**_metadata(self._games.config.frames_per_second), "autoreset_mode": self.autoreset_mode}
        self._randoms = [seeding.np_random()[0] for _ in range(num_envs)]
        self._steps = np.zeros(num_envs, np.int64)
        self._is_over = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        options = options or {}
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not (mask.all() or self._games.has_begun):
            raise ValueError(f"reset_mask: expected bool ({self.num_envs},), all true at first, got {mask!r}")
        if seed is None or isinstance(seed, int | np.integer):
            super().reset(seed=seed)
            seed = [None if seed is None else int(seed) + place for place in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} seeds, got {len(seed)}")
        starts = np.broadcast_to(np.asarray(options.get("start"), object), self.num_envs)
        starts = [self._games.checked_start(start) for start in starts]
        for place, each in enumerate(seed):
            if mask[place] and each is not None:
                self._randoms[place] = seeding.np_random(each)[0]
        infos = self._begin(np.flatnonzero(mask), starts)
        return self._games.frames.copy(), infos

    def _begin(self, places: np.ndarray, starts: Sequence[int | None] | None = None) -> dict[str, Any]:
        starts = [None] * self.num_envs if starts is None else starts
        drawn = self._games.begin(places, [self._randoms[i] for i in places], [starts[i] for i in places])
        self._steps[places], self._is_over[places] = 0, False
        infos: dict[str, Any] = {}
        for place, info in zip(places, drawn, strict=True):
            infos = self._add_info(infos, info, place)
        return infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if not self._games.has_begun:
            raise ResetNeeded("call reset() before step()")
        infos: dict[str, Any] = {}
        resets = self._is_over.copy()
        if resets.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(f"games {np.flatnonzero(resets).tolist()} are over; reset them with reset_mask")
        rewards = np.zeros(self.num_envs)
        if not resets.all():
            rewards = np.where(resets, 0.0, self._games.step(actions))
            self._steps += 1
        if resets.any():
            infos = self._begin(np.flatnonzero(resets))
        most = self.max_episode_steps
        truncations = np.zeros(self.num_envs, bool) if most is None else ~resets & (self._steps >= most)
        self._is_over = truncations.copy()
        if truncations.any() and self.autoreset_mode == AutoresetMode.SAME_STEP:
            last = self._games.frames.copy()
            for place in np.flatnonzero(truncations):
                infos = self._add_info(infos, {"final_obs": last[place], "final_info": {}}, place)
            infos |= self._begin(np.flatnonzero(truncations))
        return self._games.frames.copy(), rewards, np.zeros(self.num_envs, bool), truncations, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        return tuple(frame.copy() for frame in self._games.frames) if self.render_mode == "rgb_array" else None


if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        ENV_ID, entry_point=DreamEnv, vector_entry_point=DreamVectorEnv, max_episode_steps=MAX_EPISODE_STEPS
    )
