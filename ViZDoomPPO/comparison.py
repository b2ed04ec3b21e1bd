"""A policy beside random play: both play the same games, and what each achieved becomes figures and a table.

Every episode is a fresh game seeded from (seed, episode number), so repeated games give the same figures. Knows no
command line and no file. Used by evaluate_policy.py and for a policy's card.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from recording import RANDOM, SPLITS, Recording, chooser, never

COLUMNS = ("frags", "deaths", "areas", "rooms", "reward")
PLAYERS = ("policy", RANDOM)
TICS_PER_STEP = 4
MAP_WITH_ROOMS = "deathmatch_simple"
SCENARIOS = Path(__file__).resolve().parent / "scenarios"


def compare(
    recording: Recording, device: str, episodes: int, after_each: Callable[[], object] = never
) -> dict[str, dict]:
    """{player: `summary`} of the recording's policy and of random play, over the same `episodes` games.

    `after_each` is called after each of the 2 * `episodes` games."""
    figures = {}
    for name, played in zip(PLAYERS, (recording, replace(recording, policy=RANDOM)), strict=True):
        seen = []
        for episode in range(episodes):
            seen.append(play_episode(played, device, episode))
            after_each()
        figures[name] = summary(seen)
    return figures


def play_episode(recording: Recording, device: str, episode: int) -> dict:
    """One game from its seed: its figures, and `visited`, the letters of the rooms the player was in."""
    from episode_recorder import derived_seed

    game_seed = derived_seed(recording.seed, SPLITS.index(recording.split), episode)
    game = recording.open_game(TICS_PER_STEP)  # between two decisions nothing has to be drawn
    places: set[tuple[float, float]] = set()
    game.on_tic = lambda _frame, _action, known: places.add((known["position_x"], known["position_y"]))
    try:
        choose = chooser(recording, game, game_seed, device)
        observation, info = game.reset(seed=game_seed)
        points, is_over = 0.0, False
        while not is_over:
            observation, reward, terminated, truncated, info = game.step(choose(observation))
            points, is_over = points + reward, terminated or truncated
    finally:
        game.close()
    visited = visited_rooms(places) if game.scenario_name == MAP_WITH_ROOMS else ""
    counts = {name: info[name] for name in ("frags", "deaths", "areas")}
    return {**counts, "rooms": len(visited), "reward": round(points, 3), "visited": visited}


def visited_rooms(places: set[tuple[float, float]]) -> str:
    """The letters of our map's rooms in which the places (x, y) lie, sorted."""
    if str(SCENARIOS) not in sys.path:
        sys.path.append(str(SCENARIOS))
    from deathmatch_map import DEATHMATCH, ROOMS

    return "".join(sorted(DEATHMATCH.areas_at(places) & set(ROOMS)))


def summary(episodes: list[dict]) -> dict:
    """Mean and standard deviation of every column, and the share of rooms seen in any of the episodes."""
    columns = {name: [episode[name] for episode in episodes] for name in COLUMNS}
    return {
        **{name: round(mean(values), 3) for name, values in columns.items()},
        **{f"{name}_std": round(stdev(values), 3) if len(values) > 1 else None for name, values in columns.items()},
        "rooms_in_any": len(set("".join(episode["visited"] for episode in episodes))),
        "episodes": episodes,
    }


def table_lines(figures: Mapping[str, Mapping]) -> list[str]:
    """The figures as a Markdown table, mean ± standard deviation; rooms only on the map that has some."""
    has_rooms = any(row["rooms_in_any"] for row in figures.values())
    shown = [name for name in COLUMNS if has_rooms or name != "rooms"]
    lines = [["player", *shown, "rooms in any"], ["---"] * (len(shown) + 2)]
    for name, row in figures.items():
        cells = [f"{row[column]:.2f} ± {row[f'{column}_std'] or 0:.2f}" for column in shown]
        lines.append([name, *cells, str(row["rooms_in_any"])])
    return [f"| {' | '.join(line if has_rooms else line[:-1])} |" for line in lines]
