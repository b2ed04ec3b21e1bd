"""The games a training run learns from and is evaluated in: recorded, in processes of their own. Knows no network.

Used by the training script.
"""

import argparse
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

from progress import Progress
from rewards import REWARDS

if TYPE_CHECKING:
    from gymnasium.wrappers import TransformReward
    from stable_baselines3.common.vec_env import VecEnv

GAME_FLAGS = ("scenario", "action_set", "bots", "episode_tics", "screen_resolution")
AGENT_FLAGS = {"reward": "shaped", "observe_map": False, "action_history": 0, "observation_shrink": 1}  # and defaults
RECORDING_FLAGS = ("image_format", "image_quality", "record_stride")  # these, game and agent: the same when resumed
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def env_maker(
    args: argparse.Namespace, split: str, index: int, level: int, seed: int, run_id: str
) -> Callable[[], "TransformReward"]:
    """A function that opens one recorded game in whichever process calls it."""

    def open_env() -> "TransformReward":
        from doom_env import DoomEnv
        from episode_recorder import EpisodeRecorder
        from gymnasium.wrappers import TransformReward
        from stable_baselines3.common.monitor import Monitor

        # What is not recorded need not be drawn.
        looked_at = {"tics_per_look": args.record_stride, "report_depth": args.record_depth}
        env = DoomEnv(
            level=level, seed=seed, **looked_at, **{name: getattr(args, name) for name in (*GAME_FLAGS, *AGENT_FLAGS)}
        )
        recording = {name: getattr(args, name) for name in RECORDING_FLAGS}
        folder = args.out_base_dir / split
        recorder = EpisodeRecorder(env, folder, f"env_{index}", seed=args.seed, run_id=run_id, **recording)
        if multiprocessing.parent_process() is not None:
            for number in STOP_SIGNALS:  # the training process decides when the games end
                signal.signal(number, signal.SIG_IGN)
            # When that process was killed, this one ends by itself; the game's engine would stay behind.
            Finalize(None, recorder.discard, exitpriority=1)
            Finalize(None, recorder.close, exitpriority=0)
        # PPO learns from kills' worth, whatever a kill's points; recorded rewards and returns are in points.
        return TransformReward(Monitor(recorder), lambda points: points / REWARDS[args.reward].kill_points)

    return open_env


def open_envs(
    args: argparse.Namespace, split: str, count: int, progress: Progress, seed: int, in_processes: bool
) -> "VecEnv":
    """`count` games, with `in_processes` each in its own with its recorder: only observations cross the pipe."""
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    makers = [env_maker(args, split, i, progress.level, seed + i, progress.run_id) for i in range(count)]
    if not in_processes:
        envs = DummyVecEnv(makers)
    else:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        # The fork server imports stable-baselines3 once for all games.
        multiprocessing.set_forkserver_preload(["stable_baselines3.common.vec_env.subproc_vec_env"])
        envs = SubprocVecEnv(makers, start_method=method)
    envs.seed(seed)
    return envs
