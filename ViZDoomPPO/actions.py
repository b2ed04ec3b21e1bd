"""THE action table: what an action id presses. Knows only button names, nothing of ViZDoom, policies or files.

`doom_env.py` builds the table from a scenario's buttons; the recorder, the policy file and every later artifact carry
it as rows (`table_rows`) and are read back with `table_from_rows`, so an id is looked up nowhere else.

The rule, which keeps the table small for any scenario:
- opposites (forward/backward, strafe left/right, turn left/right) are never pressed together;
- moving, turning and ATTACK combine freely: 54 combinations with all seven buttons, and never more;
- every other button (USE, JUMP, a weapon slot ...) is pressed alone: one action each;
- SPEED and STRAFE only change what other buttons mean, and *_DELTA buttons take an amount, not a press: left out.
Ids count the combinations in binary with the last button fastest, so 0 presses nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress, product

from console import BadInput

ACTION_SETS = ("full", "seed")
OPPOSITES = (("MOVE_FORWARD", "MOVE_BACKWARD"), ("MOVE_LEFT", "MOVE_RIGHT"), ("TURN_LEFT", "TURN_RIGHT"))
COMBINED = {"ATTACK"}.union(*OPPOSITES)  # may be pressed together, opposites excepted
ALONE_IN_SEED = {"ATTACK", "MOVE_LEFT", "MOVE_RIGHT"}
MODIFIERS = {"SPEED", "STRAFE"}
NO_OP = "NOOP"

KEYS = {  # button -> KeyboardEvent.code on the play page; buttons without a key are played by agents only
    "ATTACK": "Space",
    "MOVE_FORWARD": "KeyW",
    "MOVE_BACKWARD": "KeyS",
    "MOVE_LEFT": "KeyA",
    "MOVE_RIGHT": "KeyD",
    "TURN_LEFT": "ArrowLeft",
    "TURN_RIGHT": "ArrowRight",
    "TURN180": "ArrowDown",
    "USE": "KeyE",
    "JUMP": "KeyJ",
    "CROUCH": "KeyC",
    "RELOAD": "KeyR",
    "ALTATTACK": "KeyF",
    "ZOOM": "KeyZ",
    "LOOK_UP": "PageUp",
    "LOOK_DOWN": "PageDown",
    "SELECT_NEXT_WEAPON": "BracketRight",
    "SELECT_PREV_WEAPON": "BracketLeft",
    **{f"SELECT_WEAPON{digit}": f"Digit{digit}" for digit in range(10)},
}


@dataclass(frozen=True)
class Action:
    """One row of the table: the buttons held down together, and the keyboard keys that stand for them."""

    id: int
    name: str
    buttons: tuple[str, ...]
    keys: tuple[str, ...]


def action_table(buttons: Sequence[str], action_set: str = "full") -> tuple[Action, ...]:
    """The actions for a scenario's buttons, in its order; row i has id i, row 0 presses nothing.

    `full` is the rule above; `seed` lets ATTACK and strafing happen only alone: 12 actions with all seven buttons, the
    table that the player of Masao-Taketani/GameNGen prints and its published weights were trained on.
    Raises BadInput when no button can be pressed, or the action set is unknown."""
    if action_set not in ACTION_SETS:
        raise BadInput(f"unknown action set {action_set!r}; choose one of {', '.join(ACTION_SETS)}")
    pressable = [button for button in buttons if button not in MODIFIERS and not button.endswith("_DELTA")]
    if not pressable:
        raise BadInput(f"no button of [{', '.join(buttons)}] acts on its own; add e.g. ATTACK to available_buttons")
    alone = {button for button in pressable if button not in COMBINED}
    if action_set == "seed":
        alone |= ALONE_IN_SEED
    rows = _combinations(pressable, alone)
    return tuple(
        Action(id=i, name="+".join(row) or NO_OP, buttons=row, keys=tuple(KEYS[b] for b in row if b in KEYS))
        for i, row in enumerate(rows)
    )


def _combinations(pressable: list[str], alone: set[str]) -> list[tuple[str, ...]]:
    """The allowed sets of buttons in binary counting order; `alone` buttons cost one row each, never a doubling."""
    place = {button: 1 << (len(pressable) - 1 - i) for i, button in enumerate(pressable)}
    free = [button for button in pressable if button not in alone]
    rows = [tuple(compress(free, bits)) for bits in product((0, 1), repeat=len(free))]
    rows = [row for row in rows if not any(set(pair) <= set(row) for pair in OPPOSITES)]
    rows += [(button,) for button in pressable if button in alone]
    return sorted(rows, key=lambda row: sum(place[button] for button in row))


def button_vector(action: Action, buttons: Sequence[str]) -> list[int]:
    """The 0/1 list ViZDoom takes: one entry per available button, in the scenario's order."""
    unknown = [button for button in action.buttons if button not in buttons]
    if unknown:
        missing, present = ", ".join(unknown), ", ".join(buttons)
        raise BadInput(f"action {action.name} presses {missing}, which this scenario lacks; its buttons: {present}")
    return [int(button in action.buttons) for button in buttons]


def nearest_action(table: Sequence[Action], pressed: Sequence[str]) -> int:
    """The id of the allowed combination nearest to the buttons held: of those within them, the one with the last ones.

    Each button counts more than all before it together, as on the play page; buttons the table lacks count nothing."""
    weight = {button: 1 << place for place, button in enumerate(pressed)}
    within = [action for action in table if set(action.buttons) <= set(weight)]
    return max(within, key=lambda action: sum(weight[button] for button in action.buttons)).id


def table_rows(table: Sequence[Action]) -> list[dict]:
    """The table as plain JSON rows {id, name, buttons, keys}: the form that travels in every artifact."""
    return [{**asdict(action), "buttons": list(action.buttons), "keys": list(action.keys)} for action in table]


def table_from_rows(rows: Sequence[dict]) -> tuple[Action, ...]:
    """Reads `table_rows` back. Raises BadInput when a field is missing or the ids are not 0, 1, 2 ..."""
    try:
        table = tuple(Action(int(r["id"]), str(r["name"]), tuple(r["buttons"]), tuple(r["keys"])) for r in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"broken action table ({error!r}); each row needs id, name, buttons and keys") from error
    if [action.id for action in table] != list(range(len(table))):
        found = [action.id for action in table]
        raise BadInput(f"broken action table: ids {found}; expected 0 to {len(table) - 1} in order")
    return table
