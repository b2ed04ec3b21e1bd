"""What can stand beside a dream on this machine: the real game, an agent, recorded episodes; where not, why not.

Looked up once, when play.py starts; an agent's file is the last of them, and the only heavy one. Knows no players.
Used by play.py and beside.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import real_game
from agent import RANDOM, Policy, find_policy, load_policy, random_policy
from command_line import BadInput
from controls import counterparts, has_common_actions
from real_game import GameSpec
from replays import Replay, find_replays

NO_POLICY = "There is no agent: start play.py with --policy and a policy file, a Hub id, or `random`."


@dataclass
class Companions:
    """game: None where there is none, and `no_game` says why; likewise policy and `no_policy`.

    actions: the model's action ids -> the game's.  most_games: played at once, by all players together."""

    game: GameSpec | None = None
    actions: dict[int, int] = field(default_factory=dict)
    most_games: int = 0
    policy: Policy | None = None
    replays: list[Replay] = field(default_factory=list)
    no_game: str = "There is no real game here."
    no_policy: str = NO_POLICY

    def greeting(self) -> dict[str, Any]:
        """What the page is told of it."""
        return {
            "game": {"name": self.game and self.game.name, "why_not": None if self.game else self.no_game},
            "agent": {"name": self.policy and self.policy.name, "why_not": None if self.policy else self.no_policy},
            "episodes": [{"name": each.name, "seconds": each.seconds} for each in self.replays],
        }

    def replay(self, number: int) -> Replay:
        """A recorded episode by its place in the list. Raises BadInput where there is none."""
        if number >= len(self.replays):
            raise BadInput(f"episode {number}: there are {len(self.replays)}")
        return self.replays[number]

    def describe(self) -> str:
        """Two lines for whoever started play.py."""
        game = f"{self.game.name}, {self.most_games} at once" if self.game else self.no_game
        agent = self.policy.name if self.policy else "none"
        return f"beside the dream: {game}\nagent: {agent}, recorded episodes: {len(self.replays)}"


def find_companions(
    model: dict[str, Any],
    *,
    scenario: str | None,
    env: str | None,
    screen_resolution: str,
    most_games: int,
    policy: str | None,
    episodes: Sequence[Path],
) -> Companions:
    """What the flags ask for, and what is there unasked. model: a world model's config.json.

    Raises BadInput for what was asked for and cannot be; what is only missing is told on the page."""
    found = Companions(most_games=most_games, replays=find_replays(episodes, model))
    path = find_policy(policy) if policy not in (None, RANDOM) else None
    if policy is None and env is None:  # the shipped one plays Doom
        path = real_game.shipped_policy()
    if scenario or env:  # refused by name, before the policy's file is read, which takes torch
        game = real_game.open_game(GameSpec(scenario or real_game.OWN_SCENARIO, env, screen_resolution))
        game.close()
    tables, space = [model["action_table"]], None
    try:
        facts = real_game.policy_facts(path) if path else {}
        named = scenario or facts.get("scenario") or real_game.OWN_SCENARIO
        observation = tuple((name, facts[name]) for name in real_game.OBSERVATION_FACTS if name in facts)
        stride = model["frame_stride"]
        spec = GameSpec(str(named), env, screen_resolution, stride, observation=observation)
        game = real_game.open_game(spec)
        space = game.observation_space if env else None
        table, tics_per_second = real_game.game_facts(game)
        game.close()
        if tics_per_second != model["tics_per_second"]:
            what = f"the model's game has {model['tics_per_second']:g} tics a second, {spec.name} {tics_per_second:g}"
            raise BadInput(f"{what}; give the game it was trained on with --scenario or --env")
        found.actions = counterparts(model["action_table"], table, of=spec.name)
        found.game, tables = spec, [table]
        if env is None:
            tables.append(real_game.game_facts(real_game.open_game(spec, "seed"))[0])
        if most_games == 0:
            raise BadInput("real games are turned off here (--max_real_games 0)")
    except BadInput as error:
        if scenario or env:
            raise
        found.game, found.no_game = None, f"There is no real game here: {error}."
    try:
        if policy == RANDOM:
            found.policy = random_policy(tables[0])
        elif path:
            found.policy = load_policy(path, tables, space)
            if not has_common_actions(found.policy.table, model["action_table"]):
                found.policy = None
                raise BadInput(f"{path.name} presses none of the buttons that the model knows; give another --policy")
    except BadInput as error:
        if policy:
            raise
        found.no_policy = f"There is no agent: {error}."
    return found
