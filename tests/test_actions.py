"""Promises of actions.py: the table is small, free of contradictions, ordered by rule, and survives JSON."""

import json

import pytest
from actions import Action, action_table, button_vector, table_from_rows, table_rows
from console import BadInput

DEATHMATCH = ("ATTACK", "MOVE_FORWARD", "MOVE_LEFT", "MOVE_RIGHT", "MOVE_BACKWARD", "TURN_RIGHT", "TURN_LEFT")


def test_seven_deathmatch_buttons_give_54_different_actions_and_the_no_op_is_0() -> None:
    table = action_table(DEATHMATCH)
    assert len(table) == 3 * 3 * 3 * 2
    assert len({action.buttons for action in table}) == len({action.name for action in table}) == 54
    assert [action.id for action in table] == list(range(54))
    assert table[0] == Action(0, "NOOP", (), ())


def test_opposite_buttons_are_never_pressed_together() -> None:
    for action in action_table(DEATHMATCH):
        assert not {"MOVE_FORWARD", "MOVE_BACKWARD"} <= set(action.buttons)
        assert not {"MOVE_LEFT", "MOVE_RIGHT"} <= set(action.buttons)
        assert not {"TURN_LEFT", "TURN_RIGHT"} <= set(action.buttons)


def test_seed_table_is_the_one_its_player_prints() -> None:
    """Strafing and attacking happen alone, turning also while walking."""
    assert [action.name for action in action_table(DEATHMATCH, "seed")] == [
        "NOOP",
        "TURN_LEFT",
        "TURN_RIGHT",
        "MOVE_BACKWARD",
        "MOVE_BACKWARD+TURN_LEFT",
        "MOVE_BACKWARD+TURN_RIGHT",
        "MOVE_RIGHT",
        "MOVE_LEFT",
        "MOVE_FORWARD",
        "MOVE_FORWARD+TURN_LEFT",
        "MOVE_FORWARD+TURN_RIGHT",
        "ATTACK",
    ]


def test_buttons_become_a_vector_in_the_order_of_the_scenario() -> None:
    action = Action(3, "", ("MOVE_FORWARD", "TURN_LEFT"), ())
    assert button_vector(action, ("TURN_LEFT", "ATTACK", "MOVE_FORWARD")) == [1, 0, 1]
    with pytest.raises(BadInput, match="TURN_LEFT"):
        button_vector(action, ("ATTACK", "MOVE_FORWARD"))


def test_keys_are_those_of_the_play_page() -> None:
    by_name = {action.name: action for action in action_table(DEATHMATCH)}
    assert by_name["ATTACK+MOVE_FORWARD+TURN_LEFT"].keys == ("Space", "KeyW", "ArrowLeft")


def test_many_buttons_cost_one_action_each_instead_of_doubling_the_table() -> None:
    weapons = tuple(f"SELECT_WEAPON{digit}" for digit in range(10))
    table = action_table((*DEATHMATCH, *weapons, "USE", "JUMP"))
    assert len(table) == 54 + 12
    assert all(action.buttons in ((), (button,)) for button in weapons for action in table if button in action.buttons)


def test_modifiers_and_delta_buttons_are_left_out() -> None:
    table = action_table(("SPEED", "STRAFE", "ATTACK", "TURN_LEFT_RIGHT_DELTA", "USE"))
    assert [action.name for action in table] == ["NOOP", "USE", "ATTACK"]


def test_a_scenario_without_a_pressable_button_is_refused_in_one_line() -> None:
    with pytest.raises(BadInput, match=r"TURN_LEFT_RIGHT_DELTA.*add e\.g\. ATTACK"):
        action_table(("TURN_LEFT_RIGHT_DELTA", "SPEED"))
    with pytest.raises(BadInput, match="unknown action set 'all'"):
        action_table(DEATHMATCH, "all")


@pytest.mark.parametrize("action_set", ["full", "seed"])
def test_table_survives_json(action_set: str) -> None:
    table = action_table(DEATHMATCH, action_set)
    assert table_from_rows(json.loads(json.dumps(table_rows(table)))) == table


@pytest.mark.parametrize(
    "rows", [[{"id": 0, "name": "NOOP"}], [{"id": 1, "name": "NOOP", "buttons": [], "keys": []}], ["NOOP"]]
)
def test_broken_rows_are_refused(rows: list) -> None:
    with pytest.raises(BadInput, match="broken action table"):
        table_from_rows(rows)
