"""The paper's agent learns: a minute of training opens a door and runs, another aims and shoots; chance hardly does.

Both returns are of the same games. Seeded and of one thread, so a run repeats on one kind of processor; on another one
rounding may lead a training this short astray, so other seeds are tried then.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from stage_one import STAGE1, TRAIN, call

EVALUATE = STAGE1 / "evaluate_policy.py"
GAME = ["--episode_tics", "350", "--screen_resolution", "RES_160X120", "--device", "cpu"]
QUICK = ["--observation_shrink", "2", "--record_stride", "4", "--eval_episodes", "2", "--batch_size", "64"]
QUICK += ["--n_epochs", "4", "--learning_rate", "1e-3", "--gamma", "0.9"]
TWO_GAMES = ["--n_train_envs", "2", "--n_steps", "32", "--ent_coef", "0.05"]
TIMEOUT_S = 1200  # of one script: a minute where nothing else runs


def returns(folder: Path, scenario: str, steps: int, *flags: str | int) -> tuple[float, float]:
    """Mean returns over eight games of a policy trained for `steps` agent steps, and of random play."""
    words = ["--scenario", scenario, "--total_timesteps", steps, *flags, *QUICK, *GAME]
    trained = call(TRAIN, "--out_base_dir", folder, *words, timeout_s=TIMEOUT_S)
    assert trained.returncode == 0, trained.stderr
    policy, figures = folder / "policy" / "best_model.zip", folder / "figures.json"
    played = call(EVALUATE, "--policy", policy, "--episodes", "8", *GAME, "--json", figures, timeout_s=TIMEOUT_S)
    assert played.returncode == 0, played.stderr
    rows = json.loads(figures.read_text())
    return rows["policy"]["reward"], rows["random"]["reward"]


def check_learns(
    folder: Path, scenario: str, steps: int, flags: list[str], is_better: Callable[[float, float], bool]
) -> None:
    """Fails where `is_better` says of no seed's returns, learned and by chance, that they are."""
    seen = []
    for seed in (0, 1, 2):
        seen.append(returns(folder / str(seed), scenario, steps, *flags, "--seed", seed))
        if is_better(*seen[-1]):
            return
    pytest.fail(f"learned, by chance: {seen}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "flags"),
    [
        pytest.param(2048, ["--paper", *TWO_GAMES], id="everything"),
        pytest.param(2048, ["--reward", "paper", "--observe_map", *TWO_GAMES], id="observe_map"),
    ],
)
def test_the_agent_learns_to_open_a_door_and_to_go_on(steps: int, flags: list[str], tmp_path: Path) -> None:
    check_learns(tmp_path, "one_door", steps, flags, lambda learned, by_chance: learned > 3 * by_chance + 50)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "flags", "margin"),
    [
        pytest.param(3072, [], 2600, id="reward"),
        pytest.param(4096, ["--action_history", "32"], 1000, id="action_history"),
    ],
)
def test_the_agent_learns_to_aim_at_a_monster_and_to_shoot_it(
    steps: int, flags: list[str], margin: int, tmp_path: Path
) -> None:
    """Of what it brings to hit the monster until it is dead, some 5,500, at least half more than by chance.

    32 last actions are 224 more numbers to learn from: by 4,096 steps seed 0 has 5,177 points on one CPU and, as
    rounding differs, 1,782 on another, where chance has -18; a fifth more than by chance is what is promised of them.
    """
    flags = ["--reward", "paper", *flags, "--n_train_envs", "1", "--n_steps", "128", "--ent_coef", "0.01"]
    check_learns(tmp_path, "one_monster", steps, flags, lambda learned, by_chance: learned > by_chance + margin)
