"""What a person's hands do to a world model: keys for every button, and the allowed action nearest to what is pressed.

Knows the rows of an action table and nothing of models, pages or pads. Used by the game loop and the play server.
"""

from collections.abc import Sequence
from typing import Any

from command_line import BadInput
from episodes import no_op_id

# Further KeyboardEvent.code names for Doom's buttons; a key that the table itself uses stays the table's.
MORE_KEYS = {
    "MOVE_FORWARD": ("KeyW", "ArrowUp"),
    "MOVE_BACKWARD": ("KeyS", "ArrowDown"),
    "MOVE_LEFT": ("KeyA",),
    "MOVE_RIGHT": ("KeyD",),
    "TURN_LEFT": ("ArrowLeft", "KeyQ"),
    "TURN_RIGHT": ("ArrowRight", "KeyE"),
    "ATTACK": ("Space", "ControlLeft", "ControlRight"),
}


def row_buttons(row: dict[str, Any], no_op: int) -> tuple[str, ...]:
    """The buttons an action presses; where a table names none, the action is a button of its own."""
    return tuple(row["buttons"]) or (() if row["id"] == no_op else (str(row["name"]),))


def button_keys(action_table: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """button -> KeyboardEvent.code names, in the order in which the table first names the buttons.

    A row tells its buttons' keys where it has one for each."""
    no_op = no_op_id(action_table)
    keys: dict[str, list[str]] = {}
    for row in sorted(action_table, key=lambda row: (len(row["buttons"]), row["id"])):
        buttons = row_buttons(row, no_op)
        for button in buttons:
            keys.setdefault(button, [])
        if len(buttons) == len(row["keys"]):
            for button, key in zip(buttons, row["keys"], strict=True):
                if key not in keys[button]:
                    keys[button].append(key)
    taken = {key for names in keys.values() for key in names}
    for button, names in keys.items():
        names += [key for key in MORE_KEYS.get(button, ()) if key not in taken]
    return keys


def nearest_action(action_table: Sequence[dict[str, Any]], pressed: Sequence[str]) -> int:
    """The id of the action to play while `pressed` buttons are down, oldest first.

    Among the combinations within what is pressed the newest button counts most, then the one before it, and so on:
    of two opposites the newer one wins, and of a combination that is not allowed the part that was pressed last stays.
    Buttons the table does not know count for nothing."""
    no_op = no_op_id(action_table)
    weight = {button: 1 << place for place, button in enumerate(pressed)}  # of a button named twice the newer place
    best, best_score = no_op, 0
    for row in action_table:
        buttons = row_buttons(row, no_op)
        if all(button in weight for button in buttons):
            score = sum(weight[button] for button in set(buttons))
            if score > best_score:
                best, best_score = int(row["id"]), score
    return best


def counterparts(
    action_table: Sequence[dict[str, Any]], other_table: Sequence[dict[str, Any]], *, of: str
) -> dict[int, int]:
    """id in `action_table` -> id in `other_table` of the action that presses the same buttons.

    of: what the other table belongs to, for the error. Raises BadInput naming the first action it lacks."""
    no_op, other_no_op = no_op_id(action_table), no_op_id(other_table)
    others = {frozenset(row_buttons(row, other_no_op)): int(row["id"]) for row in reversed(other_table)}
    found = {}
    for row in action_table:
        buttons = frozenset(row_buttons(row, no_op))
        if buttons not in others:
            has = sorted({button for each in others for button in each})
            raise BadInput(f"no action of {of} presses what {row['name']} does; it has {', '.join(has)}")
        found[int(row["id"])] = others[buttons]
    return found


def has_common_actions(action_table: Sequence[dict[str, Any]], other_table: Sequence[dict[str, Any]]) -> bool:
    """Whether any action of the one table, the no-op apart, can be played by the other's nearest."""
    no_op, other_no_op = no_op_id(action_table), no_op_id(other_table)
    return any(nearest_action(other_table, row_buttons(row, no_op)) != other_no_op for row in action_table)
