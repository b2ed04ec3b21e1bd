"""The engine's variables by name, and what is made of them: the reward's input, recorded columns. Knows no engine."""

from collections.abc import Mapping

from rewards import TicVariables

# Read after every tic in this order.
VARIABLES = (
    "HEALTH",
    "ARMOR",
    "AMMO2",  # bullets; slots 3, 5, 6: shells, rockets, cells. Slot 4 shares the bullets, 7 the cells.
    "AMMO3",
    "AMMO5",
    "AMMO6",
    "SELECTED_WEAPON_AMMO",
    "FRAGCOUNT",
    "KILLCOUNT",
    "DEATHCOUNT",
    "DAMAGECOUNT",
    "HITCOUNT",
    "HITS_TAKEN",
    "ITEMCOUNT",
    "SECRETCOUNT",
    *(f"WEAPON{slot}" for slot in range(10)),  # how many of that slot are in hand
    "POSITION_X",
    "POSITION_Y",
    "ANGLE",
    "CAMERA_POSITION_Z",
    "DEAD",
)


def frags(values: Mapping[str, float], is_deathmatch: bool) -> float:
    """Other players killed; in a single-player game, monsters."""
    return values["FRAGCOUNT"] if is_deathmatch else values["KILLCOUNT"]


def tic_variables(values: Mapping[str, float], is_deathmatch: bool) -> TicVariables:
    """What the reward looks at."""
    return TicVariables(
        health=max(0.0, values["HEALTH"]),  # far below zero after a violent death
        armor=values["ARMOR"],
        ammo=values["AMMO2"] + values["AMMO3"] + values["AMMO5"] + values["AMMO6"],
        frags=frags(values, is_deathmatch),
        damage=values["DAMAGECOUNT"],
        position_x=values["POSITION_X"],
        position_y=values["POSITION_Y"],
        dead=bool(values["DEAD"]),
        hits=values["HITCOUNT"],
        hits_taken=values["HITS_TAKEN"],
        items=values["ITEMCOUNT"],
        secrets=values["SECRETCOUNT"],
        weapons=sum(values[f"WEAPON{slot}"] for slot in range(10)),
    )


def columns(values: Mapping[str, float], is_deathmatch: bool) -> dict[str, float | int | bool]:
    """What is recorded with a frame."""
    return {
        "health": max(0, int(values["HEALTH"])),
        "ammo": max(0, int(values["SELECTED_WEAPON_AMMO"])),
        "frags": int(frags(values, is_deathmatch)),
        "position_x": values["POSITION_X"],
        "position_y": values["POSITION_Y"],
        "position_angle": values["ANGLE"],
    }
