"""Our maps for one player, in the real game: doors open, weapons are found, monsters die, a secret counts, it ends."""

import numpy as np
import pytest
from doom_env import DoomEnv

SMALL = {"screen_resolution": "RES_160X120", "tics_per_step": 1}


class LabelledEnv(DoomEnv):
    """The game, which also says what is seen where."""

    def _configured_game(self) -> object:
        game = super()._configured_game()
        game.set_labels_buffer_enabled(True)
        return game


class Walker:
    """A scripted player who walks towards places of the map."""

    def __init__(self, scenario: str, **settings: object) -> None:
        self.env = LabelledEnv(scenario, **SMALL, **settings)
        self.env.reset(seed=1)
        self.ids = {action.name: action.id for action in self.env.actions}
        self.points, self.info, self.is_over = 0.0, {}, False

    def __getitem__(self, variable: str) -> float:
        """The engine's variable of that name."""
        return self.env._values[variable]

    def press(self, name: str = "NOOP", tics: int = 1) -> None:
        for _ in range(tics):
            if not self.is_over:
                _, points, terminated, truncated, self.info = self.env.step(self.ids[name])
                self.points += points
                self.is_over = terminated or truncated

    def aim_error(self, x: float, y: float) -> float:
        """By how many degrees a place lies to the left, -180 to 180."""
        wanted = np.degrees(np.arctan2(y - self["POSITION_Y"], x - self["POSITION_X"]))
        return float((wanted - self["ANGLE"] + 180) % 360 - 180)

    def turn_to(self, x: float, y: float, within: float = 4.0) -> None:
        for _ in range(400):
            error = self.aim_error(x, y)
            if abs(error) <= within or self.is_over:
                return
            self.press("TURN_LEFT" if error > 0 else "TURN_RIGHT")

    def walk(self, column: float, row: float, tics: int = 300) -> None:
        """To the middle of a cell of the plan, in a straight line; stops where something is in the way."""
        x, y = (column + 0.5) * 64, -(row + 0.5) * 64
        for _ in range(tics):
            if self.is_over or np.hypot(x - self["POSITION_X"], y - self["POSITION_Y"]) < 20:
                return
            error = self.aim_error(x, y)
            self.press("MOVE_FORWARD" if abs(error) < 8 else "TURN_LEFT" if error > 0 else "TURN_RIGHT")

    def use(self, column: float, row: float) -> None:
        """Presses USE towards a cell, and waits for what it opens."""
        self.turn_to((column + 0.5) * 64, -(row + 0.5) * 64)
        self.press("USE", 2)
        self.press("NOOP", 15)

    def shoot_monsters(self, tics: int) -> None:
        """At whichever is seen, for so long or until one is dead."""
        kills = self["KILLCOUNT"]
        for _ in range(tics):
            labels = self.env._game.get_state().labels if not self.is_over else []
            seen = [label for label in labels if label.object_name in ("Zombieman", "ShotgunGuy", "DoomImp", "Demon")]
            if self.is_over or self["KILLCOUNT"] > kills:
                return
            error = self.aim_error(seen[0].object_position_x, seen[0].object_position_y) if seen else 90.0
            self.press("ATTACK" if abs(error) < 5 else "TURN_LEFT" if error > 0 else "TURN_RIGHT")


def test_a_door_keeps_out_whoever_does_not_use_it_and_opens_to_who_does() -> None:
    walker = Walker("one_door", reward="paper")
    walker.press("MOVE_FORWARD", 100)
    stopped_at = walker["POSITION_X"]
    assert walker.info["areas"] <= 2
    walker.press("USE")
    walker.press("MOVE_FORWARD", 200)
    assert walker["POSITION_X"] > stopped_at + 1000
    assert walker.info["areas"] >= 10 and walker.points >= 1000
    walker.env.close()


def test_the_monster_on_the_ledge_is_missed_by_who_does_not_aim_and_neither_comes_nor_bites() -> None:
    walker = Walker("one_monster", reward="paper")
    walker.press("ATTACK", 100)
    assert walker["HITCOUNT"] == 0 and -10 <= walker.points < 0, "shots into the wall cost their bullets"
    walker.shoot_monsters(400)
    assert walker["KILLCOUNT"] == 1 and walker["HITS_TAKEN"] == 0 and walker["HEALTH"] == 100
    assert walker.points > 1000 + 300 * walker["HITCOUNT"] - 50
    walker.env.close()


def test_a_monster_is_hit_and_killed_and_both_pay() -> None:
    walker = Walker("outpost", reward="paper")
    walker.walk(6, 2)
    walker.use(9, 2)
    before = walker.points
    walker.shoot_monsters(600)
    assert walker["KILLCOUNT"] == walker.info["frags"] == 1 and walker["HITCOUNT"] >= 1
    paid = 1000 + 300 * walker["HITCOUNT"] - 100 * walker["HITS_TAKEN"] + 10 * (walker["HEALTH"] - 102)
    assert walker.points - before == pytest.approx(paid - (50 - walker["AMMO2"]), abs=60), "an area may come on top"
    walker.env.close()


def test_weapons_items_and_the_secret_are_found_and_the_switch_ends_the_game() -> None:
    walker = Walker("outpost", reward="paper")
    walker.press()
    walker.env._game.send_game_command("kill monsters")
    walker.press("NOOP", 5)
    walker.walk(6, 2)
    assert walker["ITEMCOUNT"] == 2, "two bonuses on the way"
    walker.use(9, 2)
    walker.walk(11, 1)
    before = walker.points
    walker.walk(11, 0)
    assert walker["WEAPON3"] == 1 and walker["AMMO3"] > 0, "the shotgun"
    assert walker.points - before >= 100 + 10 * walker["AMMO3"]
    walker.press("NOOP", 40)
    assert walker["SELECTED_WEAPON_AMMO"] == walker["AMMO3"] != walker["AMMO2"], "it is in hand"
    walker.press("SELECT_PREV_WEAPON", 2)
    walker.press("NOOP", 40)
    assert walker["SELECTED_WEAPON_AMMO"] == walker["AMMO2"], "the pistol is"
    for column, row in ((11, 2), (13, 2)):
        walker.walk(column, row)
    walker.use(16, 2)
    for column, row in ((16, 2), (17, 3), (20, 3), (20, 5)):
        walker.walk(column, row)
    assert walker.info["secrets"] == 0
    walker.use(20, 8)
    before = walker.points
    walker.walk(20, 8)
    assert walker.info["secrets"] == walker["SECRETCOUNT"] == 1 and walker.points - before >= 500
    for column, row in ((20, 5), (20, 3), (24, 3)):
        walker.walk(column, row)
        walker.use(column, row + 1) if (column, row) == (20, 5) else None
    walker.use(27, 3)
    for column, row in ((28, 3), (28, 5)):
        walker.walk(column, row)
    walker.use(28, 8)
    for column, row in ((28, 8), (28, 11)):
        walker.walk(column, row)
    assert not walker.is_over and walker.info["areas"] >= 12
    walker.use(28, 12)
    assert walker.is_over, "the switch ends the game"
    walker.env.close()


def test_dying_costs_what_the_paper_says_and_ends_the_game() -> None:
    walker = Walker("outpost", reward="paper")
    walker.press()
    walker.env._game.send_game_command("kill")
    before = walker.points
    walker.press("NOOP", 35)
    assert walker.is_over and walker["DEAD"] == 1
    assert walker.points - before == pytest.approx(-5000 - 10 * 100, abs=100)
    walker.env.close()


def test_the_action_tables_stay_small_enough_to_learn() -> None:
    assert len(DoomEnv("outpost").actions) == 57 and len(DoomEnv("outpost", action_set="seed").actions) == 15
    assert len(DoomEnv("one_door").actions) == 10
    assert len(DoomEnv("one_monster").actions) == 6
    for scenario in ("outpost", "one_door"):
        assert {"NOOP", "USE"} <= {action.name for action in DoomEnv(scenario).actions}
