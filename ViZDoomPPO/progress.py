"""How far a training run has come: counters, curriculum, evaluations, and the lines of metrics.jsonl.

Knows no game and no network. Used by the training script.
"""

import argparse
import json
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from console import BadInput, writing

LEVEL_THRESHOLDS = (5.0, 10.0, 15.0, 20.0, 25.0)  # mean return, in kills, that leads from level k to k + 1
RETURNS_PER_LEVEL = 10  # the mean is over this many episodes


@dataclass
class Progress:
    """Everything a resumed run has to know beside policy and optimizer; plain JSON inside the checkpoint."""

    run_id: str
    agent_steps: int = 0
    updates: int = 0
    train_seconds: float = 0.0
    level: int = 0
    last_returns: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def add_return(self, level: int, episode_return: float, thresholds: Sequence[float] = LEVEL_THRESHOLDS) -> bool:
        """Takes note of a finished training episode; True when the agent has earned the next level.

        Episodes that began on another level do not count, so a level is passed by play on that level. `thresholds` are
        in the reward's own points; there are as many levels to pass as there are thresholds."""
        if level != self.level:
            return False
        returns = deque([*self.last_returns, episode_return], maxlen=RETURNS_PER_LEVEL)
        self.last_returns = list(returns)
        is_passed = len(returns) == RETURNS_PER_LEVEL and self.level < len(thresholds)
        if is_passed and sum(returns) / RETURNS_PER_LEVEL > thresholds[self.level]:
            self.level, self.last_returns = self.level + 1, []
            return True
        return False

    def is_finished(self, args: argparse.Namespace) -> bool:
        """Whether the budget in steps or minutes is used up."""
        return self.agent_steps >= args.total_timesteps or self.is_late(args)

    def is_late(self, args: argparse.Namespace) -> bool:
        """Whether the minutes are used up, where they are limited."""
        return args.max_train_minutes is not None and self.train_seconds >= args.max_train_minutes * 60

    def steps_since_evaluation(self) -> int:
        return self.agent_steps - (self.evaluations[-1]["agent_steps"] if self.evaluations else 0)

    def is_evaluated(self) -> bool:
        return bool(self.evaluations) and self.evaluations[-1]["agent_steps"] == self.agent_steps


def saved_progress(path: Path) -> Progress | None:
    """The progress a checkpoint holds, None where there is no checkpoint yet."""
    if not path.exists():
        return None
    from policy import STATE_MEMBER, read_member

    state = read_member(path, STATE_MEMBER)
    if state is None:
        raise BadInput(f"{path} is not a checkpoint of this script; move it away, or choose another --run_dir")
    return Progress(**state)


def whole_checkpoint(checkpoint: Path, previous: Path) -> None:
    """Puts the checkpoint before it in the place of one that a disk has damaged, or that is missing; says so.

    A killed run damages none. Raises BadInput when both are damaged."""
    damage = {path: _damage(path) for path in (checkpoint, previous) if path.exists()}
    if damage.get(checkpoint, "missing") is None or not damage:
        return
    if damage.get(previous, "missing") is not None:
        what = f"{checkpoint} is {damage.get(checkpoint, 'missing')}, {previous.name} too"
        raise BadInput(f"{what}; move both away to begin again")
    print(f"{checkpoint.name} is {damage.get(checkpoint, 'missing')}: going on from {previous.name}", flush=True)
    with writing(checkpoint):
        os.replace(previous, checkpoint)


def _damage(path: Path) -> str | None:
    """What keeps a zip from being read whole, None when nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        return f"damaged ({error})"
    return broken and f"damaged at {broken}"


def rank(evaluation: dict[str, float]) -> tuple[float, float]:
    """Returns on different levels do not compare: whoever reached the higher one is better."""
    return evaluation["level"], evaluation["mean_return"]


def best_rank(path: Path) -> tuple[float, float]:
    """The rank the best model so far was saved with; it is kept in that very file."""
    from policy import FACTS_MEMBER, read_member

    evaluation = ((read_member(path, FACTS_MEMBER) or {}) if path.exists() else {}).get("evaluation")
    return rank(evaluation) if evaluation else (-1.0, float("-inf"))


def add_line(path: Path, line: dict) -> None:
    """Appends one JSON line to metrics.jsonl."""
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def forget_lines_after(path: Path, step: int) -> None:
    """Removes the lines of later steps, which a killed run wrote and a resumed one plays anew, and half lines."""
    from episode_recorder import partial_path

    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # cut short by the kill
    with writing(path):
        partial_path(path).write_text("".join(kept), encoding="utf-8")
        os.replace(partial_path(path), path)
