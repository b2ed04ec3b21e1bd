"""The paper's agent learns: a minute of training behind a door opens it and runs, which play by chance hardly does.

Both returns are of the same games. Seeded and of one thread, so a run repeats on one kind of processor; on another one
rounding may lead a training this short astray, so a second seed is tried then. The margin is a factor of three.
"""

import json
from pathlib import Path

import pytest
from stage_one import STAGE1, TRAIN, call

EVALUATE = STAGE1 / "evaluate_policy.py"
GAME = ["--episode_tics", "350", "--screen_resolution", "RES_160X120", "--device", "cpu"]
QUICK = ["--observation_shrink", "2", "--record_stride", "4", "--eval_episodes", "2", "--batch_size", "64"]
QUICK += ["--n_epochs", "4", "--learning_rate", "1e-3", "--gamma", "0.9"]
TWO_GAMES = ["--n_train_envs", "2", "--n_steps", "32", "--ent_coef", "0.05"]
ONE_GAME = ["--n_train_envs", "1", "--n_steps", "64", "--ent_coef", "0.03"]


def returns(folder: Path, scenario: str, steps: int, *flags: str | int) -> tuple[float, float]:
    """Mean returns over eight games of a policy trained for `steps` agent steps, and of random play."""
    trained = call(
        TRAIN, "--out_base_dir", folder, "--scenario", scenario, "--total_timesteps", steps, *flags, *QUICK, *GAME
    )
    assert trained.returncode == 0, trained.stderr
    policy, figures = folder / "policy" / "best_model.zip", folder / "figures.json"
    played = call(EVALUATE, "--policy", policy, "--episodes", "8", *GAME, "--json", figures)
    assert played.returncode == 0, played.stderr
    rows = json.loads(figures.read_text())
    return rows["policy"]["reward"], rows["random"]["reward"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "flags"),
    [
        pytest.param(2048, ["--paper", *TWO_GAMES], id="everything"),
        pytest.param(2048, ["--reward", "paper", "--observe_map", *TWO_GAMES], id="observe_map"),
        pytest.param(3072, ["--reward", "paper", "--action_history", "4", *ONE_GAME], id="action_history"),
    ],
)
def test_the_agent_learns_to_open_a_door_and_to_go_on(steps: int, flags: list[str], tmp_path: Path) -> None:
    seen = []
    for seed in (0, 1):
        learned, by_chance = returns(tmp_path / str(seed), "one_door", steps, *flags, "--seed", seed)
        seen.append((learned, by_chance))
        if learned > 3 * by_chance + 50:
            return
    pytest.fail(f"learned, by chance: {seen}")
