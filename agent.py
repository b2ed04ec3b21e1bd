"""The agent at the keys: a policy of stage 1, or chance, that plays in place of a person.

A policy decides on the real game's frame, as often as it did in training. Where its observation is the plain screen
it can also look at a dreamed frame; one that sees the automap cannot. Knows no players and no models.
Used by beside.py.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import real_game
from command_line import BadInput
from controls import nearest_action, row_buttons
from dataset_folders import HUB_ID
from episodes import no_op_id

if TYPE_CHECKING:
    import numpy as np
    from gymnasium import Space

RANDOM = "random"
TICS_PER_DECISION = 4  # of policy files that do not say


def find_policy(path_or_id: str) -> Path:
    """The policy file of that name, or of a Hub repository owner/name. Raises BadInput when there is none."""
    path = Path(path_or_id)
    if path.is_file():
        return path
    if path.suffix == ".zip" or not HUB_ID.fullmatch(path_or_id):
        raise BadInput(f"no policy {path_or_id}; give a .zip that stage 1 trained, a Hub id owner/name, or `random`")
    return real_game.fetch_policy(path_or_id)


@dataclass(frozen=True)
class Policy:
    """Who chooses: its action table, how often it decides, and what it sees.

    choose: (observation, own last actions) -> row of the table.
    see: a screen, uint8 (H, W, 3) of any size -> observation; None where it needs more than a screen."""

    name: str
    table: tuple[dict[str, Any], ...]
    tics_per_decision: int
    action_history: int
    see: "Callable[[np.ndarray], Any] | None"
    choose: Callable[[Any, Sequence[int]], int]


def random_policy(game_table: Sequence[dict[str, Any]]) -> Policy:
    """Chance, at an agent's pace."""
    count = len(game_table)
    table, see = tuple(game_table), lambda screen: screen
    return Policy(RANDOM, table, TICS_PER_DECISION, 0, see, lambda *_: random.randrange(count))


def load_policy(path: Path, game_tables: Sequence[Sequence[dict[str, Any]]], space: "Space | None") -> Policy:
    """The policy of a file. space: what it sees of a gymnasium env, None for Doom.

    A file without an action table of its own has the first of the game's with as many actions as it chooses among.
    Raises BadInput when it is no policy, or plays another game."""
    facts = real_game.policy_facts(path)
    count, history = facts["number_of_actions"], int(facts.get("action_history", 0))
    tables = [facts["action_table"]] if "action_table" in facts else game_tables
    table = next((each for each in tables if len(each) == count), None)
    if table is None:
        raise BadInput(f"{path} chooses among {count} actions, the game has {len(tables[0])}; give the game's own")
    observation = {name: facts[name] for name in real_game.OBSERVATION_FACTS if name in facts}
    sees_doom = space is None
    space = space or real_game.observer(count, observation, history).space()
    of_screen = real_game.observer(count, observation)
    model = real_game.load_policy(path, space, count, float(facts.get("repeat_probability", 0.0)))

    def see(screen: "np.ndarray") -> Any:
        return of_screen.observe(screen, screen)

    def choose(observation: Any, last_actions: Sequence[int]) -> int:
        if history:
            observation = real_game.with_last_actions(observation, last_actions)
        return int(model.predict(observation, deterministic=False)[0])

    pace = int(facts.get("tics_per_step", TICS_PER_DECISION))
    sees_screen = sees_doom and not observation.get("observe_map")
    return Policy(path.stem, tuple(table), pace, history, see if sees_screen else None, choose)


class Agent:
    """A policy at one game's keys: holds each choice as long as it did in training.

    It chooses in a thread of its own: whoever may not wait lets it `consider` what is to be seen, and has it `act` once
    it `is_decided`."""

    def __init__(self, policy: Policy, action_table: Sequence[dict[str, Any]], tics_per_frame: int) -> None:
        """action_table: of the model, whose nearest action is played."""
        self._policy, self._action_table = policy, action_table
        self._frames_per_decision = max(1, round(policy.tics_per_decision / tics_per_frame))
        self._buttons = [row_buttons(row, no_op_id(policy.table)) for row in policy.table]
        count = len(policy.table)  # stands for the actions before the first
        self._last = deque([count] * policy.action_history, maxlen=policy.action_history)
        self._action, self._frames_left = no_op_id(action_table), 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="agent")
        self._choice: Future[int] | None = None  # a row of the policy's table

    def consider(self, see: Callable[[], Any]) -> None:
        """Begins to choose, where that is due. see: gives what the game shows, or what the policy `sees` of a dream."""
        if self._frames_left == 0 and self._choice is None:
            self._choice = self._thread.submit(lambda: self._policy.choose(see(), self._last))

    def is_decided(self, patience_s: float) -> bool:
        """Whether `act` would not wait; says so after `patience_s` at the latest."""
        return self._choice is None or bool(wait([self._choice], patience_s).done)

    def act(self, see: Callable[[], Any]) -> int:
        """The model's action for the next frame; as `consider`, and waits for the choice."""
        self.consider(see)
        if self._choice is not None:
            choice, self._choice = self._choice, None
            row = choice.result()
            self._last.append(row)
            self._action = nearest_action(self._action_table, self._buttons[row])
            self._frames_left = self._frames_per_decision
        self._frames_left -= 1
        return self._action
