"""A batch of dreams for stable-baselines3: its VecEnv over a gymnasium VectorEnv, with nothing in between.

    PPO("CnnPolicy", DreamVecEnv("runs/world_model", num_envs=8, reward_function=brightness)).learn(10_000)

stable-baselines3 has no such conversion of its own. Knows nothing of models. A single dream needs none of this:
`gymnasium.make("dream_env:NeuralDoom-v0", ...)` is an environment as stable-baselines3 takes it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from dream_env import DreamVectorEnv


class DreamVecEnv(VecEnv):
    """`num_envs` dreams drawn in one pass of the network; `seed(s)` then `reset()` begins game i from seed s + i."""

    def __init__(
        self, model_folder: str, num_envs: int, render_mode: str | None = "rgb_array", **settings: Any
    ) -> None:
        """settings: as of DreamVectorEnv. Raises BadInput as it does."""
        self.envs = DreamVectorEnv(
            model_folder, num_envs, render_mode, autoreset_mode=AutoresetMode.SAME_STEP, **settings
        )
        super().__init__(num_envs, self.envs.single_observation_space, self.envs.single_action_space)

    def reset(self) -> np.ndarray:
        starts = [options.get("start") for options in self._options]
        frames, infos = self.envs.reset(seed=self._seeds, options={"start": starts})
        names = ("start", "noise_seed")
        self.reset_infos = [{name: int(infos[name][place]) for name in names} for place in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return frames

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        frames, rewards, terminations, truncations, infos = self.envs.step(self._actions)
        told: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(is_cut)} for is_cut in truncations]
        for place in np.flatnonzero(truncations):
            told[place]["terminal_observation"] = infos["final_obs"][place]
        return frames, rewards.astype(np.float32), terminations | truncations, told

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.envs.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the games share one engine; give settings when making it")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **words: Any) -> list[Any]:
        raise NotImplementedError("the games share one engine; call what is needed on `envs`")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
