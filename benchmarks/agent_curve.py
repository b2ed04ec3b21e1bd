"""Draws an agent's learning from its recorded training episodes: kills, places seen and reward per minute of game.

    python benchmarks/agent_curve.py dataset assets/ppo_curve.png

A dot is the mean over the episodes that began within --bin_steps agent steps (over all games); numbers below are the
bots' mean level. Deathmatch only: frags count from each episode's beginning.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from curves import draw

PANELS = {"frags": "frags per minute", "areas": "areas of 128 units seen per minute", "reward": "reward per minute"}


def episode_figures(path: Path) -> tuple[dict, dict[str, float]]:
    """A recorded episode's metadata, and the PANELS' figures per minute."""
    with pq.ParquetFile(path) as file:
        facts = next(json.loads(v) for k, v in file.metadata.metadata.items() if k != b"ARROW:schema")
        columns = file.read(["frags", "reward", "position_x", "position_y"]).to_pydict()
    minutes = len(columns["frags"]) * facts["tics_per_row"] / facts["tics_per_second"] / 60
    squares = {(x // 128, y // 128) for x, y in zip(columns["position_x"], columns["position_y"], strict=True)}
    sums = {"frags": columns["frags"][-1], "areas": len(squares), "reward": sum(columns["reward"])}
    return facts, {name: value / minutes for name, value in sums.items()}


def binned(folder: Path, bin_steps: int) -> tuple[list[dict[str, float]], int]:
    """Means per bin of agent steps, oldest first, and how many games were played at once."""
    games = len({path.parent.name for path in folder.glob("train/level_*/env_*/episode_*.parquet")})
    bins: dict[int, list[dict[str, float]]] = defaultdict(list)
    for path in sorted(folder.glob("train/level_*/env_*/episode_*.parquet")):
        facts, figures = episode_figures(path)
        bins[facts["agent_step"] * games // bin_steps].append({**figures, "level": facts["level"]})
    rows = []
    for number, episodes in sorted(bins.items()):
        means = {name: sum(episode[name] for episode in episodes) / len(episodes) for name in episodes[0]}
        rows.append({**means, "step": (number + 0.5) * bin_steps, "episodes": len(episodes)})
    return rows, games


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("episodes", type=Path, help="--out_base_dir of the training")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--bin_steps", type=int, default=25_000, help="agent steps per dot; default 25000")
    args = parser.parse_args()
    rows, games = binned(args.episodes, args.bin_steps)
    if not rows:
        parser.error(f"no train/level_*/env_*/episode_*.parquet under {args.episodes}")
    for row in rows:
        print(" | ".join(f"{name} {value:.2f}" for name, value in row.items()))
    steps = max(row["step"] for row in rows)
    caption = f"bots' level; to {steps / 1000:.0f}k agent steps"
    draw(rows, PANELS, label=lambda row: f"{row['level']:.1f}", caption=caption).save(args.picture)
    print(f"wrote {args.picture}: {sum(row['episodes'] for row in rows)} episodes of {games} games")


if __name__ == "__main__":
    main()
