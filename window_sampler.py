"""The order in which a run sees its windows or frames: seeded, without memory, resumable at any step.

Knows numbers only, neither files nor torch. Used by the trainers as the `batch_sampler` of a DataLoader.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np


class WindowSampler:
    """The order in which a run sees the windows: batches of indices for one process.

    Each epoch is a permutation of all windows, a Feistel network with cycle walking (Black & Rogaway 2002), so that it
    needs no memory and can start anywhere. The k-th sample of the run depends on `seed` and k alone; k counts through
    steps of global batches: index in the global batch = (micro * world_size + rank) * batch_size + j. So resuming is
    starting at `start_step`, and the number of processes changes who reads a window, not which."""

    ROUNDS = 6

    def __init__(
        self,
        num_windows: int,
        *,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        num_steps: int | None = None,
        favoured: np.ndarray | None = None,
        favoured_share: float = 0.0,
    ) -> None:
        """`batch_size` per process and micro step; `accumulation` micro steps make an optimizer step.

        num_steps: optimizer steps until the iterator ends, None for no end.
        favoured: int64 (n,), windows from which a `favoured_share` of the samples comes instead, drawn one by one."""
        if num_windows < 1:
            raise ValueError("a sampler needs at least one window")
        self.favoured, self.favoured_share = favoured, favoured_share
        self.num_windows, self.seed, self.batch_size = num_windows, seed, batch_size
        self.accumulation, self.rank, self.world_size = accumulation, rank, world_size
        self.start_step, self.num_steps = start_step, num_steps
        self._half_bits = np.uint64(max(1, ((num_windows - 1).bit_length() + 1) // 2))

    def window_at(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64: the windows that the k-th samples of the run are."""
        samples = np.asarray(samples, dtype=np.uint64)
        epoch, place = samples // np.uint64(self.num_windows), samples % np.uint64(self.num_windows)
        walking = np.ones(len(place), dtype=bool)
        while walking.any():
            place[walking] = self._permute(place[walking], epoch[walking])
            walking = place >= self.num_windows
        windows = place.astype(np.int64)
        if self.favoured is not None:
            draws = _mix(samples + _mix(np.array([self.seed % 2**64], dtype=np.uint64)))
            is_favoured = draws.astype(np.float64) / 2.0**64 < self.favoured_share
            windows = np.where(is_favoured, self.favoured[_mix(draws) % np.uint64(len(self.favoured))], windows)
        return windows

    def __iter__(self) -> Iterator[list[int]]:
        steps = itertools.count() if self.num_steps is None else range(self.num_steps)
        for step in steps:
            for micro in range(self.accumulation):
                part = ((self.start_step + step) * self.accumulation + micro) * self.world_size + self.rank
                yield self.window_at(part * self.batch_size + np.arange(self.batch_size)).tolist()

    def __len__(self) -> int:
        """Batches, where there is an end. Raises TypeError where there is none."""
        if self.num_steps is None:
            raise TypeError("an endless sampler has no length")
        return self.num_steps * self.accumulation

    def _permute(self, place: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """A bijection of [0, 4^half_bits), another one each epoch."""
        mask = (np.uint64(1) << self._half_bits) - np.uint64(1)
        left, right = place >> self._half_bits, place & mask
        key = _mix(epoch + _mix(np.array([self.seed % 2**64], dtype=np.uint64)))
        for number in range(self.ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(key + np.uint64(number))) & mask)
        return (left << self._half_bits) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64, wrapping."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
