"""A trained policy on its way to the Hub: weights without optimizer, a film of its play, and the card that tells it.

The card is written from the run's own records, so that it says nothing that was not measured. Knows what lies in a run
folder, not how a policy is trained. Used by the training script with --push_to_hub.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from card_mark import CARD_FILE, signed
from comparison import compare, table_lines
from console import writing
from films import write_gif
from hub_repository import POLICY_FILE, upload
from huggingface_hub import ModelCardData
from policy import FACTS_MEMBER, copy_weights, read_member
from progress import Progress
from recording import SPLITS, make_recording
from rewards import REWARDS
from tqdm import tqdm

FILM = "episode.gif"
FILM_STEPS = 105  # agent steps of 4 tics: 12 seconds
MOST_EVALUATIONS = 24  # shown, evenly chosen
FREEDOOM = (
    "MIT. The pictures show textures and sprites of [Freedoom](https://freedoom.github.io), © Contributors to the "
    "Freedoom project, BSD 3-Clause, where the scenario is one of ours or of the vizdoom package."
)


def measured_beside_random(args: argparse.Namespace, device: str) -> dict[str, dict]:
    """Figures of `compare` for a finished run's best policy: as many games as its evaluation had, on its level.

    args: the training script's."""
    best = args.run_dir / POLICY_FILE
    evaluation = (read_member(best, FACTS_MEMBER) or {})["evaluation"]
    games = {**vars(args), "policy": str(best), "level": evaluation["level"], "env": None, "split": SPLITS[1]}
    games["record_depth"] = False  # nothing is recorded
    with tqdm(total=2 * evaluation["episodes"], unit="episode", desc="beside random play") as bar:
        return compare(make_recording(argparse.Namespace(**games)), device, evaluation["episodes"], bar.update)


def push_policy(
    run_dir: Path,
    out_base_dir: Path,
    repo_id: str,
    progress: Progress,
    settings: Mapping[str, Any],
    figures: Mapping[str, Mapping],
) -> str:
    """Uploads the best policy of a finished run; returns the address. figures: of `measured_beside_random`.

    Raises BadInput when it cannot be uploaded, or when its temporary copy cannot be written."""
    with writing(Path("what is to be uploaded")), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_weights(run_dir / POLICY_FILE, folder / POLICY_FILE)
        films = _last_evaluations(out_base_dir)[-1:]
        for episode in films:
            write_gif(episode, folder / FILM, FILM_STEPS)
        facts = read_member(folder / POLICY_FILE, FACTS_MEMBER) or {}
        card = policy_card(repo_id, facts, progress, settings, figures, has_film=bool(films))
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        return upload(folder, repo_id, repo_type="model", message="Upload policy")


def _last_evaluations(out_base_dir: Path) -> list[Path]:
    """The episodes of the highest level that was evaluated, in the order they were played."""
    levels = sorted(out_base_dir.glob("eval/level_*"))
    return sorted(levels[-1].glob("env_*/episode_*.parquet"), key=lambda path: (path.name, path)) if levels else []


def policy_card(
    repo_id: str,
    facts: Mapping[str, Any],
    progress: Progress,
    settings: Mapping[str, Any],
    figures: Mapping[str, Mapping],
    *,
    has_film: bool,
) -> str:
    """The README.md. facts: the policy file's own. figures: of `compare`."""
    game = f"Doom, scenario `{facts['scenario']}`"
    about = {
        "game": game,
        "reward": facts["reward"],
        "sees": "screen and automap" if facts["observe_map"] else "the screen",
        "knows its last actions": facts["action_history"] or "no",
        "probability of repeating an action": facts["repeat_probability"],
        "holds an action for": f"{facts['tics_per_step']} tics, 35 a second",
    }
    trained = {
        "algorithm": "PPO, stable-baselines3",
        "agent steps": f"{progress.agent_steps:,}",
        "updates": f"{progress.updates:,}",
        "time": f"{progress.train_seconds / 60:.1f} minutes, evaluations included",
        "level of the bots reached": progress.level,
        **settings,
    }
    data = ModelCardData(
        license="mit",
        pipeline_tag="reinforcement-learning",
        tags=["vizdoom", "doom", "ppo", "gamengen", "reinforcement-learning"],
    )
    record = (
        f"python ViZDoomPPO/load_model_generate_dataset.py --policy {repo_id} --episodes 100 --output parquet "
        "--output_dir episodes",
        f"python ViZDoomPPO/load_model_generate_dataset.py --policy {repo_id} --episodes 1 --output gif "
        "--output_dir films",
    )
    paragraphs = (
        f"# {repo_id.rpartition('/')[2]}",
        f"An agent that plays {game}. Its play is what a neural game engine learns the game from, after [*Diffusion "
        "Models Are Real-Time Game Engines*](https://arxiv.org/abs/2408.14837).",
        f"![The first seconds of one of its last evaluations]({FILM})" if has_film else "",
        "## Let it play",
        "From the folder of the toolkit that trained it; a scenario of one's own is named with `--scenario`:",
        "\n".join(("```sh", *record, "```")),
        f"`{POLICY_FILE}` holds the weights and, as `policy.json`, what is said here; no optimizer state.",
        "## What it is",
        _table(("", ""), list(about.items())),
        "## How it was trained",
        _table(("", ""), list(trained.items())),
        "## How good it is",
        _beside_random(figures, facts),
        _evaluations(progress.evaluations, facts["evaluation"]),
        "## Actions",
        _table(
            ("id", "name", "buttons", "keys"),
            [
                (row["id"], row["name"], " ".join(row["buttons"]), " ".join(row["keys"]))
                for row in facts["action_table"]
            ],
        ),
        f"## Licence\n\n{FREEDOOM}",
    )
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    return signed(data.to_yaml(), f"{text}\n")


def _beside_random(figures: Mapping[str, Mapping], facts: Mapping[str, Any]) -> str:
    """What the policy achieved in games in which random play achieved that."""
    opponents = f"on level {facts['evaluation']['level']}, " if facts.get("has_bots", True) else ""
    episodes = len(next(iter(figures.values()))["episodes"])
    played = f"{episodes} game{'s' if episodes > 1 else ''} {opponents}played by this policy, and the same at random"
    return (
        f"{played}; mean ± standard deviation of an episode, areas of 128 map units, reward in the points of "
        f"`{facts['reward']}`, {REWARDS[facts['reward']].kill_points:,.0f} for a kill:\n\n"
        + "\n".join(table_lines(figures))
    )


def _evaluations(evaluations: Sequence[Mapping[str, float]], uploaded: Mapping[str, float]) -> str:
    """A table of the run's evaluations, that of the uploaded policy among them."""
    places = range(len(evaluations))
    if len(evaluations) > MOST_EVALUATIONS:
        places = [round(i * (len(evaluations) - 1) / (MOST_EVALUATIONS - 1)) for i in range(MOST_EVALUATIONS)]
    shown = [each for i, each in enumerate(evaluations) if i in places or each == uploaded]
    rows = [
        (
            f"{each['agent_steps']:,}{' (uploaded)' if each == uploaded else ''}",
            each["level"],
            f"{each['mean_return']:.2f} +- {each['std_return']:.2f}",
            each["episodes"],
        )
        for each in shown
    ]
    return (
        "While it was trained: points per episode, mean and standard deviation, actions drawn as when episodes are "
        "recorded. Returns on different levels do not compare; the uploaded policy is the best one of the highest "
        "level.\n\n" + _table(("agent steps", "level", "return", "episodes"), rows)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
