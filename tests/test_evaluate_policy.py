"""evaluate_policy.py plays the games it says: a policy's and the random player's figures are those of recorded play."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from actions import table_rows
from comparison import summary, table_lines, visited_rooms
from doom_env import DoomEnv
from policy import GamePPO, architecture, save_policy
from stage_one import GENERATE, STAGE1, call, is_refused
from train_ppo_and_collect_data_parallel import presses

EVALUATE = STAGE1 / "evaluate_policy.py"
GAME = ["--level", "3", "--bots", "4", "--episode_tics", "240", "--screen_resolution", "RES_160X120", "--device", "cpu"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy for our map."""
    game = DoomEnv(observation_shrink=2)
    table = table_rows(game.actions)
    network = architecture(game.observation_space, presses=presses(table))
    facts = {"scenario": "deathmatch_simple", "action_set": "full", "action_table": table, "observation_shrink": 2}
    path = tmp_path_factory.mktemp("policy") / "untrained.zip"
    save_policy(path, GamePPO(env=game, n_steps=2, batch_size=2, seed=0, device="cpu", **network), facts)
    return path


@pytest.mark.slow
def test_figures_are_those_of_the_same_games_recorded(policy: Path, tmp_path: Path) -> None:
    for out in ("one.json", "two.json"):
        done = call(EVALUATE, "--policy", policy, "--episodes", "2", *GAME, "--json", tmp_path / out)
        assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "one.json").read_text())
    assert figures == json.loads((tmp_path / "two.json").read_text()), "it repeats exactly"
    assert (figures["level"], figures["bots"], figures["episode_tics"]) == (3, 4, 240)
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines] == ["player", "---", "policy", "random"]
    for name, played in {"policy": policy, "random": "random"}.items():
        record = ["--policy", played, "--episodes", "2", "--split", "eval", *GAME, "--output_dir", tmp_path / name]
        done = call(GENERATE, *record, "--num_workers", "1")
        assert done.returncode == 0, done.stderr
        for path, episode in zip(
            sorted((tmp_path / name).rglob("episode_*.parquet")), figures[name]["episodes"], strict=True
        ):
            table = pq.read_table(path)
            places = set(zip(table["position_x"].to_pylist()[::4], table["position_y"].to_pylist()[::4], strict=True))
            assert episode["visited"] == visited_rooms(places) and episode["rooms"] == len(episode["visited"])
            squares = {(x // 128, y // 128) for x, y in places}
            assert episode["areas"] - len(squares) in (0, 1), "the place after the last tic is in no row"
            died = table["dead"].to_numpy().astype(int)
            assert episode["deaths"] == (died[1:] > died[:-1]).sum() or died[-1] == 0


def test_rooms_are_those_of_the_drawing() -> None:
    # The plan's first line begins "AkA@A.A.A.A.A-    B.": cells of 64 units, seven of A, two of rock, then B.
    assert visited_rooms({(32.0, -32.0), (6 * 64 + 63.0, -1.0)}) == "A"
    assert visited_rooms({(7 * 64 + 1.0, -32.0)}) == "", "rock"
    assert visited_rooms({(32.0, -32.0), (9 * 64 + 1.0, -32.0), (7 * 64 + 1.0, -2 * 64 - 1.0)}) == "AB", "no passage"


def test_a_row_sums_up_its_episodes() -> None:
    first = {"frags": 1, "deaths": 0, "areas": 10, "rooms": 2, "reward": 1.5, "visited": "AB"}
    second = {"frags": 4, "deaths": 2, "areas": 20, "rooms": 2, "reward": 2.5, "visited": "BC"}
    row = summary([first, second])
    assert (row["frags"], row["areas"], row["rooms"], row["rooms_in_any"]) == (2.5, 15, 2, 3)
    assert row["frags_std"] == pytest.approx(2.121, abs=1e-3) and row["episodes"] == [first, second]
    assert summary([first])["frags_std"] is None
    assert table_lines({"policy": row}) == [
        "| player | frags | deaths | areas | rooms | reward | rooms in any |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| policy | 2.50 ± 2.12 | 1.00 ± 1.41 | 15.00 ± 7.07 | 2.00 ± 0.00 | 2.00 ± 0.71 | 3 |",
    ]
    elsewhere = table_lines({"policy": summary([{**first, "rooms": 0, "visited": ""}])})
    assert elsewhere[0] == "| player | frags | deaths | areas | reward |", "no other map has rooms that are known"
    assert elsewhere[2] == "| policy | 1.00 ± 0.00 | 0.00 ± 0.00 | 10.00 ± 0.00 | 1.50 ± 0.00 |"


def test_a_missing_policy_and_bad_numbers_are_refused(tmp_path: Path) -> None:
    assert is_refused(call(EVALUATE, "--policy", tmp_path / "no.zip"), "no policy", "no.zip", "train one")
    assert is_refused(call(EVALUATE, "--episodes", "0"), "--episodes 0")
