"""The one door from the root to ViZDoomPPO/: what play and its recordings need of stage 1.

Importing this opens nothing; each function imports what it hands out. Stage 1's one-line errors come out as the root's.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import BadInput

if TYPE_CHECKING:
    import gymnasium
    from stable_baselines3 import PPO

STAGE_ONE = Path(__file__).resolve().parent / "ViZDoomPPO"
OWN_SCENARIO = "deathmatch_simple"
OBSERVATION_FACTS = ("observe_map", "observation_shrink")  # of a policy file, and arguments of DoomEnv
LONGEST_TICS = 21_000  # ten minutes of Doom; then a game begins anew


def _open() -> None:
    if str(STAGE_ONE) not in sys.path:
        sys.path.append(str(STAGE_ONE))


@contextmanager
def _named_errors() -> Iterator[None]:
    """Stage 1's BadInput as ours, and what is not installed as the package to install."""
    _open()
    try:
        from console import BadInput as StageOneBadInput
    except ImportError as error:
        raise BadInput(_missing(error)) from None
    try:
        yield
    except StageOneBadInput as error:
        raise BadInput(str(error)) from None
    except ImportError as error:
        raise BadInput(_missing(error)) from None


def _missing(error: ImportError) -> str:
    names = {"vizdoom": "ViZDoom", "gymnasium": "gymnasium", "stable_baselines3": "stable-baselines3"}
    what = names.get(str(error.name).partition(".")[0], error.name)
    return f"{what} is not installed; run: pip install -r vizdoom_requirements.txt"


# ------------------------------------------------------------------------------------------------ recordings


def episode_writer(path: Path, metadata: dict, columns: dict):
    """An EpisodeWriter of THE parquet format: `add`, then `finish` or `discard`. No game engine is needed for it."""
    _open()
    from episode_recorder import FORMAT_VERSION, EpisodeWriter

    return EpisodeWriter(path, {"format_version": FORMAT_VERSION, "alignment": "before", **metadata}, columns)


def episode_file(number: int) -> str:
    """The name of an episode's file."""
    _open()
    from episode_recorder import episode_file

    return episode_file(number)


def action_rows(buttons: Sequence[str]) -> list[dict]:
    """The rows of THE action table for a scenario's buttons."""
    _open()
    from actions import action_table, table_rows

    return table_rows(action_table(buttons))


# ------------------------------------------------------------------------------------------------ games


@dataclass(frozen=True)
class GameSpec:
    """A real game: a Doom scenario, or where `env` is an id that gymnasium env.

    tics_per_frame: how long an action is held from one frame of a model to its next; gymnasium counts steps.
    level, bots: of Doom's opponents.
    observation: those of a policy's OBSERVATION_FACTS that it has, (name, value) each."""

    scenario: str = OWN_SCENARIO
    env: str | None = None
    screen_resolution: str = "RES_320X240"
    tics_per_frame: int = 4
    level: int = 5
    bots: int = 8
    observation: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return self.env or Path(self.scenario).stem


def open_game(spec: GameSpec, action_set: str = "full") -> "gymnasium.Env":
    """The game, not begun. action_set: Doom's. Raises BadInput when it cannot be had."""
    with _named_errors():
        if spec.env is not None:
            from recording import open_gymnasium

            return open_gymnasium(spec.env, LONGEST_TICS)
        from doom_env import DoomEnv

        return DoomEnv(
            spec.scenario,
            level=spec.level,
            bots=spec.bots,
            tics_per_step=spec.tics_per_frame,
            episode_tics=LONGEST_TICS,
            screen_resolution=spec.screen_resolution,
            action_set=action_set,
            **dict(spec.observation),
        )


def game_facts(game: "gymnasium.Env") -> tuple[list[dict], float]:
    """(rows of a game's action table, its tics per second)."""
    with _named_errors():
        from actions import table_rows
        from episode_recorder import DEFAULT_FPS, gymnasium_actions

        if hasattr(game, "actions"):
            return table_rows(game.actions), float(game.tics_per_second)
        return table_rows(gymnasium_actions(game)), float(game.metadata.get("render_fps") or DEFAULT_FPS)


def end_orphans() -> None:
    """Ends the engines of processes that were killed."""
    with _named_errors():
        from engine_processes import end_orphans

        end_orphans()


# ------------------------------------------------------------------------------------------------ the agent


def shipped_policy() -> Path | None:
    """The policy file that comes with the program; None where there is none."""
    with _named_errors():
        from recording import DEFAULT_POLICY

        return DEFAULT_POLICY if DEFAULT_POLICY.is_file() else None


def fetch_policy(repo_id: str) -> Path:
    """The policy file of a Hub repository. Raises BadInput when it cannot be had."""
    with _named_errors():
        from hub_repository import fetch_policy

        return fetch_policy(repo_id)


def policy_facts(path: Path) -> dict[str, Any]:
    """What a policy file says of its game: scenario, action_table, observe_map ...; {} for files of others."""
    with _named_errors():
        from policy import FACTS_MEMBER, count_actions, read_member

        return {"number_of_actions": count_actions(path), **(read_member(path, FACTS_MEMBER) or {})}


def load_policy(path: Path, space: "gymnasium.Space", number_of_actions: int, repeat_probability: float) -> "PPO":
    """The policy of a file, on the CPU; nothing in it is unpickled. Raises BadInput when it does not fit `space`."""
    with _named_errors():
        from gymnasium import spaces
        from policy import load_policy

        return load_policy(path, space, spaces.Discrete(number_of_actions), "cpu", repeat_probability)


def observer(number_of_actions: int, observation: Mapping[str, Any], action_history: int = 0):
    """Stage 1's `Observer`: `space()`, and `observe(frame, automap)`. observation: a policy's OBSERVATION_FACTS."""
    with _named_errors():
        from observation import Observer

        return Observer(number_of_actions, action_history=action_history, **observation)


def with_last_actions(observation: Any, last_actions: Sequence[int]) -> dict[str, Any]:
    """An observation together with the agent's own last actions, oldest first."""
    import numpy as np

    with _named_errors():
        from observation import LAST_ACTIONS, SCREEN

        seen = observation if isinstance(observation, dict) else {SCREEN: observation}
        return {**seen, LAST_ACTIONS: np.array(last_actions, np.int64)}
