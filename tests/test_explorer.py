"""Exploration: what a person tries out is all in a minute of it, the same for the same seed, all over the map."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from actions import ACTION_SETS, action_table, nearest_action, table_from_rows
from explorer import Explorer
from stage_one import GENERATE, call, contents, footer, is_refused

STEPS_PER_S = 8.75  # 35 tics a second, 4 of them a step
MINUTE = ["--episode_tics", "2100", "--record_stride", "4", "--screen_resolution", "RES_160X120"]
QUIET = ["--level", "0", "--bots", "2", "--image_quality", "30", "--seed", "3"]
BUTTONS = ("ATTACK", "MOVE_FORWARD", "MOVE_LEFT", "MOVE_RIGHT", "MOVE_BACKWARD", "TURN_RIGHT", "TURN_LEFT")


def recorded(folder: Path, policy: str, *flags: str) -> Path:
    result = call(GENERATE, "--policy", policy, *MINUTE, *QUIET, *flags, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder / "train" / "level_0" / policy / "episode_000000.parquet"


@pytest.fixture(scope="module")
def minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real minute of exploration, a row for each agent step."""
    return recorded(tmp_path_factory.mktemp("minute"), "explore")


def areas(path: Path) -> int:
    """How many squares of 128 units the player was in."""
    table = pq.read_table(path, columns=["position_x", "position_y"])
    return len(set(zip(table["position_x"].to_numpy() // 128, table["position_y"].to_numpy() // 128, strict=True)))


def runs(pressed: list[tuple[str, ...]]) -> list[tuple[frozenset[str], slice]]:
    """Each stretch of steps with the same buttons."""
    stretches, start = [], 0
    for buttons, group in groupby(pressed):
        end = start + len(list(group))
        stretches.append((frozenset(buttons), slice(start, end)))
        start = end
    return stretches


def test_every_behaviour_is_in_a_minute(minute: Path) -> None:
    table = pq.read_table(minute)
    actions = table_from_rows(footer(minute)["action_table"])
    stretches = runs([actions[action].buttons for action in table["actions"].to_pylist()])
    x, y, angle = (table[f"position_{name}"].to_numpy() for name in ("x", "y", "angle"))
    moved = np.hypot(np.diff(x), np.diff(y))  # map units a step
    turned = np.abs((np.diff(angle) + 180) % 360 - 180)

    def longest(*buttons: str) -> float:
        return max((s.stop - s.start for held, s in stretches if held == set(buttons)), default=0) / STEPS_PER_S

    assert longest() >= 1.0  # standing still
    circles = [turned[s].sum() for held, s in stretches if held in ({"TURN_LEFT"}, {"TURN_RIGHT"})]
    assert max(circles) >= 345  # the turn goes on for the step after the one that is measured
    assert longest("MOVE_FORWARD") >= 1.0
    pushes = [int((moved[s] < 7).sum()) for held, s in stretches if held == {"MOVE_FORWARD"}]
    assert max(pushes) >= 0.8 * STEPS_PER_S  # against a wall
    assert longest("MOVE_BACKWARD") >= 0.9
    assert max(longest("MOVE_LEFT"), longest("MOVE_RIGHT")) >= 0.5
    assert longest("ATTACK") >= 0.5
    held_together = {held for held, _ in stretches}
    for one in ("MOVE_FORWARD", "ATTACK"):
        assert {frozenset({one, turn}) for turn in ("TURN_LEFT", "TURN_RIGHT")} & held_together, f"{one} while turning"
    assert {frozenset({"MOVE_FORWARD", side}) for side in ("MOVE_LEFT", "MOVE_RIGHT")} & held_together, "corners"


def test_the_same_seed_gives_the_same_file(minute: Path, tmp_path: Path) -> None:
    again = recorded(tmp_path, "explore", "--episodes", "1", "--num_workers", "2")
    assert again.read_bytes() == minute.read_bytes()


def test_more_of_the_map_is_seen_than_at_random(minute: Path, tmp_path: Path) -> None:
    assert areas(minute) >= areas(recorded(tmp_path, "random"))


@pytest.mark.parametrize("action_set", ACTION_SETS)
def test_any_action_set_tries_all_its_buttons_from_the_seed_alone(action_set: str) -> None:
    table = action_table((*BUTTONS, "USE"), action_set)
    steps = round(4 * 60 * STEPS_PER_S)

    def played(seed: int) -> list[int]:
        explorer = Explorer(table, seed, STEPS_PER_S)
        return [explorer(None) for _ in range(steps)]

    first = played(1)
    assert {button for action in first for button in table[action].buttons} == {*BUTTONS, "USE"}
    assert first == played(1)
    assert first != played(2)


def test_a_game_with_fewer_buttons_is_explored_with_those() -> None:
    table = action_table(("MOVE_LEFT", "MOVE_RIGHT", "ATTACK"))
    explorer = Explorer(table, 0, STEPS_PER_S)
    used = {button for _ in range(600) for button in table[explorer(None)].buttons}
    assert used == {"MOVE_LEFT", "MOVE_RIGHT", "ATTACK"}


def test_of_what_may_not_be_pressed_together_the_last_stays() -> None:
    full, seed = action_table(BUTTONS), action_table(BUTTONS, "seed")
    pressed = ("TURN_LEFT", "ATTACK")
    assert set(full[nearest_action(full, pressed)].buttons) == set(pressed)
    assert seed[nearest_action(seed, pressed)].buttons == ("ATTACK",)
    assert seed[nearest_action(seed, pressed[::-1])].buttons == ("TURN_LEFT",)
    assert seed[nearest_action(seed, ("USE",))].buttons == ()


def test_a_lost_episode_is_recorded_again_and_other_games_are_refused(tmp_path: Path) -> None:
    short = ["--policy", "explore", *QUIET, "--episode_tics", "80", "--episodes", "2", "--output_dir", tmp_path]
    assert call(GENERATE, *short).returncode == 0
    whole = contents(tmp_path)
    lost, _ = sorted(whole)
    (tmp_path / lost).unlink()
    result = call(GENERATE, *short)
    assert "1 were there already" in result.stdout
    assert contents(tmp_path) == whole
    assert is_refused(call(GENERATE, *short, "--env", "CartPole-v1"), "explore", "CartPole-v1", "--policy random")
