"""Plays episodes with a policy and, for comparison, at random; prints frags, deaths and places visited, writes JSON.

Every episode is a fresh game seeded from (--seed, episode number), so a repeated run gives the same figures. Areas are
squares of 128 map units; rooms those of our deathmatch map's drawing, counted in each episode and over all of them.

  python evaluate_policy.py --episodes 2 --episode_tics 700
  python evaluate_policy.py --policy dataset/policy/best_model.zip --episodes 20 --json figures.json
"""

import argparse
import json
import os
from pathlib import Path

from comparison import compare, table_lines
from console import BadInput, add_device_flag, check_writable, parser, print_settings, resolve_device, run, writing
from hub_repository import HUB_ID, fetch_policy
from recording import DEFAULT_POLICY, SPLITS, check_game, make_recording


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
    fixed |= {"record_depth": False}
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


def main(args: argparse.Namespace) -> None:
    check_flags(args)
    device = resolve_device(args.device)
    recording = make_recording(args)
    check_game(recording, device)

    from tqdm import tqdm

    print_settings(args, scenario=recording.scenario, action_set=recording.action_set, device=device)
    with tqdm(total=2 * args.episodes, unit="episode") as bar:
        figures = compare(recording, device, args.episodes, bar.update)
    print("\n".join(table_lines(figures)))
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
