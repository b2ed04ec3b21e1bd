"""The game engine: a sliding window of latents and actions, and one step that draws the next frame.

The only sliding window of the project: validation, rollouts and play all go through `GameEngine`. Knows no data set,
no key board and no clock. One engine plays B games at once; each has its own window and its own seed.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backends import build_backend
from command_line import BadInput
from diffusion import noise_level, sample_next, seeded_generator
from model import LoadedWorldModel, load_world_model


class GameEngine:
    """`reset(latents, actions)`, then `step(action)` for every frame; `state()` and `restore()` replay exactly.

    Every random draw depends on (game seed, frame number) alone and is made on the CPU, so a game's noise does not
    depend on the device or on the games beside it.
    """

    def __init__(
        self,
        loaded: LoadedWorldModel,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        discretized_noise_level: int = 0,
        backend: str = "torch",
    ) -> None:
        """Settings left None are the checkpoint's own. discretized_noise_level: bucket announced *and* noise added.

        backend: `auto`, `torch`, `onnx` or `cuda`, see backends.py; all but `torch` keep the weights as they are now.
        Raises BadInput for a setting out of range, or a back end that the device does not have.
        """
        self.config = loaded.config
        self.world_model = loaded.world_model
        self.autoencoder = loaded.autoencoder
        self.scheduler = loaded.scheduler
        self.start_contexts = loaded.start_contexts
        self.num_inference_steps = (
            loaded.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        )
        self.guidance_scale = loaded.config.guidance_scale if guidance_scale is None else guidance_scale
        self.discretized_noise_level = discretized_noise_level
        last_bucket = self.config.num_noise_buckets - 1
        if not 0 <= discretized_noise_level <= last_bucket:
            raise BadInput(f"--discretized_noise_level {discretized_noise_level}: the model knows 0 to {last_bucket}")
        if self.config.sampler_steps is not None and self.num_inference_steps not in self.config.possible_steps:
            known = ", ".join(map(str, self.config.possible_steps))
            raise BadInput(f"--num_inference_steps {self.num_inference_steps}: the model was trained for {known}")
        if not 1 <= self.num_inference_steps <= self.scheduler.config.num_train_timesteps:
            raise BadInput(
                f"--num_inference_steps {self.num_inference_steps}: the schedule has 1 to "
                f"{self.scheduler.config.num_train_timesteps}"
            )
        self.backend = build_backend(backend, loaded)
        black = self.autoencoder.black_moments().half().float()  # rounded as in latent files
        self.black_latent = self.autoencoder.sample_latents(black)[0]  # (C, h, w)
        self.latents = torch.empty(0)  # (B, L, C, h, w) scaled, oldest first
        self.poses: Tensor | None = None  # (B, L, 4) where these frames were seen from; of a model with a memory
        self.actions = torch.empty(
            0, dtype=torch.int64
        )  # (B, L - 1): the last frame's action is the one `step` is given
        self.seeds = torch.empty(0, dtype=torch.int64)  # (B,)
        self.frame_numbers = torch.empty(0, dtype=torch.int64)  # (B,): frames drawn since each game's reset

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        *,
        vae_folder_or_id: str | Path | None = None,
        device: str = "cpu",
        **settings: float | int | str | None,
    ) -> "GameEngine":
        """The engine of a world-model folder; `settings` as in the constructor. BadInput as from `load_world_model`."""
        return cls(load_world_model(folder_or_id, vae_folder_or_id=vae_folder_or_id, device=device), **settings)

    @property
    def device(self) -> torch.device:
        return self.black_latent.device

    @property
    def frame_number(self) -> int:
        """Frames drawn since the first game's reset; of games reset together it is everybody's."""
        return int(self.frame_numbers[0])

    @property
    def number_of_starts(self) -> int:
        """How many beginnings `begin` knows: the checkpoint's own, or black alone."""
        return 1 if self.start_contexts is None else len(self.start_contexts.latents)

    def use(self, num_inference_steps: int, guidance_scale: float, discretized_noise_level: int) -> None:
        """Samples from now on with other settings, which the caller has checked."""
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.discretized_noise_level = discretized_noise_level

    @torch.no_grad()
    def encode_frames(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 frames (T, H0, W0, 3) -> scaled latents (T, C, h, w), the posterior's mode: a start from pixels."""
        moments = self.autoencoder.encode_pixels(self.autoencoder.frames_to_pixels(frames))
        return self.autoencoder.sample_latents(moments.float())

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """Scaled latents (T, C, h, w) -> uint8 frames (T, H, W, 3)."""
        return self.autoencoder.pixels_to_frames(self.backend.decode_latents(latents)).cpu().numpy()

    def reset(self, latents: Tensor, actions: Tensor, seeds: Sequence[int] = (0,), poses: Tensor | None = None) -> None:
        """Starts B = len(seeds) games after k seen frames.

        latents: (B, k, C, h, w) scaled, oldest first.  actions: (B, k - 1) int64, those between them.  poses: (B, k, 4)
        of these frames, see scenes.py, for a model with a memory of the map.
        The last L frames count; fewer are padded on the left with black frames and the no-op.
        Raises BadInput where a memory is not told the poses.
        """
        games, seen = latents.shape[:2]
        if (
            actions.shape != (games, seen - 1)
            or len(seeds) != games
            or (poses is not None and tuple(poses.shape) != (games, seen, 4))
            or tuple(latents.shape[2:]) != self.config.latent_shape
        ):
            raise ValueError(
                f"expected latents (B, k, *{self.config.latent_shape}), actions (B, k - 1), B seeds and, if any, poses "
                f"(B, k, 4), got {tuple(latents.shape)}, {tuple(actions.shape)}, {len(seeds)} and "
                f"{None if poses is None else tuple(poses.shape)}"
            )
        length = self.config.context_length
        pad = max(0, length - seen)
        black = self.black_latent.expand(games, pad, *self.black_latent.shape)
        no_op = torch.full((games, pad), self.config.no_op, dtype=torch.int64, device=self.device)
        self.latents = torch.cat([black, latents.to(self.device, torch.float32)], dim=1)[:, -length:]
        past = torch.cat([no_op, actions.to(self.device)], dim=1)  # (B, pad + k - 1)
        self.actions = past[:, past.shape[1] - (length - 1) :]
        self.poses = None
        if self.world_model.memory is not None:
            if poses is None:
                raise BadInput(
                    "the model remembers a map, and nothing tells where in it this game begins; begin from its own "
                    "start contexts, or from play recorded with --record_depth"
                )
            poses = poses.to(self.device, torch.float32)[:, -length:]
            self.poses = torch.cat([poses[:, :1].expand(-1, length - poses.shape[1], -1), poses], dim=1)
        self.seeds = torch.as_tensor(list(seeds), dtype=torch.int64)
        self.frame_numbers = torch.zeros(games, dtype=torch.int64)

    def reset_to_start(self, number: int = 0, seed: int = 0) -> None:
        """Starts one game from the checkpoint's own start context `number`, so that no data set is needed.

        Raises BadInput when the checkpoint has none of that number."""
        count = 0 if self.start_contexts is None else len(self.start_contexts.latents)
        if not 0 <= number < count:
            raise BadInput(f"start context {number}: the checkpoint has {count}; reset from recorded frames instead")
        self._start([number], [seed])

    def begin(self, numbers: Sequence[int], seeds: Sequence[int]) -> None:
        """Starts B games from the checkpoint's start contexts of these numbers, from black where it has none.

        Raises BadInput for a number outside 0 to `number_of_starts` - 1."""
        for number in numbers:
            if not 0 <= number < self.number_of_starts:
                raise BadInput(f"start context {number}: the checkpoint has 0 to {self.number_of_starts - 1}")
        if self.start_contexts is None:
            black = self.black_latent.expand(len(numbers), 1, *self.black_latent.shape)
            self.reset(black, torch.zeros(len(numbers), 0, dtype=torch.int64), seeds)
        else:
            self._start(list(numbers), seeds)

    def _start(self, numbers: list[int], seeds: Sequence[int]) -> None:
        starts = self.start_contexts
        poses = None if starts.poses is None else starts.poses[numbers]
        self.reset(starts.latents[numbers], starts.actions[numbers], seeds, poses)

    def _noise(self, stream: int, shape: torch.Size) -> Tensor:
        """Gaussian (B, *shape) that depends on (seed, frame number, stream) of each game alone."""
        games = zip(self.seeds.tolist(), self.frame_numbers.tolist(), strict=True)
        generators = [seeded_generator("cpu", seed, number, stream) for seed, number in games]
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)

    def step_latents(self, chosen: Sequence[int] | Tensor) -> Tensor:
        """Plays one action per game, (B,), and returns the next latents (B, C, h, w) without drawing them."""
        chosen = torch.as_tensor(chosen, dtype=torch.int64)
        if chosen.shape != self.seeds.shape:
            raise ValueError(f"expected {len(self.seeds)} actions, one per game, got shape {tuple(chosen.shape)}")
        if int(chosen.min()) < 0 or int(chosen.max()) >= self.config.num_actions:
            raise ValueError(f"action {chosen.tolist()} outside the table 0..{self.config.num_actions - 1}")
        chosen = chosen.to(self.device)
        actions = torch.cat([self.actions, chosen[:, None]], dim=1)  # (B, L), one per context frame
        poses = self.poses
        if poses is not None:
            next_pose = self.world_model.memory.next_pose(poses, actions)
            poses = torch.cat([poses[:, 1:], next_pose[:, None]], dim=1)
        moved = self.backend.moved(self.latents, actions, poses)
        context = moved.context
        level = noise_level(self.discretized_noise_level, self.config.max_noise_level, self.config.num_noise_buckets)
        if level > 0:
            context = context + level * self._noise(1, context.shape[1:])
        drawn = sample_next(
            self.backend.predict_v,
            self.scheduler,
            context,
            actions,
            torch.full_like(chosen, self.discretized_noise_level),
            self._noise(0, context.shape[2:]),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            change_std=moved.std,
        )
        following = moved.settle(drawn)
        self.latents, self.poses = torch.cat([self.latents[:, 1:], following[:, None]], dim=1), poses
        self.actions = actions[:, 1:]
        self.frame_numbers = self.frame_numbers + 1
        return following

    def step(self, actions: int | Sequence[int] | Tensor) -> np.ndarray:
        """Plays an action and draws: an int (one game) -> uint8 (H, W, 3); (B,) actions -> uint8 (B, H, W, 3)."""
        is_single = isinstance(actions, int | np.integer)
        frames = self.decode_latents(self.step_latents([int(actions)] if is_single else actions))
        return frames[0] if is_single else frames

    def state(self) -> dict[str, Tensor]:
        """All that the future depends on, on the CPU; `restore` of it replays exactly."""
        state = {"latents": self.latents, "actions": self.actions, "seeds": self.seeds}
        state["frame_numbers"] = self.frame_numbers
        if self.poses is not None:
            state["poses"] = self.poses
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continues from a `state()` of an engine of the same checkpoint."""
        self.latents = state["latents"].to(self.device)
        self.actions = state["actions"].to(self.device)
        self.poses = state["poses"].to(self.device) if "poses" in state else None
        self.seeds = state["seeds"].clone()
        self.frame_numbers = state["frame_numbers"].clone()
