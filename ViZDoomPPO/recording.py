"""One recording: what all its episodes share, and how one of them is played and written.

An episode is a fresh game seeded from (seed, split, episode number): who records it, where and after which others makes
no difference to its bytes. Knows nothing of processes, machines or command lines: `recorder_processes.py` spreads
episodes over the cores.
"""

import argparse
import functools
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import BadInput, writing

if TYPE_CHECKING:
    import gymnasium
    from stable_baselines3 import PPO

RANDOM, EXPLORE = "random", "explore"
BUILT_IN = (RANDOM, EXPLORE)  # policies that need no file
SPLITS = ("train", "eval")
AGENT_FACTS = ("reward", "observe_map", "action_history", "observation_shrink")  # of a policy file, for DoomEnv
DEFAULT_POLICY = Path(__file__).resolve().parent / "logs" / "models" / "deathmatch_simple" / "best_model.zip"
DEFAULT_SCENARIO = "deathmatch_simple"


class RecorderDied(Exception):
    """Recorders die again and again: a fault of the machine or the game, which trying once more does not cure."""


@dataclass(frozen=True)
class Recording:
    """What all episodes of one recording share: everything that decides what is in the files."""

    policy: str
    policy_sha256: str | None
    env: str | None
    scenario: str
    action_set: str
    level: int
    bots: int
    episode_tics: int
    screen_resolution: str
    image_format: str
    image_quality: int
    record_stride: int
    record_depth: bool
    split: str
    seed: int
    agent: tuple[tuple[str, Any], ...] = ()  # what the policy sees of Doom and is rewarded for, as DoomEnv takes it
    repeat_probability: float = 0.0  # of the policy's last action

    def open_game(self, tics_per_look: int = 1) -> "gymnasium.Env":
        """The game, not yet begun; Doom's screen and variables are read every `tics_per_look` tics."""
        if self.env:
            return open_gymnasium(self.env, self.episode_tics)
        from doom_env import DoomEnv

        names = ("scenario", "level", "bots", "episode_tics", "screen_resolution", "action_set", "seed")
        looks = {"tics_per_look": tics_per_look, "report_depth": self.record_depth}
        return DoomEnv(**{name: getattr(self, name) for name in names}, **looks, **dict(self.agent))

    def policy_name(self) -> str:
        return self.policy if self.policy in BUILT_IN else Path(self.policy).stem

    def folder(self, output_dir: Path) -> Path:
        """Where the parquet files go, under `output_dir`."""
        return output_dir / self.split / f"level_{0 if self.env else self.level}" / self.policy_name()

    def identity(self) -> dict[str, Any]:
        """What a repeated run must share to go on here; where the policy file lies does not matter.

        What only the policy file decides is left out: its SHA-256 stands for it."""
        shared = {name: value for name, value in asdict(self).items() if name not in ("agent", "repeat_probability")}
        if not self.record_depth:  # folders older than this flag go on
            del shared["record_depth"]
        return {"recorded_by": "generation", **shared, "policy": self.policy_name()}


def make_recording(args: argparse.Namespace) -> Recording:
    """Settles what the flags leave open: scenario and buttons come from the policy file where it says them."""
    taken = {name: value for name, value in vars(args).items() if name in Recording.__dataclass_fields__}
    facts: dict[str, Any] = {}
    digest = None
    if args.policy not in BUILT_IN:
        from policy import FACTS_MEMBER, read_member

        facts = read_member(Path(args.policy), FACTS_MEMBER) or {}
        digest = hashlib.sha256(Path(args.policy).read_bytes()).hexdigest()
    taken["scenario"] = args.scenario or facts.get("scenario") or DEFAULT_SCENARIO
    taken["action_set"] = args.action_set or facts.get("action_set") or "full"
    taken["agent"] = tuple((name, facts[name]) for name in AGENT_FACTS if name in facts)
    taken["repeat_probability"] = facts.get("repeat_probability", 0.0)
    recording = Recording(**taken, policy_sha256=digest)
    if args.policy not in BUILT_IN and not (facts or args.env or args.action_set):
        from policy import count_actions

        # Files without our facts, such as the seed's: the number of actions tells which of our tables it is.
        smaller = Recording(**{**taken, "action_set": "seed"}, policy_sha256=digest)
        if smaller.open_game().action_space.n == count_actions(Path(args.policy)):
            return smaller
    return recording


def open_gymnasium(env_id: str, max_steps: int) -> "gymnasium.Env":
    """A gymnasium env that draws RGB pictures and ends after `max_steps`. Raises BadInput when there is none."""
    import gymnasium

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where one's own `module:id` lies
    try:
        env = gymnasium.make(env_id, render_mode="rgb_array")
    except (gymnasium.error.Error, ImportError) as error:
        raise BadInput(f"--env {env_id} cannot be made ({error}); install it, or give `module:id`") from error
    return gymnasium.wrappers.TimeLimit(env, max_steps)


def check_game(recording: Recording, device: str) -> None:
    """Raises BadInput, before anything is written, when the game cannot be recorded or the policy plays another one."""
    from actions import table_rows
    from episode_recorder import EpisodeRecorder, gymnasium_actions

    game = recording.open_game()
    recorder = EpisodeRecorder(game, Path(), record_stride=recording.record_stride, episode=0)  # checks; writes nothing
    if recording.env:
        recorder.reset(seed=recording.seed)  # draws the first picture; no file before the first step
    if recording.policy not in BUILT_IN:
        from policy import FACTS_MEMBER, read_member

        table = table_rows(gymnasium_actions(game) if recording.env else game.actions)
        known = (read_member(Path(recording.policy), FACTS_MEMBER) or {}).get("action_table", table)
        if known != table:
            raise BadInput(
                f"{recording.policy} was trained with {len(known)} other actions than the {len(table)} of this game; "
                "leave out --scenario, --action_set and --env, or give the policy of this game"
            )
        loaded_policy(recording, device)
    recorder.close()


@functools.lru_cache(maxsize=1)
def loaded_policy(recording: Recording, device: str) -> "PPO":
    """The recording's policy, loaded once per process."""
    import torch
    from policy import load_policy

    torch.set_num_threads(1)  # one picture at a time, so no faster with more; and the same sums on every machine
    game = recording.open_game()
    game.close()
    path, repeated = Path(recording.policy), recording.repeat_probability
    return load_policy(path, game.observation_space, game.action_space, device, repeated)


def chooser(recording: Recording, env: "gymnasium.Env", game_seed: int, device: str) -> Callable[[Any], int]:
    """observation -> action id: drawn evenly, explored, or from the policy's probabilities; `game_seed` decides all."""
    if recording.policy == RANDOM:
        env.action_space.seed(game_seed)
        return lambda _observation: int(env.action_space.sample())
    if recording.policy == EXPLORE:
        from explorer import Explorer

        game = env.unwrapped
        return Explorer(game.actions, game_seed, game.tics_per_second / game.tics_per_step, game.pose)
    import torch

    model = loaded_policy(recording, device)
    torch.manual_seed(game_seed)
    return lambda observation: int(model.predict(observation, deterministic=False)[0])


def never() -> bool:
    return False


def record_episode(
    recording: Recording,
    output_dir: Path,
    device: str,
    episode: int,
    is_interrupted: Callable[[], bool] = never,
) -> Path:
    """Plays one episode from its seed and writes its parquet file; interrupted, it leaves nothing."""
    from episode_recorder import EpisodeRecorder, derived_seed, episode_file

    game_seed = derived_seed(recording.seed, SPLITS.index(recording.split), episode)
    env = EpisodeRecorder(
        recording.open_game(),
        output_dir / recording.split,
        recording.policy_name(),
        image_format=recording.image_format,
        image_quality=recording.image_quality,
        record_stride=recording.record_stride,
        seed=recording.seed,
        episode=episode,
    )
    try:
        choose = chooser(recording, env, game_seed, device)
        observation, _ = env.reset(seed=game_seed)
        is_over = False
        while not is_over:
            if is_interrupted():
                raise KeyboardInterrupt
            observation, _, terminated, truncated, _ = env.step(choose(observation))
            is_over = terminated or truncated
    except BaseException:
        env.discard()
        raise
    finally:
        env.close()
    return recording.folder(output_dir) / episode_file(episode)


def record_gif(
    recording: Recording,
    output_dir: Path,
    device: str,
    episode: int,
    is_interrupted: Callable[[], bool] = never,
) -> Path:
    """Like `record_episode`, but keeps only a gif of what was recorded."""
    from episode_recorder import episode_file, partial_path
    from films import write_gif

    parquet = record_episode(recording, gif_workplace(output_dir), device, episode, is_interrupted)
    gif = output_dir / episode_file(episode, ".gif")
    temporary = partial_path(gif, os.getpid())
    with writing(gif):
        write_gif(parquet, temporary)
        os.replace(temporary, gif)
    parquet.unlink()
    return gif


def gif_workplace(output_dir: Path) -> Path:
    return output_dir / ".gif_recording"


RECORDERS: dict[str, Callable[..., Path]] = {"parquet": record_episode, "gif": record_gif}
