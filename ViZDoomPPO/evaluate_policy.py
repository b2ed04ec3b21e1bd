"""Plays episodes with a policy and, for comparison, at random; prints frags, deaths and places visited, writes JSON.

Every episode is a fresh game seeded from (--seed, episode number), so a repeated run gives the same figures. Areas are
squares of 128 map units; rooms those of our deathmatch map's drawing, counted in each episode and over all of them.

  python evaluate_policy.py --episodes 2 --episode_tics 700
  python evaluate_policy.py --policy dataset/policy/best_model.zip --episodes 20 --json figures.json
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from console import BadInput, add_device_flag, check_writable, parser, print_settings, resolve_device, run, writing
from hub_repository import HUB_ID, fetch_policy
from recording import DEFAULT_POLICY, RANDOM, SPLITS, Recording, check_game, chooser, make_recording

COLUMNS = ("frags", "deaths", "areas", "rooms", "reward")
TICS_PER_STEP = 4
MAP_WITH_ROOMS = "deathmatch_simple"
SCENARIOS = Path(__file__).resolve().parent / "scenarios"


def build_parser() -> argparse.ArgumentParser:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("--policy", default=str(DEFAULT_POLICY), help="policy file (.zip) or its Hub id")
    add("--episodes", type=int, default=20, help="of the policy, and as many at random")
    add("--scenario", help="Doom scenario; default: the policy's own")
    add("--action_set", choices=("full", "seed"), help="Doom buttons; default: the policy's own, else full")
    add("--level", type=int, default=5, choices=range(6), help="how able the bots are")
    add("--bots", type=int, default=6, help="opponents")
    add("--episode_tics", type=int, default=5250, help="length of an episode in game tics, 35 a second")
    add("--screen_resolution", default="RES_160X120", help="size of the frames the agent is shown, a ViZDoom name")
    add("--seed", type=int, default=0, help="of the games and of the actions drawn")
    add("--json", type=Path, help="file to write the figures to, of every episode too")
    add_device_flag(arguments)
    fixed = {"env": None, "image_format": "jpeg", "image_quality": 90, "record_stride": 1, "split": SPLITS[1]}
    arguments.set_defaults(**fixed)  # of a recording, which this is none of
    return arguments


def check_flags(args: argparse.Namespace) -> None:
    for name, least in {"episodes": 1, "bots": 0, "episode_tics": 1, "seed": 0}.items():
        if getattr(args, name) < least:
            raise BadInput(f"--{name} {getattr(args, name)} is too small; give {least} or more")
    if HUB_ID.fullmatch(args.policy) and not Path(args.policy).parent.exists():
        args.policy = str(fetch_policy(args.policy))
    if not Path(args.policy).is_file():
        raise BadInput(f"no policy {args.policy}; train one with train_ppo_and_collect_data_parallel.py")
    if args.json is not None:
        check_writable(args.json.resolve().parent)


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


def main(args: argparse.Namespace) -> None:
    check_flags(args)
    device = resolve_device(args.device)
    recording = make_recording(args)
    check_game(recording, device)

    from tqdm import tqdm

    print_settings(args, scenario=recording.scenario, action_set=recording.action_set, device=device)
    figures = {}
    bar = tqdm(total=2 * args.episodes, unit="episode")
    for name, played in {"policy": recording, RANDOM: replace(recording, policy=RANDOM)}.items():
        episodes = []
        for episode in range(args.episodes):
            episodes.append(play_episode(played, device, episode))
            bar.update()
        figures[name] = summary(episodes)
    bar.close()
    print("| player |" + "".join(f" {name} |" for name in COLUMNS) + " rooms in any |")
    print("|---|" + "---|" * (len(COLUMNS) + 1))
    for name, row in figures.items():
        cells = [f"{row[column]:.2f} ± {row[f'{column}_std'] or 0:.2f}" for column in COLUMNS]
        print(f"| {name} | " + " | ".join([*cells, str(row["rooms_in_any"])]) + " |")
    if args.json is not None:
        settings = {name: getattr(args, name) for name in ("episodes", "level", "bots", "episode_tics", "seed")}
        settings |= {"scenario": recording.scenario, "policy_sha256": recording.policy_sha256}
        with writing(args.json):
            temporary = args.json.with_name(f".{args.json.name}.partial")
            temporary.write_text(json.dumps({**settings, **figures}, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, args.json)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    run(main, build_parser())
